"""Encoded images of any source, collected into tensors."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mpelu.data.dataset import Decoded, Split
from mpelu.data.pixels import decode_image
from mpelu.errors import DataError


@dataclass(frozen=True)
class Item:
    """One encoded image, and where it was found (for messages)."""

    where: str
    data: bytes | None
    label: int | None


@dataclass(frozen=True)
class Part:
    """One split: images as RGB, shape ``(N, 3, H, W)``, and whether all of them were grey."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    encodings: frozenset[str]
    grey: bool


def decode_both(
    train: Iterable[Item],
    test: Iterable[Item],
    *,
    totals: tuple[int, int],
    classes: tuple[str, ...],
    size: tuple[int, int] | None,
    resize: int | None,
    damaged: list[str],
) -> Decoded:
    """Decode both splits to ``(N, 3, H, W)``, or ``(N, 1, H, W)`` if every image is grey.

    Args:
        train: The training images.
        test: The test images.
        totals: At most so many images in each.
        classes: Name of each class.
        size: Height and width that all images must have; None: those of the first training image.
        resize: Height and width to scale every image to; None leaves them as they are.
        damaged: A line is added for each image that is left out.
    """
    if resize is not None:
        size = (resize, resize)
    learn = decode_part(train, totals[0], len(classes), size, resize, damaged)
    if size is None and len(learn.labels):
        size = learn.images.shape[-2:]
    judge = decode_part(test, totals[1], len(classes), size, resize, damaged)
    grey = learn.grey and judge.grey
    return Decoded(
        classes=classes,
        train=_split(learn, grey=grey),
        test=_split(judge, grey=grey),
        encoding=_common_encoding(learn.encodings | judge.encodings),
        damaged=tuple(damaged),
    )


def decode_part(
    items: Iterable[Item],
    total: int,
    classes: int,
    size: tuple[int, int] | None,
    resize: int | None,
    damaged: list[str],
) -> Part:
    """Decode all items of a split; the first image decides on the size if none is given (height, width)."""
    images = None if size is None else np.empty((total, 3, *size), dtype=np.uint8)
    labels = np.empty(total, dtype=np.int64)
    encodings: set[str] = set()
    grey = True
    count = 0
    for item in items:
        try:
            pixels, encoding, is_grey = decode_image(item.data, size=size, resize=resize)
            labels[count] = require_label(item.label, classes)
        except DataError as error:
            damaged.append(f"{item.where}: {error}")
            continue
        if images is None:
            size = pixels.shape[:2]
            images = np.empty((total, 3, *size), dtype=np.uint8)
        images[count] = pixels.transpose(2, 0, 1)
        encodings.add(encoding)
        grey = grey and is_grey
        count += 1
    if images is None:
        images = np.empty((0, 3, 1, 1), dtype=np.uint8)
    return Part(images[:count], labels[:count], frozenset(encodings), grey)


def resized(decoded: Decoded, size: int) -> Decoded:
    """Scale images that are decoded already to ``size x size``, by the filter of :func:`decode_image`.

    Args:
        decoded: Images of one size, uint8.
        size: Height and width; images that have them are left as they are.
    """
    train, test = (
        part if part.images.shape[-2:] == (size, size) else Split(_scaled(part.images, size), part.labels)
        for part in (decoded.train, decoded.test)
    )
    return replace(decoded, train=train, test=test)


def _scaled(images: torch.Tensor, size: int) -> torch.Tensor:
    """Scale each channel of each image by itself, as Pillow does."""
    planes = images.numpy().reshape(-1, *images.shape[-2:])
    scaled = np.empty((len(planes), size, size), dtype=np.uint8)
    for plane, result in zip(planes, scaled, strict=True):
        result[:] = np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(scaled).view(*images.shape[:2], size, size)


def require_label(label: int | None, classes: int) -> int:
    """Return the label, or raise a DataError if it is not one of the classes."""
    if label is None or not 0 <= label < classes:
        raise DataError(f"label {label} is not one of 0 to {classes - 1}")
    return label


def _split(part: Part, *, grey: bool) -> Split:
    images = np.ascontiguousarray(part.images[:, :1]) if grey else part.images
    return Split(torch.from_numpy(images), torch.from_numpy(part.labels))


def _common_encoding(encodings: frozenset[str]) -> str:
    if len(encodings) <= 1:
        return "".join(encodings)
    return "jpeg" if any(encoding.startswith("jpeg") for encoding in encodings) else "lossy"
