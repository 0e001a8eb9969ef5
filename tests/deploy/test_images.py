import io

import numpy as np
import pytest
import torch
from PIL import Image

from mpelu.deploy import images
from mpelu.errors import DataError, UsageError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (20, 10), (200, 30, 40))
NOISE = Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 20, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("image", "kind", "wanted"),
    [
        (RED, "PNG", (200, 30, 40)),
        (Image.new("L", (20, 10), 77), "PNG", 77),
        (Image.new("1", (20, 10), 1), "PNG", 255),
        (RED.quantize(4), "PNG", (200, 30, 40)),
        (Image.new("CMYK", (20, 10), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("RGBA", (20, 10), (200, 30, 40, 255)), "PNG", (200, 30, 40)),
        (Image.new("RGBA", (20, 10), (200, 30, 40, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (20, 10), (0, 0, 0, 51)), "PNG", (204, 204, 204)),
        (Image.new("LA", (20, 10), (0, 0)), "PNG", 255),
        (Image.fromarray(np.full((10, 20), 0x4D80, dtype=np.uint16)), "PNG", 0x4D),
    ],
    ids=["rgb", "grey", "bits", "palette", "cmyk", "opaque", "transparent", "veiled", "grey-alpha", "16-bit"],
)
def test_modes(image, kind, wanted):
    found = images.decode(encoded(image, kind))
    assert found.mode == ("L" if isinstance(wanted, int) else "RGB")
    assert found.size == (20, 10)
    assert found.getpixel((3, 3)) == wanted


def test_transparent_palettes_show_white():
    palette = RED.quantize(4)
    index = palette.getpixel((0, 0))
    assert images.decode(encoded(palette, transparency=index)).getpixel((3, 3)) == (255, 255, 255)


def test_photographs_are_turned_upright():
    half = Image.new("RGB", (20, 10), (0, 0, 0))
    half.paste((255, 255, 255), (0, 0, 10, 10))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    found = images.decode(encoded(half, exif=exif))
    assert found.size == (10, 20)
    assert found.getpixel((5, 2)) == (255, 255, 255)
    assert found.getpixel((5, 17)) == (0, 0, 0)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", encoded(NOISE)[:600], encoded(NOISE, "JPEG")[:200], encoded(Image.new("F", (2, 2)), "TIFF")],
    ids=["empty", "text", "half a PNG", "half a JPEG", "floating"],
)
def test_what_is_no_image(content):
    with pytest.raises(DataError, match=r"not a whole image|no one scale"):
        images.decode(content)


def test_inputs_are_those_of_the_networks_own_test(network, digits, pictures):
    from mpelu.data import evaluation_inputs

    squares = [
        images.pixels(images.decode(images.read(str(pictures / f"{number}.png"))), network.description)
        for number in range(10)
    ]
    wanted = evaluation_inputs(digits, digits.test.images[:10], "crop14")
    assert torch.equal(images.inputs(squares, network.description), wanted)


def test_any_size_and_colour_fits(network):
    for image in (RED, Image.new("L", (1, 1)), Image.new("RGB", (300, 2)), Image.new("L", (16, 16))):
        square = images.pixels(images.decode(encoded(image)), network.description)
        assert square.shape == (16, 16, 1)
        assert images.inputs([square], network.description).shape == (1, 1, 14, 14)


def test_names_stand_for_images(pictures, tmp_path, monkeypatch):
    inner = tmp_path / "a[1]"
    inner.mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (inner / name).touch()
    assert list(images.sources([str(tmp_path)])) == [str(inner / "a.jpg"), str(inner / "b.PNG")]
    assert list(images.sources([str(pictures / "[0-2].png")])) == [str(pictures / f"{k}.png") for k in range(3)]
    assert list(images.sources([str(tmp_path / "**" / "*.txt")])) == [str(inner / "notes.txt")]
    assert list(images.sources([str(inner / "a.jpg"), "-", "missing.png"])) == [
        str(inner / "a.jpg"),
        "-",
        "missing.png",
    ]
    listing = tmp_path / "list"
    listing.write_text("x y.png\n\n[z].png\n")
    assert list(images.sources([], listed=str(listing))) == ["x y.png", "[z].png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("one.png\r\ntwo.png"))
    assert list(images.sources([], listed="-")) == ["one.png", "two.png"]


def test_names_that_stand_for_nothing(tmp_path):
    with pytest.raises(UsageError, match="holds no image"):
        list(images.sources([str(tmp_path)]))
    with pytest.raises(UsageError, match="no file matches"):
        list(images.sources([str(tmp_path / "*.png")]))
    with pytest.raises(UsageError, match="give images"):
        list(images.sources([]))
    with pytest.raises(UsageError, match="not both"):
        list(images.sources(["-"], listed="-"))
