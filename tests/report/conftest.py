"""Made-up records for the tests of the report: plain dicts as result.json holds them."""

import math
from collections.abc import Callable
from typing import Any

import pytest


def _history_row(epoch: int, train_loss: float | None, test_error_percent: float | None) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "lr": 0.02,
        "train_loss": train_loss,
        "train_error_percent": test_error_percent,
        "test_loss": train_loss,
        "test_error_percent": test_error_percent,
        "wall_seconds": 1.0,
        "images_per_second": 1500.0,
    }


def _make_record(
    recipe: str = "plain30-mpelu-eq22",
    *,
    seed: int = 0,
    errors: tuple[float | None, ...] = (50.0, 10.0, 12.0),
    losses: tuple[float | None, ...] = (2.0, 1.0, 0.5),
    diverged: str | None = None,
    data: str = "digits",
    classes: int = 10,
    scale: str = "cpu",
    run_hash: str = "1a2b3c4d",
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    history = [
        _history_row(epoch, loss, error)
        for epoch, (loss, error) in enumerate(zip(losses, errors, strict=True), start=1)
    ]
    complete = [row for row in history if row["test_error_percent"] is not None]
    return {
        "schema": 1,
        "study": "demo",
        "recipe": recipe,
        "hash": run_hash,
        "seed": seed,
        "outcome": "diverged" if diverged else "finished",
        "reason": diverged,
        "steps": 47 * len(history),
        "config": {"model": "plain30", "activation": "mpelu", "lr": 0.02, "epochs": len(history), **(config or {})},
        "data": {
            "name": data,
            "sha256": (data.encode().hex() + "0" * 64)[:64],
            "train_images": 1500,
            "test_images": 297,
            "classes": classes,
        },
        "scale": scale,
        "model": {"parameters": 123456},
        "last": complete[-1] if complete else None,
        "best": min(complete, key=lambda row: row["test_error_percent"]) if complete else None,
        "history": history,
        "wall_seconds": 9.26,
        "cpu_seconds": 9.0,
        "images_per_second": 1620.4,
        "state_sha256": f"{seed:02d}" * 32,
        "environment": {
            "mpelu": "0.1.0",
            "commit": None,
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "platform": "Linux-6.1-x86_64",
            "device": "cpu",
            "device_name": "a processor",
            "threads": 1,
            "processes": 1,
            "started_utc": "2026-01-02T03:04:05Z",
        },
    }


def _made_up_study(seeds: int = 3) -> list[dict[str, Any]]:
    """One flat recipe, three that learn, and one that diverges in its fourth epoch."""
    learning = {"plain30-elu-lsuv": (0.35, 0), "plain30-mpelu-lsuv": (0.5, 3), "plain30-mpelu-eq22": (0.62, 6)}
    records = [_flat("plain30-relu-gaussian", seed) for seed in range(seeds)]
    for recipe, (rate, phase) in learning.items():
        records += [_falling(recipe, seed, rate * (1 + 0.06 * seed), phase) for seed in range(seeds)]
    losses = (2.4, 2.9, 7.2, None)
    records.append(
        _make_record(
            "plain30-relu-he-lr1",
            losses=losses,
            errors=(88.0, 89.9, 90.2, None),
            diverged="loss is nan at step 167",
            run_hash="77aa1122",
            config={"activation": "relu", "init": "he", "lr": 1.0, "epochs": 10},
        )
    )
    return records


def _flat(recipe: str, seed: int) -> dict[str, Any]:
    losses = tuple(math.log(10) + 0.004 * math.sin(epoch + seed) for epoch in range(10))
    config = {"activation": "relu", "init": "gaussian", "init_std": 0.01}
    return _make_record(recipe, seed=seed, losses=losses, errors=(89.9,) * 10, run_hash="00ff00ff", config=config)


def _falling(recipe: str, seed: int, rate: float, phase: int) -> dict[str, Any]:
    epochs = range(1, 11)
    losses = tuple(2.3 * math.exp(-rate * epoch) + 0.01 for epoch in epochs)
    errors = tuple(86 * math.exp(-rate * epoch) + 3.5 + 0.4 * math.sin(epoch + phase + seed) for epoch in epochs)
    config = {
        "activation": recipe.split("-")[1],
        "init": recipe.split("-")[2],
        "init_std": 0.01,
        "alpha": 1.0,
        "beta": 1.0,
    }
    return _make_record(recipe, seed=seed, losses=losses, errors=errors, run_hash=f"{phase:08x}", config=config)


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    return _make_record


@pytest.fixture
def study_records() -> list[dict[str, Any]]:
    return _made_up_study()
