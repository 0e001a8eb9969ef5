"""The built-in data set: 1,797 handwritten digits, small enough to ship and to train on in a minute."""

import csv
import gzip
import io
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from mpelu.data.dataset import Decoded, Source, Split

TRAIN_ROWS = 1500


def find() -> Source:
    """Return the file of digits that is installed with the library."""
    path = Path(str(files("mpelu.data") / "files" / "digits.csv.gz"))
    return Source(name="digits", files={"all": (path,)}, decode=lambda: decode(path))


def decode(path: Path) -> Decoded:
    """Read 8x8 images with values 0 to 16, as ``(N, 1, 16, 16)`` with values 0 to 255.

    The first 1,500 rows are for training and the last 297 for testing. Neighbouring rows tend to come from the same
    writer, so most test digits were written by others than the training digits; a random split would look better.

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, doi:10.24432/C50P49, CC BY 4.0.
    """
    rows = np.array(list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))), dtype=np.float32)
    small = torch.from_numpy(rows[:, :64]).reshape(-1, 1, 8, 8) * (255 / 16)
    images = interpolate(small, size=(16, 16), mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = torch.from_numpy(rows[:, 64].astype(np.int64))
    return Decoded(
        classes=tuple("0123456789"),
        train=Split(images[:TRAIN_ROWS], labels[:TRAIN_ROWS]),
        test=Split(images[TRAIN_ROWS:], labels[TRAIN_ROWS:]),
    )
