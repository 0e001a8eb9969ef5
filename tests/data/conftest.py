"""Small made-up data sets on disk."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MPELU_CACHE", str(folder))
    return folder


@pytest.fixture
def random_pixels() -> Callable[..., np.ndarray]:
    def draw(count: int, *, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    return draw


@pytest.fixture
def encode() -> Callable[..., bytes]:
    def to_bytes(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, form, **options)
        return stream.getvalue()

    return to_bytes


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    def write(
        path: Path,
        images: list[bytes | None],
        labels: list[int | None],
        *,
        names: tuple[str, ...] | None = None,
        image_column: str = "img",
        label_column: str = "label",
        plain_bytes: bool = False,
    ) -> Path:
        column = (
            pa.array(images, pa.binary())
            if plain_bytes
            else pa.array(
                [{"bytes": image, "path": None} for image in images],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            )
        )
        table = pa.table({image_column: column, label_column: pa.array(labels, pa.int64())})
        if names is not None:
            features = {
                image_column: {"_type": "Image"},
                label_column: {"names": list(names), "_type": "ClassLabel"},
            }
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=4)
        return path

    return write


@pytest.fixture
def parquet_folder(tmp_path, random_pixels, encode, write_parquet) -> Path:
    """Ten training and five test images of three classes without names, as PNG of 32x32, in the folder ``made-up``."""
    folder = tmp_path / "made-up"
    for split, count, seed in (("train", 10, 1), ("test", 5, 2)):
        images = [encode(pixels) for pixels in random_pixels(count, seed=seed)]
        write_parquet(folder / f"{split}-00000-of-00001.parquet", images, [row % 3 for row in range(count)])
    return folder
