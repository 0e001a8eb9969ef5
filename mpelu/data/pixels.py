"""One encoded image: its pixels as RGB, and what the encoding took away."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mpelu.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "GIF", "WEBP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".gif", ".webp", ".tif", ".tiff")
LOSSLESS = ("PNG", "BMP", "PPM", "GIF")
LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
# Others are refused: floating, 16 and 32 bit pixels have no one scale to 0..255, and transparency no one background.
MODES = ("1", "L", "P", "RGB", "CMYK")

# What Pillow raises for damaged files, besides its own errors.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), row by row.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def luminance_table(quality: int) -> tuple[int, ...]:
    """Return the luminance table that the Independent JPEG Group's library writes for a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(max((value * scale + 50) // 100, 1), 255) for row in _LUMINANCE for value in row)


_QUALITIES = {luminance_table(quality): quality for quality in range(1, 101)}


@contextmanager
def opened(data: bytes | None) -> Iterator[Image.Image]:
    """Open an encoded image; damage that shows up inside the ``with`` block is reported in the same way.

    Raises:
        DataError: If the bytes are no whole image, or of a mode that is not in :data:`MODES`; it says only what is
            wrong, not where.
    """
    if data is None:
        raise DataError("there are no image bytes; store the encoded image in the file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode not in MODES:
                raise DataError(f"the image has mode {image.mode}, wanted {' or '.join(MODES)}; convert it to RGB or L")
            yield image
    except UNREADABLE as error:
        shown = "no known format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise DataError(f"the bytes are not a whole image ({shown})") from error


def rgb(image: Image.Image) -> Image.Image:
    """Return an image of one of the :data:`MODES` as RGB.

    CMYK goes by R = (255 - C)(255 - K) / 255 and so on, without a colour profile.
    """
    return image if image.mode == "RGB" else image.convert("RGB")


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an RGB image, shape ``(H, W, 3)``."""
    return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(image.height, image.width, 3)  # a tenth below asarray


def decode_image(
    data: bytes | None, *, size: tuple[int, int] | None, resize: int | None = None
) -> tuple[NDArray[np.uint8], str, bool]:
    """Return pixels ``(H, W, 3)``, their encoding and whether they are grey.

    Args:
        data: The encoded image.
        size: Height and width that the image must have, unless it is scaled; None for any.
        resize: Height and width to scale to, bilinear over all pixels, whatever the aspect; None leaves it as it is.

    Raises:
        DataError: Says only what is wrong, not where.
    """
    with opened(data) as image:
        height, width = image.height, image.width
        if resize is None and size is not None and (height, width) != size:
            raise DataError(
                f"the image is {height}x{width} (height x width), wanted {size[0]}x{size[1]}; "
                "resize it, or have all images resized with the option resize, or stream them"
            )
        colour = rgb(image)
        if resize is not None and (height, width) != (resize, resize):
            colour = colour.resize((resize, resize), Image.Resampling.BILINEAR)
        return pixels(colour), encoding(image), image.mode in ("1", "L")


def encoding(image: Image.Image) -> str:
    """Return ``""`` for a lossless format, otherwise ``jpeg75`` (where the quality is known), ``jpeg`` or ``lossy``."""
    if isinstance(image, JpegImageFile):
        table = tuple(image.quantization.get(0, ()))
        return f"jpeg{_QUALITIES[table]}" if table in _QUALITIES else "jpeg"
    if image.format == "TIFF":
        return "" if image.info.get("compression") in LOSSLESS_TIFF else "lossy"
    return "" if image.format in LOSSLESS else "lossy"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
