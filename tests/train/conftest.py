"""A run that takes a second: 96 digits, 9 layers, every source of randomness switched on."""

from pathlib import Path

import pytest

from mpelu.train.recipe import Recipe


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPELU_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small() -> Recipe:
    return Recipe(
        model="plain9",
        width=4,
        batch_norm=True,
        dropout=0.3,
        data="digits",
        limit=96,
        augment="pad4",
        epochs=3,
        batch_size=32,
        lr=0.05,
    )
