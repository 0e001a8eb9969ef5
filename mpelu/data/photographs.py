"""Images that stay on disk and are read when they are needed: class folders, or Parquet files.

They lie in blocks that are read as a whole: a file of a folder is a block, and so is a row group of Parquet.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mpelu.data import folder, parquet
from mpelu.data.dataset import require_count
from mpelu.data.pixels import first_line, opened
from mpelu.errors import DataError

WINDOW_ROWS = 8192
WINDOW_BLOCKS = 64
"""A window of Parquet holds at least so many images and so many row groups: about 0.9 GB of ImageNet's (100 rows)."""

HELD_OUT = ("validation", "val", "test")  # this order: the test images of ImageNet have no labels


@dataclass(frozen=True)
class FolderPhotographs:
    """Image files of class folders; each file is a block.

    Attributes:
        paths: The files, in the order of their classes.
        labels: Class of each, int64, shape ``(N,)``.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    window: ClassVar[None] = None  # files can be read in any order

    @cached_property
    def starts(self) -> Tensor:
        """Return the first image of each block, and the number of all at the end."""
        return torch.arange(len(self.paths) + 1)

    def read_block(self, block: int) -> list[bytes | None]:
        """Return the encoded images of a block; None for a file that cannot be read."""
        try:
            return [self.paths[block].read_bytes()]
        except OSError:
            return [None]

    def where(self, index: int) -> str:
        """Say where an image is."""
        return str(self.paths[index])

    def first(self, count: int) -> "FolderPhotographs":
        """Keep the first ``count`` images."""
        return FolderPhotographs(self.paths[:count], self.labels[:count])


@dataclass(frozen=True)
class ParquetPhotographs:
    """Rows of Parquet files; each row group is a block.

    Attributes:
        groups: File and number of each row group.
        image_columns: The column with the images, by file.
        labels: Class of each row, int64, shape ``(N,)``; -1 where there is none.
        starts: First row of each group, and the number of all rows at the end, int64, shape ``(B + 1,)``.
    """

    groups: tuple[tuple[Path, int], ...]
    image_columns: dict[Path, str]
    labels: Tensor
    starts: Tensor
    _files: dict[Path, pq.ParquetFile] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": {}}  # open files stay in the process that opened them

    @property
    def window(self) -> int:
        """Return how many blocks are shuffled together."""
        rows_per_block = max(1, len(self.labels) // len(self.groups))
        return max(WINDOW_BLOCKS, -(-WINDOW_ROWS // rows_per_block))

    def read_block(self, block: int) -> list[bytes | None]:
        """Return the encoded images of a block; None for each image of a block that cannot be read."""
        path, group = self.groups[block]
        try:
            if path not in self._files:
                self._files[path] = pq.ParquetFile(path)
            name = self.image_columns[path]
            column = self._files[path].read_row_group(group, columns=[name], use_threads=False).column(name)
        except (pa.ArrowException, OSError):
            return [None] * int(self.starts[block + 1] - self.starts[block])
        data = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        encoded: list[bytes | None] = data.to_pylist()
        return encoded

    def where(self, index: int) -> str:
        """Say where an image is: the row counts from 0 within its row group."""
        block = int(torch.searchsorted(self.starts, index, right=True)) - 1
        path, group = self.groups[block]
        return f"{path} row group {group} row {index - int(self.starts[block])}"

    def first(self, count: int) -> "ParquetPhotographs":
        """Keep the first ``count`` images."""
        starts = torch.cat((self.starts[self.starts < count], torch.tensor([count])))
        return ParquetPhotographs(self.groups[: len(starts) - 1], self.image_columns, self.labels[:count], starts)


Photographs = FolderPhotographs | ParquetPhotographs


@dataclass(frozen=True)
class PhotographSet:
    """A data set of photographs on disk.

    Attributes:
        name: What results call it.
        classes: Name of each class; the label is the index.
        train: Training images.
        test: Images to test with: those for validation, where there are such.
        sha256: Identifies the data by the names, sizes and classes of its files, and by the footers of Parquet files:
            150 GB are not read for it, so that a change of pixels that keeps these goes unnoticed.
    """

    name: str
    classes: tuple[str, ...]
    train: Photographs
    test: Photographs
    sha256: str

    def limited(self, count: int | None) -> "PhotographSet":
        """Keep the first ``count`` training images (None: all).

        Raises:
            UsageError: If there are fewer images, or count is below 1.
        """
        if count is None:
            return self
        require_count(count, len(self.train.labels), self.name)
        return replace(self, train=self.train.first(count))


def open_photographs(place: Path, *, name: str | None = None) -> PhotographSet:
    """List the images of a folder without reading them.

    Args:
        place: A folder with the folders ``train`` and ``val`` (``validation``, ``test``) of class folders, or with
            ``train-*.parquet`` and ``validation-*.parquet`` (``val-*``, ``test-*``), there or in one folder inside.
        name: What results call it; by default the name of the folder.

    Raises:
        DataError: If there is no such data, or a part of it cannot be listed.
    """
    name = name or place.resolve().name
    if not place.is_dir():
        raise DataError(f"no folder {place}; give a folder of class folders or of Parquet files")
    if folder.is_class_folders(place / "train"):
        return _open_folders(place, name)
    return _open_parquet(place, name)


def open_shards(paths: Sequence[Path]) -> tuple[ParquetPhotographs, tuple[str, ...]]:
    """List the rows of Parquet files as one split.

    Returns:
        The images, and the names of the classes.

    Raises:
        DataError: If a file cannot be opened, or the files disagree about the classes.
    """
    shards = _whole_shards(paths)
    return _rows_of(shards), parquet.class_names(shards, shards)


def sizes_of_first(photographs: Photographs, count: int) -> set[tuple[int, int]]:
    """Return width and height of the first images as their headers have them; images without one are left out."""
    found: set[tuple[int, int]] = set()
    for index in range(min(count, len(photographs.labels))):
        block = int(torch.searchsorted(photographs.starts, index, right=True)) - 1
        if index == int(photographs.starts[block]):
            encoded = photographs.read_block(block)
        with suppress(DataError), opened(encoded[index - int(photographs.starts[block])]) as image:
            found.add(image.size)
    return found


def _open_folders(place: Path, name: str) -> PhotographSet:
    held_out = next((place / part for part in HELD_OUT if (place / part).is_dir()), None)
    if held_out is None:
        raise DataError(f"{place} must have a folder {' or '.join(HELD_OUT)} beside train; add the images to test with")
    classes = folder.class_folders(place / "train")
    train, test = (_listed(part, classes) for part in (place / "train", held_out))
    lines = [
        f"{part} {label} {path.name} {path.stat().st_size}\n"
        for part, split in (("train", train), ("test", test))
        for path, label in zip(split.paths, split.labels.tolist(), strict=True)
    ]
    digest = hashlib.sha256("".join([*classes, "\n", *lines]).encode()).hexdigest()
    return PhotographSet(name, classes, train, test, digest)


def _listed(place: Path, classes: tuple[str, ...]) -> FolderPhotographs:
    items = list(folder.list_images(place, classes).items())
    return FolderPhotographs(tuple(path for path, _ in items), torch.tensor([label for _, label in items]))


def _open_parquet(place: Path, name: str) -> PhotographSet:
    inside = sorted(path for path in place.iterdir() if path.is_dir())
    places = [part for part in (place, *inside) if any(part.glob("train-*.parquet"))]
    if len(places) != 1:
        came = ", ".join(str(part) for part in places) or "none"
        raise DataError(f"{place} must hold train-*.parquet, there or in one folder inside, got {came}")
    train = sorted(places[0].glob("train-*.parquet"))
    test = next((found for part in HELD_OUT if (found := sorted(places[0].glob(f"{part}-*.parquet")))), [])
    if not test:
        raise DataError(f"{places[0]} must have validation-*.parquet (or val-*, test-*) beside train-*.parquet")
    train_shards, test_shards = _whole_shards(train), _whole_shards(test)
    classes = parquet.class_names([*train_shards, *test_shards], train_shards)
    digest = hashlib.sha256("\n".join(_footer_hash(path) for path in (*train, *test)).encode()).hexdigest()
    return PhotographSet(name, classes, _rows_of(train_shards), _rows_of(test_shards), digest)


def _whole_shards(paths: Sequence[Path]) -> list[parquet.Shard]:
    damaged: list[str] = []
    shards = parquet.open_shards(paths, damaged)
    if damaged:
        raise DataError("; ".join(damaged))
    return shards


def _rows_of(shards: Sequence[parquet.Shard]) -> ParquetPhotographs:
    groups: list[tuple[Path, int]] = []
    starts, labels = [0], []
    for shard in shards:
        try:
            with pq.ParquetFile(shard.path) as file:
                for group in range(file.num_row_groups):
                    groups.append((shard.path, group))
                    starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
                column = file.read(columns=[shard.label], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot read the labels of {shard.path} ({first_line(error)}); get it again") from error
        labels.append(torch.tensor(pc.fill_null(column, -1).to_pylist(), dtype=torch.int64))
    columns = {shard.path: shard.image for shard in shards}
    return ParquetPhotographs(tuple(groups), columns, torch.cat(labels), torch.tensor(starts))


def _footer_hash(path: Path) -> str:
    """Hash the size of a Parquet file and its footer, which holds where its columns lie and their statistics."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(size - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(size - 8 - length)
        return hashlib.sha256(str(size).encode() + file.read(length)).hexdigest()
