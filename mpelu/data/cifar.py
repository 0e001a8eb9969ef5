"""The official files of CIFAR-10 and CIFAR-100, binary and Python version.

Source: A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images; https://www.cs.toronto.edu/~kriz/cifar.html
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mpelu.data.dataset import Decoded, Source, Split
from mpelu.errors import DataError

SIZE = (32, 32)
PIXELS = 3 * 32 * 32

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# fmt: off
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)
# fmt: on

Rows = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Layout:
    """One official archive, unpacked.

    Attributes:
        folder: Name of its folder.
        train: Names of the training files.
        test: Name of the test file.
        names: Name of the file with the class names.
        train_rows: Images in each training file.
        test_rows: Images in the test file.
        classes: Number of classes.
        read: Reads one file, given its path and its number of images.
        read_names: Reads the file with the class names.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    train_rows: int
    test_rows: int
    classes: int
    read: Callable[[Path, int], Rows]
    read_names: Callable[[Path], tuple[str, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


def find(folder: Path) -> Source | None:
    """Recognize an official folder, or the one official folder inside.

    Returns:
        The source, or None if this is no official folder and has none inside.

    Raises:
        DataError: If some of its files are missing, or there is more than one such folder inside.
    """
    found = [
        (layout, place)
        for layout in LAYOUTS
        for place in (folder, folder / layout.folder)
        if place.is_dir() and (place.resolve().name == layout.folder or (place / layout.train[0]).is_file())
    ]
    if not found:
        return None
    if len(found) > 1:
        inside = ", ".join(layout.folder for layout, _ in found)
        raise DataError(f"{folder} holds several data sets ({inside}); give the path of one of them")
    layout, place = found[0]
    missing = [name for name in layout.files if not (place / name).is_file()]
    if missing:
        raise DataError(f"{place} lacks {', '.join(missing)} of the official {layout.folder}; unpack the archive again")
    return Source(
        name=place.resolve().name,
        files={
            "train": tuple(place / name for name in layout.train),
            "test": (place / layout.test,),
            "names": (place / layout.names,),
        },
        decode=partial(decode, layout, place),
    )


def decode(layout: Layout, folder: Path) -> Decoded:
    """Read the images as ``(N, 3, 32, 32)`` with their (fine) labels.

    Raises:
        DataError: If the class names, or all files of images, cannot be read.
    """
    classes = layout.read_names(folder / layout.names)
    if len(classes) != layout.classes:
        raise DataError(
            f"{folder / layout.names} must hold {layout.classes} class names, got {len(classes)}; unpack it again"
        )
    damaged: list[str] = []
    train = _read_all([folder / name for name in layout.train], layout, layout.train_rows, damaged)
    test = _read_all([folder / layout.test], layout, layout.test_rows, damaged)
    if not len(train.labels) and not len(test.labels):
        raise DataError("; ".join(damaged))
    return Decoded(classes=classes, train=train, test=test, damaged=tuple(damaged))


def _read_all(paths: Sequence[Path], layout: Layout, rows: int, damaged: list[str]) -> Split:
    parts: list[Rows] = [(np.empty((0, PIXELS), dtype=np.uint8), np.empty(0, dtype=np.int64))]
    for path in paths:
        try:
            images, labels = layout.read(path, rows)
        except DataError as error:
            damaged.append(str(error))
            continue
        good = (labels >= 0) & (labels < layout.classes)
        damaged += [
            f"{path} row {row}: label {labels[row]} is not one of 0 to {layout.classes - 1}"
            for row in np.flatnonzero(~good)
        ]
        parts.append((images, labels) if good.all() else (images[good], labels[good]))
    all_images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, *SIZE)
    return Split(torch.from_numpy(all_images), torch.from_numpy(np.concatenate([labels for _, labels in parts])))


def _read_binary(path: Path, rows: int, *, label_bytes: int) -> Rows:
    wanted, got = rows * (label_bytes + PIXELS), path.stat().st_size
    if got != wanted:
        raise DataError(f"{path} must have {wanted} bytes ({rows} images), got {got}; unpack or download it again")
    records = np.fromfile(path, dtype=np.uint8).reshape(rows, -1)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)  # the fine label stands last


def _read_text_names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="ascii").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a list of class names ({error.reason}); unpack it again") from error


def _read_pickle(path: Path, rows: int, *, key: bytes) -> Rows:
    wanted, got = rows * PIXELS, path.stat().st_size
    if got < wanted:
        raise DataError(
            f"{path} must have more than {wanted} bytes ({rows} images), got {got}; unpack or download it again"
        )
    content = _unpickle(path)
    images, labels = content.get(b"data"), content.get(key)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != (rows, PIXELS):
        came = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{path} must hold 'data' as uint8 ({rows}, {PIXELS}), got {came}; unpack it again")
    if not isinstance(labels, list) or len(labels) != rows or not all(type(label) is int for label in labels):
        came = f"{len(labels)} items" if isinstance(labels, list) else type(labels).__name__
        raise DataError(
            f"{path} must hold {key.decode()!r} as a list of {rows} whole numbers, got {came}; unpack it again"
        )
    return images, np.array([max(-1, min(label, 2**31)) for label in labels], dtype=np.int64)  # fits, stays wrong


def _read_pickled_names(path: Path, *, key: bytes) -> tuple[str, ...]:
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        came = type(names).__name__
        raise DataError(f"{path} must hold {key.decode()!r} as a list of names, got {came}; unpack it again")
    return tuple(name.decode("ascii", errors="replace") for name in names)


def _unpickle(path: Path) -> dict[object, object]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) is not a complete pickle ({reason}); unpack or download it again"
        ) from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dict, got {type(content).__name__}; unpack or download it again")
    return content


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, which would look up (and import) a codec of any name."""
    if encoding != "latin1":
        raise DataError(f"the pickle asks for the codec {encoding!r} and was refused; get the official file")
    return text.encode("latin1")


# A pickle names the functions to call while it is read: these make up an array, and all others are refused.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> object:
        if (module_name, global_name) in _ALLOWED:
            return _ALLOWED[module_name, global_name]
        raise DataError(
            f"the pickle wants to run code ({module_name}.{global_name}) and was refused; get the official file"
        )


LAYOUTS = (
    Layout(
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
        train_rows=10_000,
        test_rows=10_000,
        classes=10,
        read=partial(_read_binary, label_bytes=1),
        read_names=_read_text_names,
    ),
    Layout(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        names="batches.meta",
        train_rows=10_000,
        test_rows=10_000,
        classes=10,
        read=partial(_read_pickle, key=b"labels"),
        read_names=partial(_read_pickled_names, key=b"label_names"),
    ),
    Layout(
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        train_rows=50_000,
        test_rows=10_000,
        classes=100,
        read=partial(_read_binary, label_bytes=2),
        read_names=_read_text_names,
    ),
    Layout(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        names="meta",
        train_rows=50_000,
        test_rows=10_000,
        classes=100,
        read=partial(_read_pickle, key=b"fine_labels"),
        read_names=partial(_read_pickled_names, key=b"fine_label_names"),
    ),
)
