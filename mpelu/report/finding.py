"""What the runs say about one claim of the paper: an outcome, and the intervals that it rests on."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["confirmed", "refuted", "inconclusive", "not run"]
OUTCOMES: tuple[Outcome, ...] = ("confirmed", "refuted", "inconclusive", "not run")


@dataclass(frozen=True)
class Interval:
    """A number with the range that the runs leave it.

    Attributes:
        quantity: What it is, e.g. "test error of ELU minus MPELU".
        unit: Of the number, e.g. "points"; empty for a plain one.
        estimate: The number itself.
        low: Lower end; for a number that was computed, as low as it can be.
        high: Upper end.
        n: Seeds, pairs of seeds, repetitions or evaluated points.
        method: How low and high come about, e.g. "paired Student, 95 %".
        bound: What the claim compares the number with; not given: 0.
    """

    quantity: str
    unit: str
    estimate: float
    low: float
    high: float
    n: int
    method: str
    bound: float | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise ValueError(f"an interval must hold its estimate, got {self.low} <= {self.estimate} <= {self.high}")


@dataclass(frozen=True)
class Finding:
    """A claim and its verdict at one scale on one data set.

    Attributes:
        claim: Its number.
        statement: What the paper says.
        outcome: The verdict; "not run" until there are records.
        evidence: One or two sentences with the numbers.
        intervals: What the verdict rests on; none only where nothing was run.
        scale: ``paper`` or ``cpu``; ``any`` for what is computed and has no scale.
        data: Name of the data set, empty where none is used.
        runs: Keys of the records behind it (:func:`mpelu.studies.jobs.key_of`).
        differs: How this setting differs from the paper's, empty where it does not.
    """

    claim: int
    statement: str
    outcome: Outcome
    evidence: str
    intervals: tuple[Interval, ...]
    scale: str
    data: str
    runs: tuple[str, ...] = ()
    differs: str = ""

    def __post_init__(self) -> None:
        if self.outcome != "not run" and not self.intervals:
            raise ValueError(f"the verdict {self.outcome!r} on claim {self.claim} must rest on an interval, got none")
