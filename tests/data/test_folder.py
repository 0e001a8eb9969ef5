import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mpelu.data import check, load
from mpelu.errors import DataError, UsageError


@pytest.fixture
def class_folders(tmp_path, random_pixels, encode):
    """Three training images and one test image of the classes ``ant`` and ``bee``, PNG of 12x10 pixels."""
    folder = tmp_path / "insects"
    pixels = iter(random_pixels(8, height=12, width=10))
    for split, count in (("train", 3), ("val", 1)):
        for name in ("bee", "ant"):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number}.PNG").write_bytes(encode(next(pixels)))
    (folder / "train" / "ant" / "notes.txt").write_text("not an image")
    return folder


def error_of(source, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_are_the_sorted_folders(class_folders, random_pixels):
    data = load(class_folders)
    assert data.name == "insects"
    assert data.classes == ("ant", "bee")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    pixels = torch.from_numpy(random_pixels(8, height=12, width=10).transpose(0, 3, 1, 2).copy())
    assert torch.equal(data.train.images, pixels[[3, 4, 5, 0, 1, 2]])
    assert torch.equal(data.test.images, pixels[[7, 6]])


def test_check_finds_classes_and_means(class_folders):
    report, data = check(class_folders), load(class_folders)
    assert (report.classes, report.train, report.test) == (("ant", "bee"), (3, 3), (1, 1))
    assert (report.mean, report.std, report.sha256) == (data.mean, data.std, data.sha256)
    assert report.damaged == ()


def test_the_class_is_part_of_the_content(class_folders, tmp_path):
    before = load(class_folders)
    shutil.copytree(class_folders, tmp_path / "copy")
    assert load(tmp_path / "copy").sha256 == before.sha256
    for split in ("train", "val"):
        (tmp_path / "copy" / split / "ant").rename(tmp_path / "copy" / split / "cat")
    assert load(tmp_path / "copy").sha256 != before.sha256


def test_images_of_several_sizes_need_resize(class_folders, random_pixels, encode):
    odd = class_folders / "train" / "bee" / "inside" / "odd.png"
    odd.parent.mkdir()
    odd.write_bytes(encode(random_pixels(1, height=30, width=20)[0]))
    assert "odd.png: the image is 30x20 (height x width), wanted 12x10; resize it, or have all" in error_of(
        class_folders
    )
    data = load(class_folders, resize=6)
    assert data.train.images.shape == (7, 3, 6, 6)
    expected = Image.open(odd).resize((6, 6), Image.Resampling.BILINEAR)
    assert torch.equal(data.train.images[6], torch.from_numpy(np.asarray(expected).transpose(2, 0, 1).copy()))
    assert check(class_folders, resize=6).size == (3, 6, 6)
    assert load(class_folders, resize=5).train.images.shape == (7, 3, 5, 5)  # not the one that is in the cache


def test_resize_of_parquet(parquet_folder):
    assert load(parquet_folder, resize=16).test.images.shape == (5, 3, 16, 16)
    assert load(parquet_folder).test.images.shape == (5, 3, 32, 32)


def test_resize_that_is_refused():
    with pytest.raises(UsageError, match="at least 1"):
        load("digits", resize=0)


def test_cmyk_becomes_rgb(class_folders):
    stream = io.BytesIO()
    Image.new("CMYK", (10, 12), (255, 0, 0, 0)).save(stream, "JPEG", quality=100)
    (class_folders / "val" / "bee" / "0.PNG").write_bytes(stream.getvalue())
    colour = load(class_folders).test.images[1].float().mean((1, 2))
    assert (colour - torch.tensor([0.0, 255.0, 255.0])).abs().max() <= 2  # cyan, but for the rounding of JPEG


def test_damage_is_named(class_folders):
    file = class_folders / "train" / "bee" / "1.PNG"
    file.write_bytes(b"no image")
    assert f"{file}: the bytes are not a whole image (no known format)" in error_of(class_folders)
    report = check(class_folders)
    assert report.train == (3, 2)
    assert len(report.damaged) == 1


def test_layouts_that_are_refused(class_folders):
    (class_folders / "val" / "cat").mkdir()
    assert "has classes that train has not: cat" in error_of(class_folders)
    (class_folders / "val" / "cat").rmdir()
    (class_folders / "train" / "cat").mkdir()
    assert "has no images" in error_of(class_folders)
    (class_folders / "train" / "cat").rmdir()
    (class_folders / "test").mkdir()
    assert "must have one folder of test, val, validation beside train, got test, val" in error_of(class_folders)
    (class_folders / "test").rmdir()
    (class_folders / "val").rename(class_folders / "held")
    assert "beside train, got none" in error_of(class_folders)
    (class_folders / "train").rename(class_folders / "all")
    assert "no data set in" in error_of(class_folders)
