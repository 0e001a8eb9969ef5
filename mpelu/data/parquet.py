"""Folders of Parquet files with encoded images, as the ``datasets`` library and the Hugging Face Hub write them."""

import io
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mpelu.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, SIZE
from mpelu.data.dataset import Decoded, Source, Split
from mpelu.errors import DataError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "GIF", "WEBP", "TIFF")
LOSSLESS = ("PNG", "BMP", "PPM", "GIF")
LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
# Others are refused: floating, 16 and 32 bit pixels have no one scale to 0..255, and transparency no one background.
MODES = ("1", "L", "P", "RGB")

# What Pillow raises for damaged files, besides its own errors.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), row by row.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def luminance_table(quality: int) -> tuple[int, ...]:
    """Return the luminance table that the Independent JPEG Group's library writes for a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(max((value * scale + 50) // 100, 1), 255) for row in _LUMINANCE for value in row)


_QUALITIES = {luminance_table(quality): quality for quality in range(1, 101)}


@dataclass(frozen=True)
class _Shard:
    path: Path
    rows: int
    image: str
    label: str
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class _Part:
    """One split: images as RGB, and whether all of them were grey."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    encodings: frozenset[str]
    grey: bool


def find(folder: Path) -> Source | None:
    """Recognize ``train-*.parquet`` with ``test-*`` (else ``validation-*``) in the folder or in one folder inside it.

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
    return Source(name=folder.resolve().name, files={"train": train, "test": test}, decode=partial(decode, train, test))


def decode(train: Sequence[Path], test: Sequence[Path]) -> Decoded:
    """Decode all images to ``(N, 3, H, W)``, or ``(N, 1, H, W)`` if every one is grey.

    Raises:
        DataError: If no training file can be opened, or the files disagree about the classes.
    """
    damaged: list[str] = []
    train_shards = _open_shards(train, damaged)
    if not train_shards:
        raise DataError("; ".join(damaged))
    test_shards = _open_shards(test, damaged)
    classes = _classes([*train_shards, *test_shards], train_shards)
    size = SIZE if classes in (CIFAR10_CLASSES, CIFAR100_CLASSES) else None
    learn = _decode_shards(train_shards, len(classes), size, damaged)
    if size is None and len(learn.labels):
        size = learn.images.shape[-2:]
    judge = _decode_shards(test_shards, len(classes), size, damaged)
    grey = learn.grey and judge.grey
    return Decoded(
        classes=classes,
        train=_split(learn, grey=grey),
        test=_split(judge, grey=grey),
        encoding=_common_encoding(learn.encodings | judge.encodings),
        damaged=tuple(damaged),
    )


def _split(part: _Part, *, grey: bool) -> Split:
    images = np.ascontiguousarray(part.images[:, :1]) if grey else part.images
    return Split(torch.from_numpy(images), torch.from_numpy(part.labels))


def _common_encoding(encodings: frozenset[str]) -> str:
    if len(encodings) <= 1:
        return "".join(encodings)
    return "jpeg" if any(encoding.startswith("jpeg") for encoding in encodings) else "lossy"


def _open_shards(paths: Sequence[Path], damaged: list[str]) -> list[_Shard]:
    shards = []
    for path in paths:
        try:
            shards.append(_open_shard(path))
        except DataError as error:
            damaged.append(str(error))
    return shards


def _open_shard(path: Path) -> _Shard:
    try:
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a whole Parquet file ({_first_line(error)}); copy or download it again"
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
    return _Shard(path, rows, image, label, _class_names(path, schema.metadata or {}, label))


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


def _classes(shards: Sequence[_Shard], train: Sequence[_Shard]) -> tuple[str, ...]:
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


def _decode_shards(shards: Sequence[_Shard], classes: int, size: tuple[int, int] | None, damaged: list[str]) -> _Part:
    """Decode all rows; the first image decides on the size if none is given (height, width)."""
    total = sum(shard.rows for shard in shards)
    images = None if size is None else np.empty((total, 3, *size), dtype=np.uint8)
    labels = np.empty(total, dtype=np.int64)
    encodings: set[str] = set()
    grey = True
    count = 0
    for shard in shards:
        for row, data, label in _rows(shard, damaged):
            try:
                pixels, encoding, is_grey = _decode_image(data, size)
                if label is None or not 0 <= label < classes:
                    raise DataError(f"label {label} is not one of 0 to {classes - 1}")
            except DataError as error:
                damaged.append(f"{shard.path} row {row}: {error}")
                continue
            if images is None:
                size = pixels.shape[:2]
                images = np.empty((total, 3, *size), dtype=np.uint8)
            images[count] = pixels.transpose(2, 0, 1)
            labels[count] = label
            encodings.add(encoding)
            grey = grey and is_grey
            count += 1
    if images is None:
        images = np.empty((0, 3, 1, 1), dtype=np.uint8)
    return _Part(images[:count], labels[:count], frozenset(encodings), grey)


def _rows(shard: _Shard, damaged: list[str]) -> Iterator[tuple[int, bytes | None, int | None]]:
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
                damaged.append(f"{shard.path} rows {start} to {last} cannot be read ({_first_line(error)})")
            else:
                for offset, (encoded, label) in enumerate(pairs):
                    yield start + offset, encoded, label
            start += rows


def _decode_image(data: bytes | None, size: tuple[int, int] | None) -> tuple[NDArray[np.uint8], str, bool]:
    """Return pixels ``(H, W, 3)``, their encoding and whether they are grey; a DataError says only what is wrong."""
    if data is None:
        raise DataError("there are no image bytes; store the encoded image in the file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode not in MODES:
                raise DataError(f"the image has mode {image.mode}, wanted {' or '.join(MODES)}; convert it to RGB or L")
            height, width = image.height, image.width
            if size is not None and (height, width) != size:
                raise DataError(
                    f"the image is {height}x{width} (height x width), wanted {size[0]}x{size[1]}; resize it"
                )
            grey = image.mode in ("1", "L")
            raw = image.tobytes() if image.mode == "RGB" else image.convert("RGB").tobytes()
            pixels = np.frombuffer(raw, dtype=np.uint8).reshape(height, width, 3)  # a tenth faster than asarray
            return pixels, _encoding(image), grey
    except _UNREADABLE as error:
        shown = "no known format" if isinstance(error, UnidentifiedImageError) else _first_line(error)
        raise DataError(f"the bytes are not a whole image ({shown})") from error


def _encoding(image: Image.Image) -> str:
    if isinstance(image, JpegImageFile):
        table = tuple(image.quantization.get(0, ()))
        return f"jpeg{_QUALITIES[table]}" if table in _QUALITIES else "jpeg"
    if image.format == "TIFF":
        return "" if image.info.get("compression") in LOSSLESS_TIFF else "lossy"
    return "" if image.format in LOSSLESS else "lossy"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
