"""Data sets by name or by path."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mpelu.address import load_named
from mpelu.data import cache as stored
from mpelu.data import cifar, digits, folder, hub, parquet, whiten
from mpelu.data.collect import resized
from mpelu.data.dataset import Dataset, Decoded, Source, channel_statistics
from mpelu.data.photographs import PhotographSet, open_photographs
from mpelu.data.whiten import Progress
from mpelu.errors import DataError, UsageError

LAYOUTS = (
    "a folder with train-*.parquet and test-*.parquet, or with the folders train and test of class folders, or one of "
    + ", ".join(layout.folder for layout in cifar.LAYOUTS)
)


@dataclass(frozen=True)
class Preprocessing:
    """What can be done to all images of a data set before the training.

    Attributes:
        variant: Names it and its constants in the cache.
        apply: Returns the data with floating images; the statistics come from the training images only.
        largest: Most values (channels x height x width) that an image may have.
    """

    variant: str
    apply: Callable[..., Decoded]
    largest: int


PREPROCESSINGS = {
    # A covariance of 12,288 x 12,288 float64 takes 1.2 GB, and its directions some minutes.
    "gcn_zca": Preprocessing(f"gcn{whiten.SCALE:g}-zca{whiten.FLOOR:g}", whiten.gcn_zca, largest=3 * 64 * 64),
}


@dataclass(frozen=True)
class Entry:
    """A data set that has a name.

    Attributes:
        classes: Number of classes.
        train: Number of training images.
        test: Number of test images.
        size: Channels, height and width of an image.
        origin: Where it comes from.
        find: Locates its files, after a download if need be; None for what does not fit into memory.
        find_photographs: Lists its images on disk, for a stream; None for what is held in memory.
    """

    classes: int
    train: int
    test: int
    size: tuple[int, int, int]
    origin: str
    find: Callable[[], Source] | None = None
    find_photographs: Callable[[], PhotographSet] | None = None


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
    "imagenet": Entry(
        classes=1000,
        train=1_281_167,
        test=50_000,
        size=(3, 256, 256),
        origin="Hugging Face Hub, ILSVRC/imagenet-1k (by agreement), streamed",
        find_photographs=partial(
            hub.find_photographs,
            "ILSVRC/imagenet-1k",
            name="imagenet",
            instead="a folder with train-*.parquet and validation-*.parquet, or with the folders train and val",
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


def load(
    source: str | Path,
    *,
    preprocess: str = "none",
    resize: int | None = None,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> Dataset:
    """Load a data set.

    What is decoded is kept in the cache, by the content of its files; the next time it is read from there. So is what a
    preprocessing made of it.

    Args:
        source: A name in :data:`CATALOG`, or the path of a folder (``./cifar10`` if it has the name of an entry):
            Parquet files as on the Hugging Face Hub, class folders, or an official folder of CIFAR; or
            ``module:function`` or ``file.py:function``, a function of yours that returns a :class:`Source`.
        preprocess: ``none`` (uint8 images), or a name in :data:`PREPROCESSINGS`: ``gcn_zca`` is global contrast
            normalization and ZCA whitening by the statistics of the training images (float16 images, mean 0, std 1).
        resize: Scale every image to this height and width, whatever its aspect; by default all must have one size.
        cache: Folder of the cache; by default ``$MPELU_CACHE``, ``$XDG_CACHE_HOME/mpelu`` or ``~/.cache/mpelu``.
        on_progress: Called during a preprocessing with its stage, the images done and their number.

    Raises:
        UsageError: If the name is neither in the catalog nor a path, or an option does not suit the data.
        DataError: If the data is missing or damaged, in whole or in part.

    Example:
        >>> digits = load("digits")
        >>> digits.train.images.shape
        torch.Size([1500, 1, 16, 16])
    """
    if preprocess != "none" and preprocess not in PREPROCESSINGS:
        raise UsageError(f"preprocess must be none or {' or '.join(PREPROCESSINGS)}, got {preprocess!r}")
    found = find(source, resize=resize)
    sha256 = found.sha256()
    place = cache or stored.default_folder()
    variants = () if resize is None else (f"resize{resize}",)
    plain = stored.entry(place, sha256, *variants)
    if preprocess == "none":
        decoded = found.decode() if source == "digits" else _cached(found, plain)  # digits are as quick as the cache
        mean, std = channel_statistics(decoded.train.images)
        if min(std) == 0:
            raise DataError(f"{source} has a channel with one value in all training images; give images with a content")
    else:
        chosen = PREPROCESSINGS[preprocess]
        decoded = _preprocessed(
            found, plain, stored.entry(place, sha256, *variants, chosen.variant), chosen, on_progress
        )
        channels = decoded.train.images.shape[1]
        mean, std = (0.0,) * channels, (1.0,) * channels
    return Dataset(
        name=name_of(decoded, found.name),
        classes=decoded.classes,
        train=decoded.train,
        test=decoded.test,
        mean=mean,
        std=std,
        sha256=sha256,
        preprocess=preprocess,
    )


def find(source: str | Path, *, resize: int | None = None) -> Source:
    """Locate the files of a name or path, without reading the images.

    Args:
        source: As for :func:`load`.
        resize: As for :func:`load`.

    Raises:
        UsageError: If the name is neither in the catalog nor a path, or ``resize`` is below 1.
        DataError: If there is no such folder, or no data set in it.
    """
    if resize is not None and resize < 1:
        raise UsageError(f"resize must be at least 1, got {resize}")
    if isinstance(source, str) and source in CATALOG:
        return _resizing(_in_memory(source), resize)
    place = Path(source).expanduser()
    if isinstance(source, str) and ":" in source and not place.exists():
        return _resizing(_own_source(source), resize)
    if not place.exists():
        raise _nothing_there(source)
    if not place.is_dir():
        raise DataError(f"{place} is a file, wanted a folder: {LAYOUTS}; unpack an archive first, or give its folder")
    try:
        official = cifar.find(place)
        if official is not None:
            return _resizing(official, resize)
        found = parquet.find(place, resize=resize) or folder.find(place, resize=resize)
        names = sorted(path.name for path in place.iterdir())
    except OSError as error:
        raise DataError(f"cannot list {error.filename} ({error.strerror}); mend its permissions") from error
    if found is None:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise DataError(
            f"no data set in {place}: wanted {LAYOUTS}, got {shown or 'an empty folder'}; give another path"
        )
    return found


def find_photographs(source: str | Path) -> PhotographSet:
    """List the images of a name or path on disk, for a :class:`mpelu.data.Stream`.

    Args:
        source: A name in :data:`CATALOG` that is streamed, or the path of a folder: see
            :func:`mpelu.data.open_photographs`.

    Raises:
        UsageError: If the name is one that is held in memory.
        DataError: If there is no such data.
    """
    if not isinstance(source, str) or source not in CATALOG:
        return open_photographs(Path(source).expanduser())
    listed = CATALOG[source].find_photographs
    if listed is None:
        raise UsageError(f"{source} is held in memory and is not streamed; load it, or give the path of a folder")
    return listed()


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


def _preprocessed(
    found: Source, plain: Path, entry: Path, chosen: Preprocessing, on_progress: Progress | None
) -> Decoded:
    decoded = stored.read(entry)
    if decoded is None:
        decoded = _cached(found, plain)
        values = decoded.train.images[0].numel()
        if values > chosen.largest:
            raise UsageError(
                f"whitening takes images of at most {chosen.largest} values, got {values}; make them smaller (resize)"
            )
        decoded = chosen.apply(decoded, on_progress=on_progress)
        stored.write(entry, decoded)
    return decoded


def _in_memory(name: str) -> Source:
    find_source = CATALOG[name].find
    if find_source is None:
        raise UsageError(f"{name} does not fit into memory; stream it, or give the path of a folder with a part of it")
    return find_source()


def _resizing(found: Source, resize: int | None) -> Source:
    """Return a source whose images, which have one size, are scaled after they were decoded."""
    if resize is None:
        return found
    return replace(found, decode=lambda: resized(found.decode(), resize))


def _own_source(name: str) -> Source:
    """Call the function that ``module:function`` or ``file.py:function`` names."""
    found = load_named(name, kind="function")()
    if not isinstance(found, Source):
        raise UsageError(f"{name} must return a mpelu.data.Source, got {type(found).__name__}")
    return found


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
