"""Made-up files in the official layouts, with few rows: only the numbers of rows differ from the real ones."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mpelu.data import cifar, load
from mpelu.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from mpelu.errors import DataError

TRAIN_ROWS, TEST_ROWS = 6, 4
OFFICIAL = cifar.LAYOUTS
NAMES = [layout.folder for layout in OFFICIAL]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    small = tuple(replace(layout, train_rows=TRAIN_ROWS, test_rows=TEST_ROWS) for layout in OFFICIAL)
    monkeypatch.setattr(cifar, "LAYOUTS", small)


def layout_of(folder: str) -> cifar.Layout:
    return next(layout for layout in cifar.LAYOUTS if layout.folder == folder)


def contents(layout: cifar.Layout) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random pixels (rows, 3072) and labels for each file of images."""
    random = np.random.default_rng(0)
    rows = dict.fromkeys(layout.train, TRAIN_ROWS) | {layout.test: TEST_ROWS}
    return {
        name: (
            random.integers(0, 256, (count, 3072), dtype=np.uint8),
            random.integers(0, layout.classes, count),
        )
        for name, count in rows.items()
    }


def write(parent: Path, folder: str) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    layout, place = layout_of(folder), parent / folder
    place.mkdir(parents=True)
    files = contents(layout)
    fine = layout.classes == 100
    names = CIFAR100_CLASSES if fine else CIFAR10_CLASSES
    binary = layout.names.endswith(".txt")
    for name, (pixels, labels) in files.items():
        if binary:
            coarse = [labels[:, None] // 5] if fine else []
            np.concatenate([*coarse, labels[:, None], pixels], axis=1).astype(np.uint8).tofile(place / name)
        else:
            content = {b"data": pixels, (b"fine_labels" if fine else b"labels"): labels.tolist()}
            content |= {b"batch_label": b"made up", b"filenames": [b"a.png"] * len(labels)}
            (place / name).write_bytes(pickle.dumps(content, protocol=2))
    if binary:
        (place / layout.names).write_text("\n".join(names) + "\n\n")
    else:
        key = b"fine_label_names" if fine else b"label_names"
        (place / layout.names).write_bytes(pickle.dumps({key: [name.encode() for name in names]}, protocol=2))
    return place, files


@pytest.mark.parametrize("given", ["folder", "parent"])
@pytest.mark.parametrize("folder", NAMES)
def test_round_trip(folder, given, tmp_path):
    place, files = write(tmp_path / "data", folder)
    layout = layout_of(folder)
    data = load(place if given == "folder" else str(place.parent))
    assert data.name == ("cifar10" if layout.classes == 10 else "cifar100")
    assert data.classes == (CIFAR10_CLASSES if layout.classes == 10 else CIFAR100_CLASSES)
    for split, names in ((data.train, layout.train), (data.test, (layout.test,))):
        pixels = np.concatenate([files[name][0] for name in names]).reshape(-1, 3, 32, 32)
        assert torch.equal(split.images, torch.from_numpy(pixels))
        assert split.labels.tolist() == np.concatenate([files[name][1] for name in names]).tolist()


@pytest.mark.parametrize("folder", NAMES)
def test_a_renamed_folder_is_known_by_its_files(folder, tmp_path):
    place, _ = write(tmp_path, folder)
    assert load(place.rename(tmp_path / "renamed")).name.startswith("cifar10")


@pytest.mark.parametrize(
    ("folder", "bytes_of_train_and_test"),
    [("cifar-10-batches-bin", (30_730_000, 30_730_000)), ("cifar-100-binary", (153_700_000, 30_740_000))],
)
def test_official_sizes(folder, bytes_of_train_and_test, tmp_path):
    layout = next(layout for layout in OFFICIAL if layout.folder == folder)
    (tmp_path / "short").write_bytes(b"short")
    for rows, wanted in zip((layout.train_rows, layout.test_rows), bytes_of_train_and_test, strict=True):
        with pytest.raises(DataError, match=f"must have {wanted} bytes .* got 5;"):
            layout.read(tmp_path / "short", rows)


def test_class_names():
    assert len(set(CIFAR10_CLASSES)) == 10
    assert len(set(CIFAR100_CLASSES)) == 100
    assert sorted(CIFAR100_CLASSES) == list(CIFAR100_CLASSES)


@pytest.mark.parametrize("folder", NAMES)
@pytest.mark.parametrize("cut", [0, 1, 5000])
def test_truncated_file(folder, cut, tmp_path):
    place, _ = write(tmp_path, folder)
    file = place / layout_of(folder).train[-1]
    file.write_bytes(file.read_bytes()[: cut - 1 if cut <= 1 else cut])
    with pytest.raises(DataError) as caught:
        load(place)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    assert "bytes" in message
    assert "again" in message


def test_one_byte_too_many(tmp_path):
    place, _ = write(tmp_path, "cifar-10-batches-bin")
    file = place / "data_batch_3.bin"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"data_batch_3\.bin must have 18438 bytes \(6 images\), got 18439"):
        load(place)


@pytest.mark.parametrize("folder", NAMES)
def test_missing_file(folder, tmp_path):
    place, _ = write(tmp_path, folder)
    (place / layout_of(folder).test).unlink()
    with pytest.raises(DataError, match=f"lacks {layout_of(folder).test} of the official {folder}; unpack"):
        load(place)


def test_two_data_sets_in_one_folder(tmp_path):
    for folder in ("cifar-10-batches-bin", "cifar-100-python"):
        write(tmp_path / "data", folder)
    with pytest.raises(DataError, match=r"several data sets \(cifar-10-batches-bin, cifar-100-python\)"):
        load(tmp_path / "data")


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "cifar-100-binary"])
def test_label_out_of_range_in_a_binary_file(folder, tmp_path):
    place, _ = write(tmp_path, folder)
    layout = layout_of(folder)
    file = place / layout.test
    records = np.fromfile(file, dtype=np.uint8).reshape(TEST_ROWS, -1)
    records[2, records.shape[1] - 3073] = 200
    records.tofile(file)
    with pytest.raises(DataError, match=f"{layout.test} row 2: label 200 is not one of 0 to {layout.classes - 1}"):
        load(place)


@pytest.mark.parametrize("label", [-1, 10, 10**30])
def test_label_out_of_range_in_a_pickle(label, tmp_path):
    place, files = write(tmp_path, "cifar-10-batches-py")
    pixels, labels = files["test_batch"]
    content = {b"data": pixels, b"labels": [label, *labels.tolist()[1:]]}
    (place / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=r"test_batch row 0: label .* is not one of 0 to 9"):
        load(place)


class RunsCode:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_refused_and_not_run(protocol, tmp_path):
    place, files = write(tmp_path, "cifar-10-batches-py")
    pixels, labels = files["data_batch_2"]
    witness = tmp_path / "witness"
    content = {b"data": pixels, b"labels": labels.tolist(), b"extra": RunsCode(os.mkdir, str(witness))}
    (place / "data_batch_2").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DataError, match=r"data_batch_2: the pickle wants to run code .*mkdir.* was refused") as caught:
        load(place)
    assert "\n" not in str(caught.value)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_builtins_are_refused(name, tmp_path):
    place, _ = write(tmp_path, "cifar-100-python")
    (place / "meta").write_bytes(f"cbuiltins\n{name}\n.".encode())
    with pytest.raises(DataError, match=f"wants to run code .builtins.{name}. and was refused"):
        load(place)


def test_a_codec_of_another_name_is_refused(tmp_path):
    place, _ = write(tmp_path, "cifar-100-python")
    (place / "meta").write_bytes(b"c_codecs\nencode\n(Vtext\nVrot13\ntR.")
    with pytest.raises(DataError, match="asks for the codec 'rot13' and was refused"):
        load(place)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {b"data": "text", b"labels": [0] * TRAIN_ROWS},
        {b"data": np.zeros((TRAIN_ROWS, 3072), dtype=np.float32), b"labels": [0] * TRAIN_ROWS},
        {b"data": np.zeros((TRAIN_ROWS + 1, 3072), dtype=np.uint8), b"labels": [0] * TRAIN_ROWS},
        {b"data": np.zeros((TRAIN_ROWS, 3072), dtype=np.uint8), b"labels": [0]},
        {b"data": np.zeros((TRAIN_ROWS, 3072), dtype=np.uint8), b"labels": [0.5] * TRAIN_ROWS},
        {b"data": np.zeros((TRAIN_ROWS, 3072), dtype=np.uint8)},
    ],
)
def test_a_pickle_with_other_content(content, tmp_path):
    place, _ = write(tmp_path, "cifar-10-batches-py")
    padding = b"x" * (TRAIN_ROWS * 3072)  # after the end of the pickle: large enough to pass for a whole file
    (place / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2) + padding)
    with pytest.raises(DataError, match=r"data_batch_1 must hold .*, got .*again"):
        load(place)


@pytest.mark.parametrize("folder", NAMES)
def test_wrong_number_of_class_names(folder, tmp_path):
    place, _ = write(tmp_path, folder)
    layout = layout_of(folder)
    if layout.names.endswith(".txt"):
        (place / layout.names).write_text("cat\ndog\n")
    else:
        key = b"fine_label_names" if layout.classes == 100 else b"label_names"
        (place / layout.names).write_bytes(pickle.dumps({key: [b"cat", b"dog"]}, protocol=2))
    with pytest.raises(DataError, match=f"must hold {layout.classes} class names, got 2"):
        load(place)
