import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpelu.data import check, load
from mpelu.data.check import CheckReport
from mpelu.errors import DataError, UsageError


def rewrite(file, change) -> None:
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)


def test_whole_data(parquet_folder, cache_folder):
    report = check(parquet_folder)
    assert not cache_folder.exists()
    data = load(parquet_folder)
    assert (report.name, report.sha256, report.classes) == (data.name, data.sha256, data.classes)
    assert (report.mean, report.std) == (data.mean, data.std)
    assert report.size == (3, 32, 32)
    assert report.train == (4, 3, 3)
    assert report.test == (2, 2, 1)
    assert report.duplicates == 0
    assert report.damaged == ()
    assert ("class 1", "3 train, 2 test") in report.rows()
    assert ("damaged", "0") in report.rows()


def test_digits():
    report = check("digits")
    assert sum(report.train) == 1500
    assert sum(report.test) == 297
    digits = load("digits")
    train, test = (
        [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in split.images]
        for split in (digits.train, digits.test)
    )
    assert report.duplicates == sum(image in train for image in test)


def test_duplicates_are_counted_by_pixels(parquet_folder):
    train = pq.read_table(next(parquet_folder.glob("train-*"))).to_pylist()

    def copy_two(rows):
        rows[1]["img"]["bytes"] = train[9]["img"]["bytes"]
        rows[4]["img"]["bytes"] = train[0]["img"]["bytes"]

    rewrite(next(parquet_folder.glob("test-*")), copy_two)
    assert check(parquet_folder).duplicates == 2


def test_damage_is_listed_and_the_rest_is_counted(parquet_folder):
    file = next(parquet_folder.glob("train-*"))

    def spoil(rows):
        rows[0]["img"]["bytes"] = b"no image"
        rows[5]["label"] = -4

    rewrite(file, spoil)
    report = check(parquet_folder)
    assert len(report.damaged) == 2
    assert report.damaged[0].startswith(f"{file} row 0: the bytes are not a whole image")
    assert report.damaged[1] == f"{file} row 5: label -4 is not one of 0 to 2"
    assert report.train == (3, 3, 2)
    assert ("damaged", "2") in report.rows()


def test_at_most_twenty_are_named(parquet_folder, encode, random_pixels, write_parquet):
    file = next(parquet_folder.glob("train-*"))
    write_parquet(file, [b"no image"] * 30 + [encode(image) for image in random_pixels(3)], [0] * 30 + [0, 1, 2])
    report = check(parquet_folder)
    assert len(report.damaged) == 30
    named = [text for heading, text in report.rows() if heading == "damaged item"]
    assert len(named) == 21
    assert named[-1] == "and 10 more"


def test_many_classes_are_counted_and_not_named():
    kinds = tuple(str(number) for number in range(101))
    report = CheckReport("many", "", kinds, (3, 8, 8), (2,) * 100 + (5,), (1,) * 101, (0.5,) * 3, (0.1,) * 3, 0, ())
    assert ("classes", "101, of each 2 to 5 train and 1 to 1 test") in report.rows()
    assert not [heading for heading, _ in report.rows() if heading.startswith("class ")]


def test_a_damaged_file_beside_a_whole_one(parquet_folder):
    file = parquet_folder / "train-00001-of-00001.parquet"
    file.write_bytes(b"PAR1")
    report = check(parquet_folder)
    assert len(report.damaged) == 1
    assert str(file) in report.damaged[0]
    assert sum(report.train) == 10


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_split_without_a_good_image(split, parquet_folder):
    def spoil(rows):
        for row in rows:
            row["img"]["bytes"] = b"no image"

    rewrite(next(parquet_folder.glob(f"{split}-*")), spoil)
    report = check(parquet_folder)
    assert report.size == (3, 32, 32)
    assert sum(getattr(report, split)) == 0
    assert bool(report.mean) == (split == "test")
    assert report.rows()


def test_nothing_can_be_read(parquet_folder):
    def spoil(rows):
        for row in rows:
            row["img"]["bytes"] = b"no image"

    for file in parquet_folder.glob("*.parquet"):
        rewrite(file, spoil)
    with pytest.raises(DataError, match=r"no image of .* can be read \(15 damaged: .* row 0: .*; get the data again"):
        check(parquet_folder)


def test_unknown_name():
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        check("digit")
