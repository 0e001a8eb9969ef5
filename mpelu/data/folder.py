"""Folders of class folders: ``train/<class>/<image>`` with ``test/``, ``val/`` or ``validation/`` in the same form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mpelu.data.collect import Item, decode_both
from mpelu.data.dataset import Decoded, Source
from mpelu.data.pixels import SUFFIXES
from mpelu.errors import DataError

TEST_NAMES = ("test", "val", "validation")


@dataclass(frozen=True)
class ClassFolders:
    """One split: the image files of each class, the classes in order."""

    files: tuple[tuple[Path, ...], ...]

    def items(self) -> Iterator[tuple[Path, int]]:
        """Yield each file with its label."""
        for label, paths in enumerate(self.files):
            for path in paths:
                yield path, label

    def __len__(self) -> int:
        return sum(len(paths) for paths in self.files)


def find(folder: Path, *, resize: int | None = None) -> Source | None:
    """Recognize a folder with ``train`` and one of :data:`TEST_NAMES`, each with a folder of images for each class.

    Args:
        folder: Where to look.
        resize: Height and width that every image is scaled to; None: they must all have one size.

    Returns:
        The source, or None if there is no ``train`` with folders inside.

    Raises:
        DataError: If there are no test images, or the classes of the two differ, or some have no image.
    """
    if not is_class_folders(folder / "train"):
        return None
    train_place, test_place = folder / "train", held_out_folder(folder)
    classes = class_folders(train_place)
    train, test = list_images(train_place, classes), list_images(test_place, classes)
    files = {
        f"{part}/{name}": paths
        for part, split in (("train", train), ("test", test))
        for name, paths in zip(classes, split.files, strict=True)
    }
    return Source(name=folder.resolve().name, files=files, decode=partial(decode, train, test, classes, resize))


def is_class_folders(place: Path) -> bool:
    """Return whether the place is a folder with folders inside."""
    return place.is_dir() and any(path.is_dir() for path in place.iterdir())


def held_out_folder(folder: Path) -> Path:
    """Return the folder of test images beside ``train``.

    Raises:
        DataError: If there is none, or more than one.
    """
    found = [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
    if len(found) != 1:
        came = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder} must have one folder of {', '.join(TEST_NAMES)} beside train, got {came}")
    return found[0]


def class_folders(place: Path) -> tuple[str, ...]:
    """Return the names of the class folders in order; the label of a class is its number there."""
    return tuple(sorted(path.name for path in place.iterdir() if path.is_dir()))


def list_images(place: Path, classes: tuple[str, ...]) -> ClassFolders:
    """List the image files (by their suffix) of each class, in order, those in folders further inside too.

    Raises:
        DataError: If there is a folder of another class, or a class without images.
    """
    other = sorted(set(class_folders(place)) - set(classes))
    if other:
        raise DataError(f"{place} has classes that train has not: {', '.join(other[:5])}; put the same classes in both")
    files = tuple(_images_in(place / name) for name in classes)
    empty = [name for name, paths in zip(classes, files, strict=True) if not paths]
    if empty:
        raise DataError(
            f"{place} has no images ({', '.join(SUFFIXES)}) of {len(empty)} classes: {', '.join(empty[:5])}; "
            "add some, or remove the class from both folders"
        )
    return ClassFolders(files)


def decode(train: ClassFolders, test: ClassFolders, classes: Sequence[str], resize: int | None) -> Decoded:
    """Decode all images to ``(N, 3, H, W)``, or ``(N, 1, H, W)`` if every one is grey; scale them if asked to."""
    return decode_both(
        _read(train),
        _read(test),
        totals=(len(train), len(test)),
        classes=tuple(classes),
        size=None,
        resize=resize,
        damaged=[],
    )


def _images_in(place: Path) -> tuple[Path, ...]:
    return tuple(path for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())


def _read(split: ClassFolders) -> Iterator[Item]:
    for path, label in split.items():
        try:
            yield Item(str(path), path.read_bytes(), label)
        except OSError as error:
            raise DataError(f"cannot read {path} ({error.strerror}); mend the file or its permissions") from error
