"""Look at every item of a data set and report what is there."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from mpelu.data.catalog import find, name_of
from mpelu.data.dataset import Split, channel_statistics
from mpelu.errors import DataError

NAMED_ITEMS = 20


@dataclass(frozen=True)
class CheckReport:
    """What is in a data set.

    Attributes:
        name: Its name in results.
        sha256: Digest of its content, as in :class:`Dataset`.
        classes: Name of each class.
        size: Channels, height and width of an image.
        train: Good training images of each class.
        test: Good test images of each class.
        mean: Mean of each channel of the good training images, on the scale 0 to 1.
        std: Standard deviation of each channel of the good training images, on the same scale.
        duplicates: Test images with exactly the pixels of a training image.
        damaged: One line for each file or row that cannot be read.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    size: tuple[int, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    duplicates: int
    damaged: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as pairs of a heading and its text; at most 20 damaged items are named."""
        rows = [
            ("name", self.name),
            ("sha256", self.sha256),
            ("size", "x".join(str(length) for length in self.size)),
            ("train", str(sum(self.train))),
            ("test", str(sum(self.test))),
            ("mean", " ".join(f"{value:.4f}" for value in self.mean)),
            ("std", " ".join(f"{value:.4f}" for value in self.std)),
        ]
        rows += [
            (f"class {name}", f"{train} train, {test} test")
            for name, train, test in zip(self.classes, self.train, self.test, strict=True)
        ]
        rows.append(("test images that are in train", str(self.duplicates)))
        rows.append(("damaged", str(len(self.damaged))))
        rows += [("damaged item", line) for line in self.damaged[:NAMED_ITEMS]]
        if len(self.damaged) > NAMED_ITEMS:
            rows.append(("damaged item", f"and {len(self.damaged) - NAMED_ITEMS} more"))
        return rows


def check(source: str | Path) -> CheckReport:
    """Read every item of a data set anew, past the cache, and count; damage is reported, not raised.

    Args:
        source: As for :func:`load`.

    Raises:
        UsageError: If the name is neither in the catalog nor a path.
        DataError: If there is no such data, or no image of it can be read.
    """
    found = find(source)
    decoded = found.decode()
    splits = [split for split in (decoded.train, decoded.test) if len(split.labels)]
    if not splits:
        shown = "; ".join(decoded.damaged[:3])
        raise DataError(
            f"no image of {source} can be read ({len(decoded.damaged)} damaged: {shown}); get the data again"
        )
    mean, std = channel_statistics(decoded.train.images) if len(decoded.train.labels) else ((), ())
    in_train = set(_pixel_hashes(decoded.train))
    return CheckReport(
        name=name_of(decoded, found.name),
        sha256=found.sha256(),
        classes=decoded.classes,
        size=tuple(splits[0].images.shape[1:]),
        train=_class_counts(decoded.train, len(decoded.classes)),
        test=_class_counts(decoded.test, len(decoded.classes)),
        mean=mean,
        std=std,
        duplicates=sum(pixels in in_train for pixels in _pixel_hashes(decoded.test)),
        damaged=decoded.damaged,
    )


def _class_counts(split: Split, classes: int) -> tuple[int, ...]:
    return tuple(torch.bincount(split.labels, minlength=classes).tolist())


def _pixel_hashes(split: Split) -> list[bytes]:
    return [hashlib.sha256(image.data).digest() for image in split.images.numpy()]
