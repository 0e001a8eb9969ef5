"""How things are timed here, and the rows that timings become.

Times are CPU time of the calling thread, so other work on the machine does not count. Candidates take turns in each
round, in reverse order in every second one, so that a drift of the machine meets all of them alike; a ratio is the
median over rounds of the ratio within a round.
"""

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import torch

import mpelu
from mpelu.errors import DataError, UsageError
from mpelu.ops import cpu
from mpelu.train.environment import processor

WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Row:
    """One number with what it depends on."""

    benchmark: str  # "activation", "compiled" or "model"
    subject: str  # the shape, or the network and the batch
    layout: str
    dtype: str
    name: str  # the activation
    metric: str
    value: float
    machine: str
    isa: str
    threads: int
    allocator: str
    torch: str
    mpelu: str
    python: str
    date: str


def setting() -> dict[str, str | int]:
    """Return what every row of this process depends on."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "isa": cpu.instruction_set() or "none",
        "threads": torch.get_num_threads(),
        "allocator": "steady" if os.environ.get("MALLOC_MMAP_THRESHOLD_") else "default",
        "torch": torch.__version__,
        "mpelu": mpelu.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def take_turns(
    candidates: Mapping[str, Callable[[], tuple[float, ...]]], rounds: int
) -> dict[str, list[tuple[float, ...]]]:
    """Run every candidate once a round and return, for each, the seconds of its parts round by round."""
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in candidates}
    for number in range(rounds + WARM_UP_ROUNDS):
        for name in list(candidates)[:: 1 if number % 2 == 0 else -1]:
            parts = candidates[name]()
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(parts)
    return seconds


def ratio(ours: Sequence[tuple[float, ...]], theirs: Sequence[tuple[float, ...]]) -> float:
    """Return the median over rounds of our time divided by theirs."""
    return statistics.median(sum(a) / sum(b) for a, b in zip(ours, theirs, strict=True))


def passes(
    benchmark: str, subject: str, layout: str, dtype: str, seconds: Mapping[str, Sequence[tuple[float, ...]]]
) -> list[Row]:
    """Return three rows for each candidate: its forward and its backward pass, and the ratio of mpelu's time to its."""
    return [
        Row(benchmark, subject, layout, dtype, name, metric, value, **setting())  # type: ignore[arg-type]
        for name, times in seconds.items()
        for metric, value in (
            ("forward ms", 1e3 * min(forward for forward, _ in times)),
            ("backward ms", 1e3 * min(backward for _, backward in times)),
            ("mpelu / it", ratio(seconds["mpelu"], times)),
        )
    ]


clock = time.thread_time


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a CSV file, with a header if it is new."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Row)], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(vars(row) | {"value": f"{row.value:.4g}"} for row in rows)


def read(path: Path) -> list[Row]:
    """Read the rows of a CSV file.

    Raises:
        UsageError: If there is no such file.
        DataError: If it is not one that :func:`append` wrote.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}; 'mpelu bench activation --csv {path}' writes it")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    names = {field.name for field in fields(Row)}
    for number, row in enumerate(found, start=2):
        if set(row) != names or None in row.values():
            raise DataError(f"{path}, line {number}: wanted the columns {', '.join(sorted(names))}")
    return [
        Row(**(row | {"value": float(row["value"]), "threads": int(row["threads"])}))  # type: ignore[arg-type]
        for row in found
    ]
