import importlib
import os

import pytest
import torch

from mpelu.data import CATALOG, describe, load
from mpelu.errors import DataError, UsageError


def test_unknown_name_suggests_one():
    with pytest.raises(UsageError, match=r"unknown data set 'cifar01': use digits, .*; did you mean 'cifar10'\?"):
        load("cifar01")


def test_unknown_name_lists_what_is_accepted():
    with pytest.raises(UsageError) as caught:
        load("xyz")
    assert "\n" not in str(caught.value)
    for name in (*CATALOG, "train-*.parquet", "cifar-100-python"):
        assert name in str(caught.value)


def test_missing_folder(tmp_path):
    for source in (tmp_path / "nothing", str(tmp_path / "nothing"), f".{os.sep}cifar10"):
        with pytest.raises(DataError, match=r"^no folder .*; give the path of"):
            load(source)


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no data set in .*empty: wanted .* got an empty folder; give another path"):
        load(tmp_path / "empty")


def test_folder_with_other_files(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.csv").touch()
    with pytest.raises(DataError, match=r"got 0\.csv, 1\.csv, 2\.csv, 3\.csv, 4\.csv and 2 more; give"):
        load(tmp_path)


def test_file_instead_of_folder(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").touch()
    with pytest.raises(DataError, match=r"tar\.gz is a file, wanted a folder: .*unpack"):
        load(tmp_path / "cifar-10-binary.tar.gz")


def test_a_folder_here_needs_no_separator(parquet_folder, monkeypatch):
    monkeypatch.chdir(parquet_folder.parent)
    assert load("made-up").name == "made-up"


def test_name_of_the_current_folder(parquet_folder, monkeypatch):
    monkeypatch.chdir(parquet_folder)
    assert load(".").name == "made-up"


def test_channel_of_one_value_is_refused(tmp_path, encode, random_pixels, write_parquet):
    pixels = random_pixels(3)
    pixels[..., 1] = 7
    for split in ("train", "test"):
        write_parquet(tmp_path / "x" / f"{split}-0.parquet", [encode(image) for image in pixels], [0, 1, 0])
    with pytest.raises(DataError, match="channel with one value"):
        load(tmp_path / "x")


def test_limited_keeps_the_first_images_and_the_statistics():
    digits = load("digits")
    few = digits.limited(7)
    assert torch.equal(few.train.images, digits.train.images[:7])
    assert torch.equal(few.train.labels, digits.train.labels[:7])
    assert few.test is digits.test
    assert (few.mean, few.std, few.sha256) == (digits.mean, digits.std, digits.sha256)
    assert digits.limited(None) is digits
    assert len(digits.limited(1500).train.labels) == 1500


@pytest.mark.parametrize("count", [0, -1, 1501])
def test_limited_refuses_other_counts(count):
    with pytest.raises(UsageError, match=f"from 1 to 1500 for digits, got {count}"):
        load("digits").limited(count)


OWN_DATA_SET = '''
"""Stripes: one file, as anyone would write it."""

from pathlib import Path

import torch

from mpelu.data import Decoded, Entry, Source, Split


def find() -> Source:
    return Source(name="stripes", files={"code": (Path(__file__),)}, decode=decode)


def decode() -> Decoded:
    labels = torch.arange(40) % 2
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    images = torch.stack([(rows if label else columns) % 2 * 255 for label in labels.tolist()])
    split = Split(images[:, None].to(torch.uint8), labels)
    return Decoded(classes=("lying", "standing"), train=split, test=split)


ROW = Entry(classes=2, train=40, test=40, size=(1, 8, 8), origin="made up", find=find)
'''


def test_adding_a_data_set_is_one_file_and_one_row(tmp_path, monkeypatch):
    (tmp_path / "stripes_data.py").write_text(OWN_DATA_SET)
    monkeypatch.syspath_prepend(tmp_path)
    without_a_row = load("stripes_data:find")
    monkeypatch.setitem(CATALOG, "stripes", importlib.import_module("stripes_data").ROW)
    data = load("stripes")
    assert torch.equal(data.train.images, without_a_row.train.images)
    assert (data.name, data.classes) == ("stripes", ("lying", "standing"))
    assert data.train.images.unique().tolist() == [0, 255]
    assert "stripes" in [row["name"] for row in describe()]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no_such_module:find", "there is no module 'no_such_module'"),
        ("mpelu.data.digits:lose", "mpelu.data.digits has no function 'lose'; it has .*find"),
        ("mpelu.data.cache:default_folder", r"must return a mpelu\.data\.Source, got .*Path"),
    ],
)
def test_functions_that_are_refused(source, reason):
    with pytest.raises(UsageError, match=reason):
        load(source)


def test_described_facts_are_those_of_the_data():
    rows = {row["name"]: row for row in describe()}
    assert list(rows) == list(CATALOG)
    digits = load("digits")
    assert rows["digits"]["train"] == str(len(digits.train.labels))
    assert rows["digits"]["test"] == str(len(digits.test.labels))
    assert rows["digits"]["classes"] == str(len(digits.classes))
    assert rows["digits"]["size"] == "x".join(str(length) for length in digits.train.images.shape[1:])
