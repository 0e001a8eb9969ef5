import errno
from pathlib import Path

import pytest
import torch

from mpelu.data import cache, load, parquet
from mpelu.data.dataset import Dataset


def same(one: Dataset, other: Dataset) -> bool:
    tensors = [
        (getattr(getattr(one, split), part), getattr(getattr(other, split), part))
        for split in ("train", "test")
        for part in ("images", "labels")
    ]
    fields = ("name", "classes", "mean", "std", "sha256")
    return all(torch.equal(a, b) for a, b in tensors) and all(
        getattr(one, field) == getattr(other, field) for field in fields
    )


@pytest.fixture
def decodings(monkeypatch) -> list[object]:
    """Grows by one with each decoding."""
    calls: list[object] = []
    decode = parquet.decode_both
    monkeypatch.setattr(parquet, "decode_both", lambda *given, **named: calls.append(given) or decode(*given, **named))
    return calls


def test_second_time_comes_from_the_cache(parquet_folder, cache_folder, decodings):
    first = load(parquet_folder)
    assert len(decodings) == 1
    again = load(parquet_folder)
    assert len(decodings) == 1
    assert same(first, again)
    assert [path.suffix for path in cache_folder.iterdir()] == [".safetensors"]


def test_what_is_loaded_can_be_changed_without_changing_the_cache(parquet_folder):
    before = load(parquet_folder).train.images.clone()
    load(parquet_folder).train.images.zero_()
    assert torch.equal(load(parquet_folder).train.images, before)


def test_changed_data_is_read_anew(parquet_folder, decodings):
    load(parquet_folder)
    train, test = next(parquet_folder.glob("train-*")), next(parquet_folder.glob("test-*"))
    test.write_bytes(train.read_bytes())
    assert len(load(parquet_folder).test.labels) == 10
    assert len(decodings) == 2


def test_folder_by_argument(parquet_folder, cache_folder, tmp_path):
    load(parquet_folder, cache=tmp_path / "other")
    assert len(list((tmp_path / "other").iterdir())) == 1
    assert not cache_folder.exists()


def test_default_folder(monkeypatch, tmp_path):
    assert cache.default_folder() == tmp_path / "cache"
    monkeypatch.delenv("MPELU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_folder() == tmp_path / "xdg" / "mpelu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache.default_folder() == tmp_path / "home" / ".cache" / "mpelu"


@pytest.mark.parametrize("damage", ["cut", "emptied", "pixel", "header", "text"])
def test_damaged_file_is_rebuilt_with_a_warning(damage, parquet_folder, cache_folder):
    first = load(parquet_folder)
    file = next(cache_folder.iterdir())
    whole = file.read_bytes()
    changed = {
        "cut": whole[:-100],
        "emptied": b"",
        "pixel": whole[:-5000] + bytes([whole[-5000] ^ 1]) + whole[-4999:],
        "header": whole.replace(b'\\"classes\\": [\\"0\\"', b'\\"classes\\": [\\"9\\"'),
        "text": b"not a safetensors file",
    }[damage]
    assert changed != whole
    file.write_bytes(changed)
    with pytest.warns(UserWarning, match="is damaged: reading the data set anew"):
        assert same(load(parquet_folder), first)
    assert file.read_bytes() == whole
    assert same(load(parquet_folder), first)  # a warning would be an error here


def test_folder_that_cannot_be_made(parquet_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot cache the decoded data in .*MPELU_CACHE") as caught:
        data = load(parquet_folder, cache=tmp_path / "file" / "cache")
    assert len(caught) == 1
    assert len(data.train.labels) == 10


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_folder_that_is_read_only_or_full(code, parquet_folder, cache_folder, monkeypatch):
    def refuse(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"part")
        raise OSError(code, "refused")

    monkeypatch.setattr(cache, "save_file", refuse)
    with pytest.warns(UserWarning, match=r"cannot cache .*refused.*going on without"):
        data = load(parquet_folder)
    assert len(data.train.labels) == 10
    assert list(cache_folder.iterdir()) == []  # nothing half written stays


def test_damaged_data_is_not_cached(parquet_folder, cache_folder):
    file = next(parquet_folder.glob("test-*"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Exception, match="not a whole Parquet file"):
        load(parquet_folder)
    assert not cache_folder.exists()
