"""What a worker process does: a training, or a measurement with a run folder and a record of its own."""

import hashlib
import importlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mpelu.errors import DataError, MpeluError, UsageError
from mpelu.studies.jobs import Measurement
from mpelu.studies.pool import Report
from mpelu.train.recipe import Recipe

if TYPE_CHECKING:
    from mpelu.data import Dataset, PhotographSet

FIRST_IMAGES = 32
"""Of a folder, whose sizes are looked at."""


def train(
    report: Report, *, recipe: Recipe, seed: int, runs: Path, study: str, device: str, scale: str | None = None
) -> dict[str, Any]:
    """Train, continue or do nothing, as :func:`mpelu.train.run.run`; reports each epoch."""
    from mpelu.train.records import to_json
    from mpelu.train.run import prepare, run

    dataset = loaded(recipe.data, recipe.preprocess, recipe.resize) if recipe.stream == "off" else None
    prepared = prepare(recipe, seed=seed, runs=runs, study=study, dataset=dataset)
    epochs = prepared.recipe.epochs

    def on_epoch(row: dict[str, Any]) -> None:
        report({"epoch": row["epoch"], "epochs": epochs, "error_percent": row["test_error_percent"]})

    record = run(prepared, study=study, scale=scale, device=device, on_epoch=on_epoch)
    return json.loads(to_json(record))  # type: ignore[no-any-return]  # as it reads in its file


@lru_cache(maxsize=2)
def loaded(data: str, preprocess: str = "none", resize: int | None = None) -> "Dataset":
    """Load a data set, or hand out what this process has loaded: reading CIFAR-10 anew takes more than a second."""
    from mpelu.data import load

    return load(data, preprocess=preprocess, resize=resize)


def named(data: str) -> "Dataset | PhotographSet":
    """Load a data set that fits into memory, or list one of photographs: for its name and its digest."""
    from mpelu.data import find_photographs

    if _have_several_sizes(data):  # reading all of ImageNet to learn that it cannot be held takes hours
        return find_photographs(data)
    try:
        return loaded(data)
    except (DataError, UsageError) as error:
        try:
            return find_photographs(data)
        except (DataError, UsageError):
            raise error from None


def _have_several_sizes(data: str) -> bool:
    """True for a folder of photographs that cannot be held in memory as they are."""
    from mpelu.data import find_photographs
    from mpelu.data.catalog import CATALOG
    from mpelu.data.photographs import sizes_of_first

    if data in CATALOG or not Path(data).expanduser().is_dir():
        return False
    try:
        return len(sizes_of_first(find_photographs(data).train, FIRST_IMAGES)) > 1
    except (DataError, UsageError):  # official CIFAR files are none
        return False


def measure(_: Report, *, measurement: Measurement, runs: Path, study: str, device: str) -> dict[str, Any]:
    """Call the function of a measurement, unless that was done, and return its record, as in ``result.json``.

    Raises:
        UsageError: If there is no such function.
        MpeluError: If another process is at work in the run folder, or nothing can be written there.
    """
    import filelock

    from mpelu.train.checkpoint import write_atomically
    from mpelu.train.records import RESULT, read_result, to_json

    function = function_of(measurement)
    data = named(measurement.data) if measurement.data else None
    digest = _digest(measurement, data.sha256 if data else "")
    folder = runs / study / f"{function.__name__}-{digest}" / f"seed{measurement.seed}"
    if (folder / RESULT).exists():
        return read_result(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MpeluError(f"cannot write to {folder}: {error.strerror}; choose another folder with --runs") from error
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            record = _measured(measurement, function, data, digest, study, device)
            write_atomically(folder / RESULT, to_json(record, indent=2).encode())
    except filelock.Timeout:
        raise MpeluError(f"another process measures in {folder}; wait for it or stop it") from None
    return read_result(folder)


def function_of(measurement: Measurement) -> Callable[..., Any]:
    """Return the function that a measurement names."""
    module, _, name = measurement.function.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"no function {name!r} in a module {module!r} ({error})") from error
    return found


def _measured(
    measurement: Measurement,
    function: Callable[..., Any],
    data: "Dataset | PhotographSet | None",
    digest: str,
    study: str,
    device: str,
) -> dict[str, Any]:
    import torch

    from mpelu.train.environment import describe_environment

    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    environment = describe_environment(torch.device(kind), processes=1)
    started_utc, started = datetime.now(UTC).isoformat(timespec="seconds"), perf_counter()
    values = function(seed=measurement.seed, data=measurement.data, **measurement.options)
    return {
        "schema": 1,
        "kind": "measurement",
        "study": study,
        "function": measurement.function,
        "options": dict(measurement.options),
        "seed": measurement.seed,
        "version": measurement.version,
        "hash": digest,
        "data": {"name": data.name, "sha256": data.sha256} if data else None,
        "outcome": "finished",
        "values": values,
        "wall_seconds": perf_counter() - started,
        "environment": environment | {"started_utc": started_utc},
    }


def _digest(measurement: Measurement, data_sha256: str) -> str:
    made_of = [measurement.function, dict(measurement.options), measurement.version, data_sha256]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
