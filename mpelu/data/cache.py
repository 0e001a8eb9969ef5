"""Keep decoded data sets as one safetensors file each; a failing cache costs time, never the run."""

import hashlib
import json
import os
import uuid
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpelu.data.dataset import Decoded, Split

# Part of the file name: raise it when the layout of the file or the decoding of images changes.
FORMAT = 1

TENSORS = ("train.images", "train.labels", "test.images", "test.labels")


def default_folder() -> Path:
    """Return ``$MPELU_CACHE``, else ``$XDG_CACHE_HOME/mpelu``, else ``~/.cache/mpelu``."""
    if own := os.environ.get("MPELU_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "mpelu"
    return Path.home() / ".cache" / "mpelu"


def entry(folder: Path, sha256: str, *variants: str) -> Path:
    """Return the file that holds the decoded data of this content, after what the variants name was done to it."""
    return folder / f"{'-'.join((sha256, *variants))}-v{FORMAT}.safetensors"


def read(path: Path) -> Decoded | None:
    """Return what :func:`write` stored, or None if it is not there or (with a warning) does not match its digest."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("mpelu", "{}")
            tensors = {key: file.get_tensor(key) for key in TENSORS}
        stored = json.loads(header)
        description = stored["description"]
        intact = stored["digest"] == _digest(description, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        warnings.warn(f"the cache file {path} is damaged: reading the data set anew", stacklevel=2)
        return None
    return Decoded(
        classes=tuple(description["classes"]),
        train=Split(tensors["train.images"], tensors["train.labels"]),
        test=Split(tensors["test.images"], tensors["test.labels"]),
        encoding=description["encoding"],
    )


def write(path: Path, decoded: Decoded) -> None:
    """Store it so that readers see the whole file or none; warn if the folder cannot be written."""
    train, test = decoded.train, decoded.test
    parts = (train.images, train.labels, _apart(test.images, train.images), _apart(test.labels, train.labels))
    tensors = dict(zip(TENSORS, (part.contiguous() for part in parts), strict=True))
    description = {"classes": list(decoded.classes), "encoding": decoded.encoding}
    header = json.dumps({"description": description, "digest": _digest(description, tensors)})
    write_tensors(path, tensors, {"mpelu": header})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that readers see the whole file or none; warn if the folder cannot be written."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial, metadata=metadata)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        warnings.warn(
            f"cannot cache the decoded data in {path.parent} ({error}): going on without; "
            "set MPELU_CACHE to a folder that can be written",
            stacklevel=3,
        )


def _apart(tensor: Tensor, other: Tensor) -> Tensor:
    """Return the tensor, or a copy if it is the other one: a safetensors file holds no memory twice."""
    return tensor.clone() if tensor.data_ptr() == other.data_ptr() else tensor


def _digest(description: object, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
