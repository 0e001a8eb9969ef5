import io

import numpy as np
import pytest
from PIL import Image

from mpelu.data.view import View, cut, whole
from mpelu.errors import DataError, UsageError


def photograph(height: int, width: int, *, mode: str = "RGB", form: str = "PNG") -> bytes:
    """Smooth colours with some texture: no part looks like another."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width))
    pixels = np.stack([y * 200 // height, x * 200 // width, (x + y) % 200], axis=2) + noise[..., None]
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(stream, form)
    return stream.getvalue()


SIZES = [(300, 500), (500, 300), (256, 341), (341, 256), (256, 256), (40, 90), (900, 260)]


@pytest.mark.parametrize("resize", ["squash", "short"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_crop_is_a_window_of_the_resized_image(height, width, resize):
    view, data = View(resize=resize, size=64, crop=48), photograph(height, width)
    full = whole(data, view).astype(int)
    assert full.shape[:2] == view.resized(height, width)
    for at, mirrored in ((None, False), ((0.0, 0.0), False), ((0.999, 0.999), True), ((0.3, 0.7), True)):
        pixels, (top, left) = cut(data, view, at=at, mirrored=mirrored)
        window = full[top : top + 48, left : left + 48]
        window = window[:, ::-1] if mirrored else window
        # Pillow takes the box in float32: a value may round to the other side
        assert np.abs(pixels.astype(int) - window).max() <= 1
        assert (pixels == window).mean() > 0.99


def test_sizes_after_resizing():
    assert View().resized(500, 333) == (256, 256)
    assert View(resize="short").resized(500, 333) == (384, 256)
    assert View(resize="short", size=100, crop=100).resized(301, 299) == (101, 100)


def test_corners_reach_every_offset_and_the_centre():
    view = View(size=10, crop=8)
    assert {view.corner(10, 10, (at, 0.0)) for at in (0.0, 0.32, 0.34, 0.65, 0.67, 0.9999)} == {(0, 0), (1, 0), (2, 0)}
    assert view.corner(10, 13, None) == (1, 2)


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "JPEG"), ("CMYK", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("RGB", "JPEG")]
)
def test_every_mode_becomes_rgb(mode, form):
    view = View(size=32, crop=32)
    data = photograph(60, 50, mode=mode, form=form)
    pixels, _ = cut(data, view)
    assert pixels.shape == (32, 32, 3)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels, expected)
    if mode in ("L", "1"):
        assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize(
    "data",
    [None, b"", b"no image", photograph(50, 50, form="JPEG")[:900]],
    ids=["none", "empty", "text", "cut off"],
)
def test_damage_is_a_data_error(data):
    with pytest.raises(DataError):
        cut(data, View())


@pytest.mark.parametrize("options", [{"resize": "long"}, {"size": 200}, {"crop": 0}])
def test_views_that_are_refused(options):
    with pytest.raises(UsageError):
        View(**options)
