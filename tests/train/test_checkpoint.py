import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch

from mpelu.errors import MpeluError
from mpelu.train import checkpoint


def test_round_trip(tmp_path):
    state = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "history": [{"epoch": 1, "loss": 0.5}], "step": 7}
    checkpoint.save(tmp_path / "last.ckpt", state, keep_previous=True)
    loaded = checkpoint.load(tmp_path / "last.ckpt")
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert (loaded["history"], loaded["step"]) == (state["history"], 7)


def test_the_one_before_is_kept(tmp_path):
    path = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        checkpoint.save(path, {"step": step}, keep_previous=True)
    assert checkpoint.load(path)["step"] == 3
    assert checkpoint.load(checkpoint.previous(path))["step"] == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "last.previous.ckpt"]


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, {"weight": torch.ones(3)}, keep_previous=True)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(path)


class RunsCode:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_pickle_that_runs_code_is_refused(tmp_path):
    """Even with a header that fits: the payload may hold tensors and plain values only."""
    target = tmp_path / "made by the pickle"
    payload = pickle.dumps(RunsCode(target), protocol=2)
    path = tmp_path / "last.ckpt"
    path.write_bytes(f"{checkpoint.MAGIC} {hashlib.sha256(payload).hexdigest()} {len(payload)}\n".encode() + payload)
    with pytest.raises(checkpoint.CheckpointError, match=r"last\.ckpt.*refused, because loading it could run code"):
        checkpoint.load(path)
    torch.save({"object": RunsCode(target)}, path)
    with pytest.raises(checkpoint.CheckpointError, match="is not a checkpoint of mpelu"):
        checkpoint.load(path)
    assert not target.exists()


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "link").symlink_to("target")
    checkpoint.write_atomically(tmp_path / "link", b"through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"through"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        checkpoint.write_atomically(tmp_path / "pipe", b"through")
        assert os.read(reader, 99) == b"through"
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    checkpoint.write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MpeluError, match=r"cannot write .*result\.json \(3 bytes\): No space left"):
        checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
