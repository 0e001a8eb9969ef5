"""Data sets by name or by path."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mpelu.data import cache as stored
from mpelu.data import cifar, digits, hub, parquet
from mpelu.data.dataset import Dataset, Decoded, Source, channel_statistics
from mpelu.errors import DataError, UsageError

LAYOUTS = "a folder with train-*.parquet and test-*.parquet, or one of " + ", ".join(
    layout.folder for layout in cifar.LAYOUTS
)


@dataclass(frozen=True)
class Entry:
    """A data set that has a name.

    Attributes:
        classes: Number of classes.
        train: Number of training images.
        test: Number of test images.
        size: Channels, height and width of an image.
        origin: Where it comes from.
        find: Locates its files, after a download if need be.
    """

    classes: int
    train: int
    test: int
    size: tuple[int, int, int]
    origin: str
    find: Callable[[], Source]


CATALOG = {
    "digits": Entry(
        classes=10,
        train=1500,
        test=297,
        size=(1, 16, 16),
        origin="built in (UCI Optical Recognition of Handwritten Digits, CC BY 4.0)",
        find=digits.find,
    ),
    "cifar10": Entry(
        classes=10,
        train=50_000,
        test=10_000,
        size=(3, 32, 32),
        origin="Hugging Face Hub, uoft-cs/cifar10",
        find=partial(
            hub.find,
            "uoft-cs/cifar10",
            name="cifar10",
            instead="a folder with train-*.parquet and test-*.parquet, or cifar-10-batches-bin, or cifar-10-batches-py",
        ),
    ),
    "cifar100": Entry(
        classes=100,
        train=50_000,
        test=10_000,
        size=(3, 32, 32),
        origin="Hugging Face Hub, uoft-cs/cifar100",
        find=partial(
            hub.find,
            "uoft-cs/cifar100",
            name="cifar100",
            instead="a folder with train-*.parquet and test-*.parquet, or cifar-100-binary, or cifar-100-python",
        ),
    ),
}


def describe() -> list[dict[str, str]]:
    """Return a row for each data set in the catalog, as text by column."""
    return [
        {
            "name": name,
            "classes": str(entry.classes),
            "train": str(entry.train),
            "test": str(entry.test),
            "size": "x".join(str(length) for length in entry.size),
            "origin": entry.origin,
        }
        for name, entry in CATALOG.items()
    ]


def load(source: str | Path, *, cache: Path | None = None) -> Dataset:
    """Load a data set.

    What is decoded is kept in the cache, by the content of its files; the next time it is read from there.

    Args:
        source: A name in :data:`CATALOG`, or the path of a folder (``./cifar10`` if it has the name of an entry):
            Parquet files as on the Hugging Face Hub, or an official folder of CIFAR.
        cache: Folder of the cache; by default ``$MPELU_CACHE``, ``$XDG_CACHE_HOME/mpelu`` or ``~/.cache/mpelu``.

    Raises:
        UsageError: If the name is neither in the catalog nor a path.
        DataError: If the data is missing or damaged, in whole or in part.

    Example:
        >>> digits = load("digits")
        >>> digits.train.images.shape
        torch.Size([1500, 1, 16, 16])
    """
    found = find(source)
    sha256 = found.sha256()
    if source == "digits":
        decoded = found.decode()  # as quick as the cache
    else:
        decoded = _cached(found, stored.entry(cache or stored.default_folder(), sha256))
    mean, std = channel_statistics(decoded.train.images)
    if min(std) == 0:
        raise DataError(f"{source} has a channel with one value in all training images; give images with a content")
    return Dataset(
        name=name_of(decoded, found.name),
        classes=decoded.classes,
        train=decoded.train,
        test=decoded.test,
        mean=mean,
        std=std,
        sha256=sha256,
    )


def find(source: str | Path) -> Source:
    """Locate the files of a name or path, without reading the images.

    Raises:
        UsageError: If the name is neither in the catalog nor a path.
        DataError: If there is no such folder, or no data set in it.
    """
    if isinstance(source, str) and source in CATALOG:
        return CATALOG[source].find()
    folder = Path(source).expanduser()
    if not folder.exists():
        raise _nothing_there(source)
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, wanted a folder: {LAYOUTS}; unpack an archive first, or give its folder")
    try:
        found = cifar.find(folder) or parquet.find(folder)
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot list {error.filename} ({error.strerror}); mend its permissions") from error
    if found is None:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise DataError(
            f"no data set in {folder}: wanted {LAYOUTS}, got {shown or 'an empty folder'}; give another path"
        )
    return found


def name_of(decoded: Decoded, folder: str) -> str:
    """Return the name that results must carry: CIFAR is known by its class names, and its lossy copies say so.

    Args:
        decoded: The data.
        folder: The name if it is not CIFAR.
    """
    known = {cifar.CIFAR10_CLASSES: "cifar10", cifar.CIFAR100_CLASSES: "cifar100"}.get(decoded.classes)
    if known is None:
        return folder
    return f"{known}-{decoded.encoding}" if decoded.encoding else known


def _cached(found: Source, entry: Path) -> Decoded:
    decoded = stored.read(entry)
    if decoded is None:
        decoded = found.decode()
        _require_whole(decoded.damaged)
        stored.write(entry, decoded)
    return decoded


def _require_whole(damaged: tuple[str, ...]) -> None:
    if damaged:
        more = f"; and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise DataError(
            f"damaged data: {'; '.join(damaged[:3])}{more}. Mend or remove them; mpelu data check lists them all"
        )


def _nothing_there(source: str | Path) -> DataError | UsageError:
    name = str(source)
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    if isinstance(source, Path) or any(separator in name for separator in separators):
        return DataError(f"no folder {name}; give the path of {LAYOUTS}")
    close = difflib.get_close_matches(name, CATALOG, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown data set {name!r}: use {', '.join(CATALOG)}, or the path of {LAYOUTS}{hint}")
