"""What a network is shown of a photograph: resized, then a square of it, perhaps mirrored."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpelu.data.pixels import opened, pixels, rgb
from mpelu.errors import UsageError

RESIZES = ("squash", "short")


@dataclass(frozen=True)
class View:
    """How a photograph is cut.

    Attributes:
        resize: ``squash`` to ``size x size``, whatever the aspect (the paper's), or the ``short`` side to ``size``.
        size: Pixels after resizing.
        crop: Height and width of what is cut out.
        flip: Mirror left and right with probability 1/2, in training.
    """

    resize: Literal["squash", "short"] = "squash"
    size: int = 256
    crop: int = 224
    flip: bool = True

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise UsageError(f"resize must be {' or '.join(RESIZES)}, got {self.resize!r}")
        if not 1 <= self.crop <= self.size:
            raise UsageError(f"the crop must be from 1 to {self.size} pixels, the size after resizing, got {self.crop}")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after resizing.

        Example:
            >>> View(resize="short").resized(300, 600), View(resize="squash").resized(300, 600)
            ((256, 512), (256, 256))
        """
        if self.resize == "squash":
            return self.size, self.size
        short = min(height, width)
        return tuple(max(self.size, round(length * self.size / short)) for length in (height, width))  # type: ignore[return-value]

    def corner(self, height: int, width: int, at: tuple[float, float] | None) -> tuple[int, int]:
        """Return top and left of the crop in an image after resizing.

        Args:
            height: Of the image after resizing.
            width: Of the image after resizing.
            at: Where, as fractions in [0, 1) of the room there is: draws that are even give corners that are. None for
                the centre.
        """
        room = (height - self.crop, width - self.crop)
        if at is None:
            return room[0] // 2, room[1] // 2
        return int(at[0] * (room[0] + 1)), int(at[1] * (room[1] + 1))


def cut(
    data: bytes | None, view: View, *, at: tuple[float, float] | None = None, mirrored: bool = False
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode, resize and crop one photograph.

    Only what is cut out is computed. The filter is Pillow's bilinear one, which averages over all pixels that it leaves
    out; grey and CMYK images become RGB.

    Args:
        data: The encoded image.
        view: How it is cut.
        at: See :meth:`View.corner`.
        mirrored: Mirror left and right.

    Returns:
        Pixels, shape ``(crop, crop, 3)``; and top and left of the crop, before mirroring.

    Raises:
        DataError: Says what is wrong with the image, not where it is.
    """
    with opened(data) as image:
        square, corner = window(rgb(image), view, at=at)
        if mirrored:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return pixels(square), corner


def window(
    image: Image.Image, view: View, *, at: tuple[float, float] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Resize and crop one image; see :func:`cut`.

    Returns:
        ``crop`` x ``crop`` pixels of it; and top and left of the crop.
    """
    height, width = view.resized(image.height, image.width)
    top, left = view.corner(height, width, at)
    return _resized_window(image, (height, width), (top, left), view.crop), (top, left)


def whole(data: bytes | None, view: View) -> NDArray[np.uint8]:
    """Decode and resize one photograph without cutting: shape ``(H, W, 3)`` as :meth:`View.resized` says."""
    with opened(data) as image:
        height, width = view.resized(image.height, image.width)
        return pixels(rgb(image).resize((width, height), Image.Resampling.BILINEAR))


def _resized_window(image: Image.Image, size: tuple[int, int], corner: tuple[int, int], crop: int) -> Image.Image:
    """Return the window of the resized image without computing the rest."""
    top, bottom, upper, height = _span(image.height, size[0], corner[0], crop)
    left, right, begin, width = _span(image.width, size[1], corner[1], crop)
    if (height, width) != (image.height, image.width):  # cut before, where nothing is resampled
        image = image.crop((begin, upper, begin + width, upper + height))
    if (height, width) == (crop, crop):
        return image
    return image.resize((crop, crop), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def _span(length: int, resized: int, corner: int, crop: int) -> tuple[float, float, int, int]:
    """Return where the window begins and ends in what is resized, and begin and length of that in the image.

    A side that already has its length is cut to the window, so that Pillow does not filter along it.
    """
    if length == resized:
        return 0.0, float(crop), corner, crop
    scale = length / resized
    return corner * scale, min(float(length), (corner + crop) * scale), 0, length
