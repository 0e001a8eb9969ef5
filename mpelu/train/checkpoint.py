"""Checkpoints: written whole or not at all, checked by sha256, read without running code.

A file is one line of text (``mpelu-checkpoint 1 <sha256> <bytes>``) and a ``torch.save`` payload of tensors and plain
types. The one before is kept beside it, and is used when the newest is damaged.
"""

import hashlib
import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from mpelu.errors import MpeluError

MAGIC = "mpelu-checkpoint 1"


class CheckpointError(MpeluError):
    """A checkpoint that is damaged or belongs to something else."""


DEVICES = (Path("/dev"), Path("/dev/fd"))
"""Folders in which nothing may be replaced: /dev/stdout can lead to an ordinary file, too."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a full disk leaves either the old content or the new, never a part.

    A link stays, and what it leads to is written. A device or a pipe, such as ``/dev/stdout``, is written to as it is.

    Raises:
        MpeluError: If it could not be written; names the path, the bytes wanted and the reason.
    """
    if path.parent in DEVICES or (path.exists() and not path.is_file() and not path.is_dir()):
        _write_through(path, content)
        return
    path = path.resolve()
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise MpeluError(
            f"cannot write {path} ({len(content):,} bytes): {error.strerror}; what was there before is unharmed, "
            f"free space or choose another folder and start the same command again"
        ) from error
    _sync_folder(path.parent)


def _write_through(path: Path, content: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(content)
    except OSError as error:
        raise MpeluError(f"cannot write {path} ({len(content):,} bytes): {error.strerror}; choose a file") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path: Path, state: dict[str, Any], *, keep_previous: bool) -> None:
    """Save tensors and plain types; with ``keep_previous``, the file that was at ``path`` is kept beside it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    header = f"{MAGIC} {hashlib.sha256(payload).hexdigest()} {len(payload)}\n".encode()
    if not keep_previous or not path.exists():
        write_atomically(path, header + payload)
        return
    fresh = path.with_name(f"{path.name}.new")
    write_atomically(fresh, header + payload)
    path.replace(previous(path))
    fresh.replace(path)
    _sync_folder(path.parent)


def previous(path: Path) -> Path:
    """Return where the checkpoint before the newest is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load(path: Path) -> dict[str, Any]:
    """Load one checkpoint.

    Raises:
        CheckpointError: If the file is no checkpoint, is damaged, or its payload is more than tensors and plain types.
    """
    content = path.read_bytes()
    line, _, payload = content.partition(b"\n")
    words = line.decode("ascii", "replace").split(" ")
    if " ".join(words[:2]) != MAGIC or len(words) != 4:
        raise CheckpointError(f"{path} is not a checkpoint of mpelu; give the run folder that 'mpelu train' printed")
    if words[3] != str(len(payload)) or words[2] != hashlib.sha256(payload).hexdigest():
        raise CheckpointError(
            f"{path} is damaged: {words[3]} bytes with sha256 {words[2][:12]}... were saved, {len(payload)} bytes with "
            f"{hashlib.sha256(payload).hexdigest()[:12]}... were found; delete it to use the one before"
        )
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values and was refused, because loading it could run code; "
            f"use the checkpoint that 'mpelu train' wrote"
        ) from error
    return state


def load_newest(path: Path) -> dict[str, Any] | None:
    """Load the checkpoint at ``path``, or with a warning the one before it, or None where there is neither.

    Raises:
        CheckpointError: If there are files but none can be used.
    """
    damage = []
    for candidate in (path, path.with_name(f"{path.name}.new"), previous(path)):
        if candidate.exists():
            try:
                state = load(candidate)
            except CheckpointError as error:
                damage.append(str(error))
                continue
            if damage:
                warnings.warn(f"{damage[0]} (going on from {candidate.name})", RuntimeWarning, stacklevel=2)
            return state
    if damage:
        raise CheckpointError("; ".join(damage))
    return None
