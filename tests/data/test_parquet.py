import io
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mpelu.data import load
from mpelu.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from mpelu.errors import DataError

REAL = os.environ.get("MPELU_TEST_CIFAR10")


def error_of(folder) -> str:
    with pytest.raises(DataError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_png_keeps_every_pixel(parquet_folder, random_pixels):
    data = load(parquet_folder)
    assert data.name == "made-up"
    assert data.classes == ("0", "1", "2")
    for split, count, seed in ((data.train, 10, 1), (data.test, 5, 2)):
        pixels = random_pixels(count, seed=seed).transpose(0, 3, 1, 2)
        assert torch.equal(split.images, torch.from_numpy(pixels.copy()))
        assert split.images.is_contiguous()
        assert split.labels.tolist() == [row % 3 for row in range(count)]
        assert split.labels.dtype == torch.int64
    pixels = random_pixels(10, seed=1) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("quality", [1, 30, 75, 76, 90, 100])
def test_jpeg_quality_is_in_the_name_of_cifar(quality, tmp_path, random_pixels, encode, write_parquet):
    for split in ("train", "test"):
        images = [encode(pixels, "JPEG", quality=quality) for pixels in random_pixels(6)]
        write_parquet(tmp_path / "x" / f"{split}-0.parquet", images, list(range(6)), names=CIFAR10_CLASSES)
    data = load(tmp_path / "x")
    assert data.name == f"cifar10-jpeg{quality}"
    decoded = [np.asarray(Image.open(io.BytesIO(image))).transpose(2, 0, 1) for image in images]
    assert torch.equal(data.test.images, torch.from_numpy(np.stack(decoded)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([("JPEG", {"quality": 75}), ("JPEG", {"quality": 90})], "cifar10-jpeg"),
        ([("JPEG", {"quality": 75}), ("PNG", {})], "cifar10-jpeg"),
        ([("JPEG", {"qtables": [[7] * 64, [9] * 64]})] * 2, "cifar10-jpeg"),
        ([("WEBP", {}), ("PNG", {})], "cifar10-lossy"),
        ([("PNG", {}), ("BMP", {})], "cifar10"),
    ],
)
def test_name_of_other_encodings(options, name, tmp_path, random_pixels, encode, write_parquet):
    for split in ("train", "test"):
        images = [
            encode(pixels, form, **extra) for pixels, (form, extra) in zip(random_pixels(2), options, strict=True)
        ]
        write_parquet(tmp_path / "x" / f"{split}-0.parquet", images, [0, 1], names=CIFAR10_CLASSES)
    assert load(tmp_path / "x").name == name


def test_layout_of_the_hub_with_fine_labels(tmp_path, random_pixels, encode, write_parquet):
    names = tuple("cra" if name == "crab" else name for name in CIFAR100_CLASSES)  # as misspelt there
    for split in ("train", "test"):
        images = [encode(pixels) for pixels in random_pixels(5)]
        path = tmp_path / "x" / "cifar100" / f"{split}-0.parquet"
        write_parquet(path, images, [0, 26, 99, 50, 1], names=names, label_column="fine_label")
    data = load(tmp_path / "x")
    assert data.name == "cifar100"
    assert data.classes == CIFAR100_CLASSES
    assert data.train.labels.tolist() == [0, 26, 99, 50, 1]


def test_plain_bytes_several_files_and_validation(tmp_path, random_pixels, encode, write_parquet):
    images = [encode(pixels) for pixels in random_pixels(9, height=5, width=7)]
    options = {"image_column": "image", "plain_bytes": True, "names": ("cat", "dog")}
    write_parquet(tmp_path / "x" / "train-1.parquet", images[3:6], [1, 1, 1], **options)
    write_parquet(tmp_path / "x" / "train-0.parquet", images[:3], [0, 0, 0], **options)
    write_parquet(tmp_path / "x" / "validation-0.parquet", images[6:], [0, 1, 0], **options)
    data = load(tmp_path / "x")
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape == (6, 3, 5, 7)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 1, 0]


def test_grey_images_stay_grey_only_if_all_are(tmp_path, random_pixels, encode, write_parquet):
    colour = random_pixels(4)
    grey = colour[..., 0]
    for folder, test in (("grey", grey), ("mixed", colour)):
        for split, pixels in (("train", grey), ("test", test)):
            images = [encode(image) for image in pixels]
            write_parquet(tmp_path / folder / f"{split}-0.parquet", images, [0, 1, 0, 1])
    only_grey, mixed = load(tmp_path / "grey"), load(tmp_path / "mixed")
    assert torch.equal(only_grey.train.images[:, 0], torch.from_numpy(grey))
    assert len(only_grey.mean) == 1
    assert torch.equal(mixed.train.images, only_grey.train.images.expand(-1, 3, -1, -1))
    assert mixed.test.images.shape == (4, 3, 32, 32)


def test_the_content_not_the_place_makes_the_digest(parquet_folder, tmp_path):
    shutil.copytree(parquet_folder, tmp_path / "elsewhere")
    here, there = load(parquet_folder), load(tmp_path / "elsewhere")
    assert here.sha256 == there.sha256
    assert there.name == "elsewhere"  # also when the images come from the cache
    test = next((tmp_path / "elsewhere").glob("test-*"))
    shutil.copy(next(parquet_folder.glob("train-*")), test)
    assert load(tmp_path / "elsewhere").sha256 != here.sha256


def test_no_test_files(parquet_folder):
    next(parquet_folder.glob("test-*")).unlink()
    assert "neither test-*.parquet nor validation-*.parquet" in error_of(parquet_folder)


def test_two_folders_inside(parquet_folder, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(parquet_folder, tmp_path / "both" / name)
    assert "several data sets" in error_of(tmp_path / "both")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_truncated_file(split, keep, parquet_folder):
    file = next(parquet_folder.glob(f"{split}-*"))
    file.write_bytes(file.read_bytes()[:keep])
    message = error_of(parquet_folder)
    assert f"{file} is not a whole Parquet file" in message
    assert "copy or download it again" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_file(split, parquet_folder, write_parquet):
    file = write_parquet(next(parquet_folder.glob(f"{split}-*")), [], [])
    assert f"{file} has no rows; remove it" in error_of(parquet_folder)


def test_damaged_pages(parquet_folder):
    file = next(parquet_folder.glob("train-*"))
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    assert f"{file} row" in error_of(parquet_folder)


def damage_row(path, row: int, *, image: bytes | None = None, label: int | None = None) -> None:
    rows = pq.read_table(path).to_pylist()
    if label is None:
        rows[row]["img"]["bytes"] = image
    else:
        rows[row]["label"] = label
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path, row_group_size=4)


def as_tiff(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "TIFF")
    return stream.getvalue()


NAN = np.full((32, 32), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"no image", "the bytes are not a whole image (no known format)"),
        (b"", "the bytes are not a whole image (no known format)"),
        (None, "there are no image bytes"),
        (as_tiff(NAN), "the image has mode F, wanted 1 or L or P or RGB or CMYK; convert it"),
        (as_tiff(np.zeros((32, 32), dtype=np.int32)), "the image has mode I, wanted"),
        (as_tiff(np.zeros((32, 32), dtype=np.uint16)), "the image has mode I;16, wanted"),
        (as_tiff(np.zeros((32, 32, 4), dtype=np.uint8)), "the image has mode RGBA, wanted"),
        (as_tiff(np.zeros((32, 31, 3), dtype=np.uint8)), "the image is 32x31 (height x width), wanted 32x32"),
    ],
    ids=["text", "nothing", "null", "float-nan", "int32", "uint16", "transparent", "size"],
)
@pytest.mark.parametrize(("split", "row"), [("train", 6), ("test", 4)])
def test_bad_image(image, reason, split, row, parquet_folder):
    file = next(parquet_folder.glob(f"{split}-*"))
    damage_row(file, row, image=image)
    assert f"{file} row {row}: {reason}" in error_of(parquet_folder)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_truncated_image(form, parquet_folder, random_pixels, encode):
    file = next(parquet_folder.glob("train-*"))
    whole = encode(random_pixels(1)[0], form)
    damage_row(file, 3, image=whole[: len(whole) // 2])
    assert f"{file} row 3: the bytes are not a whole image (" in error_of(parquet_folder)


def test_cifar_must_be_32_by_32(tmp_path, random_pixels, encode, write_parquet):
    for split in ("train", "test"):
        images = [encode(pixels) for pixels in random_pixels(2, height=28, width=28)]
        write_parquet(tmp_path / "x" / f"{split}-0.parquet", images, [0, 1], names=CIFAR10_CLASSES)
    assert "row 0: the image is 28x28 (height x width), wanted 32x32" in error_of(tmp_path / "x")


@pytest.mark.parametrize("label", [-1, 3, 10**12])
@pytest.mark.parametrize("names", [("a", "b", "c"), None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_label_out_of_range(label, names, split, tmp_path, parquet_folder, write_parquet):
    if names is not None:
        for file in parquet_folder.glob("*.parquet"):
            rows = pq.read_table(file).to_pylist()
            write_parquet(file, [row["img"]["bytes"] for row in rows], [row["label"] for row in rows], names=names)
    file = next(parquet_folder.glob(f"{split}-*"))
    damage_row(file, 1, label=label)
    if names is None and split == "train" and label == 3:
        assert len(load(parquet_folder).classes) == 4  # nothing says that there are only three
    elif names is None and split == "train" and label > 3:
        assert "its labels must be 0 to K-1 with none left out" in error_of(parquet_folder)
    else:
        assert f"{file} row 1: label {label} is not one of 0 to 2" in error_of(parquet_folder)


def test_missing_label(parquet_folder, write_parquet):
    file = next(parquet_folder.glob("test-*"))
    rows = pq.read_table(file).to_pylist()
    write_parquet(file, [row["img"]["bytes"] for row in rows], [0, None, 1, 0, 0])
    assert f"{file} row 1: label None" in error_of(parquet_folder)


def test_many_bad_rows_are_counted(parquet_folder):
    file = next(parquet_folder.glob("train-*"))
    for row in (1, 2, 4, 5, 8):
        damage_row(file, row, image=b"no image")
    message = error_of(parquet_folder)
    assert f"{file} row 1:" in message
    assert "and 2 more" in message
    assert "mpelu data check" in message


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"picture": [b""], "label": [0]}, "must have a column img or image, got picture, label"),
        ({"img": [b""], "class": [0]}, "must have a column label or fine_label, got img, class"),
        ({"img": ["text"], "label": [0]}, "must hold column 'img' as bytes or struct{bytes, path}, got string"),
        ({"img": [b""], "label": ["cat"]}, "must hold column 'label' as whole numbers, got string"),
    ],
)
def test_other_columns(columns, reason, parquet_folder):
    file = next(parquet_folder.glob("train-*"))
    pq.write_table(pa.table(columns), file)
    assert f"{file} {reason}" in error_of(parquet_folder)


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"info": {"features": {}}}', '{"info": {"features": {"label": {"names": [1]}}}}']
)
def test_damaged_features(metadata, parquet_folder):
    for file in parquet_folder.glob("*.parquet"):
        pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": metadata}), file)
    assert "write it anew" in error_of(parquet_folder)


def test_files_of_different_data_sets(parquet_folder, write_parquet):
    file = next(parquet_folder.glob("test-*"))
    rows = pq.read_table(file).to_pylist()
    write_parquet(file, [row["img"]["bytes"] for row in rows], [0] * 5, names=("a", "b", "c"))
    assert "name different classes" in error_of(parquet_folder)


@pytest.mark.skipif(REAL is None, reason="set MPELU_TEST_CIFAR10 to a folder with the Parquet files of CIFAR-10")
def test_real_cifar10():
    data = load(REAL)
    assert data.name.startswith("cifar10")
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    # the means that are in general use for CIFAR-10; a lossy copy moves them by less than this
    assert np.abs(np.array(data.mean) - (0.4914, 0.4822, 0.4465)).max() < 0.001
