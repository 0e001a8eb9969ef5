"""Images of users, of any size and mode, as a network is tested on its own."""

import io
import sys
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mpelu.data import evaluation_inputs
from mpelu.data.pixels import FORMATS, SUFFIXES, UNREADABLE, first_line
from mpelu.data.view import window
from mpelu.deploy.network import Description
from mpelu.errors import DataError, UsageError
from mpelu.train.supply import Photographs

Pixels: TypeAlias = NDArray[np.uint8]
STDIN = "-"
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
BACKGROUND = (255, 255, 255)
"""What is seen through transparent pixels: white, as on a page."""


def sources(names: Sequence[str], *, listed: str | None = None) -> Iterator[str]:
    """Yield the images that names stand for, each as a path, or ``-`` for the bytes on stdin.

    A folder stands for the images in it and in its folders, in order; a name with ``*``, ``?`` or ``[`` that is no file
    for the files that match it (``**`` for any folders).

    Args:
        names: Of the user.
        listed: A file with a path on each line, or ``-`` for such lines on stdin.

    Raises:
        UsageError: If there is no name, a folder or pattern has no image, or stdin is to be two things.
        DataError: If the list cannot be read.
    """
    if listed == STDIN and STDIN in names:
        raise UsageError("stdin can be one image (-) or a list of paths (--list -), not both")
    if not names and listed is None:
        raise UsageError("give images, folders or patterns, - for an image on stdin, or --list FILE")
    for name in names:
        yield from _of_name(name)
    if listed is not None:
        lines = sys.stdin if listed == STDIN else _lines_of(Path(listed))
        yield from (line.rstrip("\r\n") for line in lines if line.strip())


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or "") if isinstance(error, OSError) else "it is no text"
        raise DataError(f"cannot read --list {path} ({reason}); give a text file with a path on each line") from error


def _of_name(name: str) -> Iterator[str]:
    path = Path(name)
    if name == STDIN or path.is_file():
        yield name
    elif path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        if not found:
            raise UsageError(f"the folder {name} holds no image ({', '.join(SUFFIXES)}); give another one")
        yield from map(str, found)
    elif any(sign in name for sign in "*?["):
        matching = sorted(each for each in glob(name, recursive=True) if Path(each).is_file())  # noqa: PTH207  # it takes absolute patterns
        if not matching:
            raise UsageError(f"no file matches {name}; quote patterns so that the shell leaves them as they are")
        yield from matching
    else:
        yield name  # which is reported where it is read, so that the others go on


def read(source: str) -> bytes:
    """Return the bytes of an image.

    Raises:
        DataError: Says what is wrong, not where.
    """
    try:
        if source == STDIN:
            return sys.stdin.buffer.read()
        with io.FileIO(source) as file:  # without a buffer: a tenth of the time of decoding 32x32 pixels
            return file.read()
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error


def decode(content: bytes) -> Image.Image:
    """Decode an image of any mode to RGB, or to grey (mode ``L``) if it has one channel.

    It is turned as its EXIF orientation says. Transparent pixels show a white background. Of 16 bits, 8 count. CMYK
    goes by R = (255 - C)(255 - K) / 255 and so on, without a colour profile. Of several frames, the first is
    taken.

    Raises:
        DataError: If the bytes are no whole image, or its pixels have no one scale to 0..255; says only what is wrong.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except UNREADABLE as error:
        shown = "no known format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise DataError(f"the bytes are not a whole image ({shown})") from error
    return _opaque(image)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", None)):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                "its pixels have more than 16 bits, which have no one scale to 0..255; convert it to 8 bits"
            )
        return Image.fromarray((values >> 8).astype(np.uint8), mode="L")
    if image.mode in ("F", "I"):
        raise DataError(f"its pixels have mode {image.mode}, which has no one scale to 0..255; convert it to 8 bits")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        below = Image.new("RGBA", seen.size, (*BACKGROUND, 255))
        grey = image.mode in ("LA", "La", "L", "1")
        return Image.alpha_composite(below, seen).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def pixels(image: Image.Image, description: Description) -> Pixels:
    """Resize and cut an image as the network's own are, and give it their channels.

    Args:
        image: Mode ``RGB`` or ``L``.
        description: Of the network.

    Returns:
        uint8, shape ``(H, W, C)``: of data in memory, before the crop; of photographs, behind it.
    """
    channels, height, width = description.data.image_shape
    mode = "L" if channels == 1 else "RGB"
    wanted = image if image.mode == mode else image.convert(mode)
    if isinstance(description.data, Photographs):
        wanted, _ = window(wanted, description.data.view)
    elif wanted.size != (width, height):
        wanted = wanted.resize((width, height), Image.Resampling.BILINEAR)
    return np.frombuffer(wanted.tobytes(), dtype=np.uint8).reshape(wanted.height, wanted.width, channels)


def inputs(squares: Sequence[Pixels], description: Description) -> Tensor:
    """Return what the network is given of images that :func:`pixels` prepared.

    Args:
        squares: N of them.
        description: Of the network.

    Returns:
        float32, shape ``(N, *description.input_shape)``, centred and scaled.

    Raises:
        UsageError: If the network was trained on images that were whitened.
    """
    data, recipe = description.data, description.recipe
    stacked = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    if isinstance(data, Photographs):
        _, height, width = data.image_shape
        view = data.view
        corner = view.corner(*view.resized(height, width), None) if view.resize == "squash" else (0, 0)
        corners = torch.tensor([corner]).expand(len(squares), 2)
        shown = data.normalization.apply(stacked, corners, torch.zeros(len(squares), dtype=torch.bool))
    else:
        refuse_whitened(description)
        assert recipe.augment is not None
        shown = evaluation_inputs(data, stacked.contiguous(), recipe.augment)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return shown.contiguous(memory_format=layout)


def refuse_whitened(description: Description) -> None:
    """Raise a UsageError for a network that is given whitened images: the map is not part of what goes out."""
    if description.recipe.preprocess != "none":
        raise UsageError(
            f"this network was trained on images preprocessed by {description.recipe.preprocess} with the statistics "
            f"of {description.data.name}, which are not stored with it: prepare the images with mpelu.data.load and "
            f"call the network yourself"
        )
