"""Folders of Parquet files with encoded images, as the ``datasets`` library and the Hugging Face Hub write them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mpelu.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, SIZE
from mpelu.data.collect import Item, decode_both
from mpelu.data.dataset import Decoded, Source
from mpelu.data.pixels import first_line
from mpelu.errors import DataError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")


@dataclass(frozen=True)
class Shard:
    """One file: its rows, the columns of image and label, and the names of the classes if it has them."""

    path: Path
    rows: int
    image: str
    label: str
    names: tuple[str, ...] | None


def find(folder: Path, *, resize: int | None = None) -> Source | None:
    """Recognize ``train-*.parquet`` with ``test-*`` (else ``validation-*``) in the folder or in one folder inside it.

    Args:
        folder: Where to look.
        resize: Height and width that every image is scaled to; None: they must all have one size.

    Returns:
        The source, or None if there is no ``train-*.parquet``.

    Raises:
        DataError: If there are no test files, or several folders inside have training files.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    places = [place for place in (folder, *inside) if any(place.glob("train-*.parquet"))]
    if not places:
        return None
    if len(places) > 1:
        names = ", ".join(str(place) for place in places)
        raise DataError(f"{folder} holds several data sets ({names}); give the path of one of them")
    place = places[0]
    train = tuple(sorted(place.glob("train-*.parquet")))
    test = tuple(sorted(place.glob("test-*.parquet")) or sorted(place.glob("validation-*.parquet")))
    if not test:
        raise DataError(
            f"{place} has train-*.parquet but neither test-*.parquet nor validation-*.parquet; add the test images"
        )
    return Source(
        name=folder.resolve().name, files={"train": train, "test": test}, decode=partial(decode, train, test, resize)
    )


def decode(train: Sequence[Path], test: Sequence[Path], resize: int | None = None) -> Decoded:
    """Decode all images to ``(N, 3, H, W)``, or ``(N, 1, H, W)`` if every one is grey; scale them if asked to.

    Raises:
        DataError: If no training file can be opened, or the files disagree about the classes.
    """
    damaged: list[str] = []
    train_shards = open_shards(train, damaged)
    if not train_shards:
        raise DataError("; ".join(damaged))
    test_shards = open_shards(test, damaged)
    classes = class_names([*train_shards, *test_shards], train_shards)
    size = SIZE if classes in (CIFAR10_CLASSES, CIFAR100_CLASSES) else None
    return decode_both(
        _items(train_shards, damaged),
        _items(test_shards, damaged),
        totals=(_rows_of(train_shards), _rows_of(test_shards)),
        classes=classes,
        size=size,
        resize=resize,
        damaged=damaged,
    )


def _rows_of(shards: Sequence[Shard]) -> int:
    return sum(shard.rows for shard in shards)


def open_shards(paths: Sequence[Path], damaged: list[str]) -> list[Shard]:
    """Read what the files say about themselves; a line is added to ``damaged`` for each one that cannot be used."""
    shards = []
    for path in paths:
        try:
            shards.append(_open_shard(path))
        except DataError as error:
            damaged.append(str(error))
    return shards


def _open_shard(path: Path) -> Shard:
    try:
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a whole Parquet file ({first_line(error)}); copy or download it again"
        ) from error
    if rows == 0:
        raise DataError(f"{path} has no rows; remove it or put the images in")
    image, label = _column(path, schema, IMAGE_COLUMNS), _column(path, schema, LABEL_COLUMNS)
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{path} must hold column {image!r} as bytes or struct{{bytes, path}}, got {schema.field(image).type}; "
            "store the encoded images in the file"
        )
    if not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{path} must hold column {label!r} as whole numbers, got {schema.field(label).type}")
    return Shard(path, rows, image, label, _class_names(path, schema.metadata or {}, label))


def _column(path: Path, schema: pa.Schema, wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if schema.get_field_index(name) >= 0:
            return name
    raise DataError(
        f"{path} must have a column {' or '.join(wanted)}, got {', '.join(schema.names)}; rename the column"
    )


def _class_names(path: Path, metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Read the names of a ``ClassLabel``, or None if the file names no classes."""
    if b"huggingface" not in metadata:
        return None
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label].get("names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} has features of the datasets library that cannot be read ({error!r}); write it anew"
        ) from error
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} must name the classes of {label!r} as a list of strings; write it anew")
    return tuple("crab" if name == "cra" else str(name) for name in names)  # so misspelt in uoft-cs/cifar100


def class_names(shards: Sequence[Shard], train: Sequence[Shard]) -> tuple[str, ...]:
    """Return the names that all shards agree on; without names, the numbers of the training labels.

    Raises:
        DataError: If two shards name different classes, or unnamed labels leave a number out.
    """
    first = train[0]
    for shard in shards:
        if shard.names != first.names:
            raise DataError(f"{shard.path} and {first.path} name different classes; put files of one data set together")
    if first.names is not None:
        return first.names
    labels: set[int] = set()
    for shard in train:
        try:
            column = pq.read_table(shard.path, columns=[shard.label], use_threads=False).column(0)
        except (pa.ArrowException, OSError):
            continue  # reported with its rows, when the images are read
        labels |= {label for label in pc.unique(column).to_pylist() if label is not None and label >= 0}
    if labels and max(labels) + 1 != len(labels):
        raise DataError(
            f"{first.path} names no classes, so its labels must be 0 to K-1 with none left out, got {len(labels)} "
            f"different ones up to {max(labels)}; number them so, or write the names as a ClassLabel"
        )
    return tuple(str(label) for label in sorted(labels))


def _items(shards: Sequence[Shard], damaged: list[str]) -> Iterator[Item]:
    for shard in shards:
        for row, data, label in _rows(shard, damaged):
            yield Item(f"{shard.path} row {row}", data, label)


def _rows(shard: Shard, damaged: list[str]) -> Iterator[tuple[int, bytes | None, int | None]]:
    """Yield number (from 0), encoded image and label of each readable row, one row group in memory at a time."""
    start = 0
    with pq.ParquetFile(shard.path) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            try:
                table = file.read_row_group(group, columns=[shard.image, shard.label], use_threads=False)
                column = table.column(shard.image)
                data = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
                pairs = zip(data.to_pylist(), table.column(shard.label).to_pylist(), strict=True)
            except (pa.ArrowException, OSError) as error:
                last = start + rows - 1
                damaged.append(f"{shard.path} rows {start} to {last} cannot be read ({first_line(error)})")
            else:
                for offset, (encoded, label) in enumerate(pairs):
                    yield start + offset, encoded, label
            start += rows
