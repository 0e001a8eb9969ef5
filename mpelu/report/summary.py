"""Records of runs, grouped by recipe, and the numbers that a table shows for each group."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mpelu.errors import DataError

Record: TypeAlias = Mapping[str, Any]

SCHEMA = 1
OUTCOMES = ("finished", "diverged")
REQUIRED_KEYS = (
    "study", "recipe", "hash", "seed", "outcome", "reason", "steps", "config", "data", "scale", "model",
    "last", "best", "history", "wall_seconds", "images_per_second", "state_sha256", "environment",
)  # fmt: skip
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "seed": int, "config": dict, "data": dict, "last": (dict, type(None)), "best": (dict, type(None)), "history": list,
}  # fmt: skip
MEASUREMENT_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "function": str, "options": dict, "seed": int, "version": int, "data": (dict, type(None)), "values": dict,
}  # fmt: skip
"""What stands in a record under some keys, of a training and of a measurement."""


@dataclass(frozen=True)
class Spread:
    """One number over n seeds: the best (least), the mean, and the sample standard deviation if n >= 2."""

    best: float
    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Divergence:
    """A run that did not come to its end: which seed, after how many steps, and why."""

    seed: int
    steps: int
    reason: str


@dataclass(frozen=True)
class Summary:
    """The runs of one recipe on one data set at one scale.

    Test errors, train loss and both speeds are over the finished runs; a run that diverged is listed in ``diverged``
    and enters no mean. ``last_epoch`` and ``best_epoch`` are None when no run finished. ``train_loss`` is the median
    over seeds of the last epoch's, ``wall_seconds`` and ``images_per_second`` are medians over seeds.
    """

    study: str
    recipe: str
    run_hash: str
    data: str
    data_sha256: str
    classes: int
    scale: str
    last_epoch: Spread | None
    best_epoch: Spread | None
    train_loss: float | None
    diverged: tuple[Divergence, ...]
    parameters: int
    wall_seconds: float | None
    images_per_second: float | None
    runs: tuple[Record, ...] = field(repr=False, compare=False)


def summarize(records: Iterable[Record]) -> tuple[Summary, ...]:
    """Return one summary for each (study, recipe, hash, data set, scale), in the order in which they first occur.

    Raises:
        DataError: If there is no record, one that this version does not read, or a seed twice in a group.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        check_record(record)
        groups.setdefault(_group_key(record), []).append(record)
    if not groups:
        raise DataError("a report needs the record of at least one run, got none: train a recipe first")
    return tuple(_summarize_group(sorted(runs, key=lambda run: run["seed"])) for runs in groups.values())


def check_record(record: Record) -> None:
    """Raise DataError unless the record has the schema, the keys and the outcome that the report reads."""
    name = f"record {record.get('recipe', '?')!r} (seed {record.get('seed', '?')})"
    if record.get("schema") != SCHEMA:
        raise DataError(
            f"{name} must have schema {SCHEMA}, got {record.get('schema')!r}: "
            "report it with the version of mpelu that wrote it"
        )
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        raise DataError(f"{name} lacks {', '.join(missing)}: the file is not a complete result; run the recipe again")
    _check_kinds(record, KINDS, name)
    if record["outcome"] not in OUTCOMES:
        raise DataError(
            f"{name} must have the outcome {' or '.join(OUTCOMES)}, got {record['outcome']!r}: run the recipe again"
        )


def check_measurement(record: Record) -> None:
    """Raise DataError unless the record of a measurement has what the studies read."""
    name = f"record of {record.get('function', '?')!r} (seed {record.get('seed', '?')})"
    missing = [key for key in MEASUREMENT_KINDS if key not in record]
    if missing:
        raise DataError(f"{name} lacks {', '.join(missing)}: the file is not a complete result; take the line out")
    _check_kinds(record, MEASUREMENT_KINDS, name)


def _check_kinds(record: Record, kinds: Mapping[str, type | tuple[type, ...]], name: str) -> None:
    wrong = [f"{key} is {record[key]!r:.60}" for key, kind in kinds.items() if not isinstance(record[key], kind)]
    if wrong:
        raise DataError(f"{name} is damaged: {'; '.join(wrong)}; take the line out and run it again")


def finite(value: object) -> float | None:
    """Return the number, or None for null, nan and infinity.

    Example:
        >>> finite(2), finite(None), finite(float("nan"))
        (2.0, None, None)
    """
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def spread(values: Sequence[float]) -> Spread | None:
    """Return best, mean and sample standard deviation (divisor n - 1) of one number over seeds; None without a value.

    Example:
        >>> spread([4.0, 6.0])
        Spread(best=4.0, mean=5.0, sd=1.4142135623730951, n=2)
        >>> spread([4.0]).sd is None
        True
    """
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) >= 2 else None
    return Spread(best=min(values), mean=statistics.fmean(values), sd=sd, n=len(values))


def labels(summaries: Sequence[Summary]) -> tuple[str, ...]:
    """Return a name for each summary: its recipe, and where a recipe occurs twice also what tells the two apart."""
    return tuple(_label(summary, summaries) for summary in summaries)


_DISTINCTIONS: tuple[Callable[[Summary], str], ...] = (
    lambda summary: summary.data,
    lambda summary: f"scale {summary.scale}",
    lambda summary: summary.study,
    lambda summary: summary.run_hash,
    lambda summary: f"data {summary.data_sha256[:8]}",
)


def _label(summary: Summary, summaries: Sequence[Summary]) -> str:
    alike = [other for other in summaries if other.recipe == summary.recipe]
    parts = []
    for distinction in _DISTINCTIONS:
        closer = [other for other in alike if distinction(other) == distinction(summary)]
        if len(closer) < len(alike):
            parts.append(distinction(summary))
        alike = closer
    return f"{summary.recipe} ({', '.join(parts)})" if parts else summary.recipe


def _group_key(record: Record) -> tuple[str, ...]:
    data = record["data"]
    return (record["study"], record["recipe"], record["hash"], data["name"], data["sha256"], record["scale"])


def _summarize_group(runs: Sequence[Record]) -> Summary:
    first = runs[0]
    _refuse_repeated_seeds(runs)
    finished = [run for run in runs if run["outcome"] == "finished"]
    return Summary(
        study=first["study"],
        recipe=first["recipe"],
        run_hash=first["hash"],
        data=first["data"]["name"],
        data_sha256=first["data"]["sha256"],
        classes=first["data"]["classes"],
        scale=first["scale"],
        last_epoch=spread(_numbers(_at(run, "last", "test_error_percent") for run in finished)),
        best_epoch=spread(_numbers(_at(run, "best", "test_error_percent") for run in finished)),
        train_loss=_median(_numbers(_at(run, "last", "train_loss") for run in finished)),
        diverged=tuple(
            Divergence(seed=run["seed"], steps=run["steps"], reason=run["reason"] or "no reason recorded")
            for run in runs
            if run["outcome"] == "diverged"
        ),
        parameters=first["model"]["parameters"],
        wall_seconds=_median(_numbers(run["wall_seconds"] for run in finished)),
        images_per_second=_median(_numbers(run["images_per_second"] for run in finished)),
        runs=tuple(runs),
    )


def _refuse_repeated_seeds(runs: Sequence[Record]) -> None:
    seeds = [run["seed"] for run in runs]
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        raise DataError(
            f"each seed of {runs[0]['recipe']!r} (hash {runs[0]['hash']}) must occur once, got seed "
            f"{', '.join(map(str, repeated))} more than once: report on one copy of each run"
        )


def _at(run: Record, epoch: str, key: str) -> object:
    row = run[epoch]  # null when the run was over before its first epoch was
    return None if row is None else row[key]


def _numbers(values: Iterable[object]) -> list[float]:
    return [number for value in values if (number := finite(value)) is not None]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
