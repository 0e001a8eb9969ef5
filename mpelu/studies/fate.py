"""What became of trainings: whether they learn, how far they come, and shares and differences over seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mpelu.report.finding import Finding, Interval, Outcome
from mpelu.report.provenance import is_measurement
from mpelu.report.summary import Record, finite
from mpelu.studies.jobs import Job, Setting, Training, key_of
from mpelu.studies.statistic import all_of, compared, outcome_of, outcome_within, paired_difference, proportion
from mpelu.studies.study import Results, at_its_scale

Fate: TypeAlias = Literal["learns", "flat", "diverged"]
MARGIN = 0.05
"""Nats by which the training loss of the last epoch must lie below that of guessing for a run to have learned."""
MOST = 0.5
"""Most runs do something if the interval of their share lies above it."""
LEARNS = f"A run learns if its training loss in the last epoch is {MARGIN:g} nats or more below that of guessing"
ON_DIGITS = "the images are 1,500 handwritten digits, grey, of 16 pixels"
NUMBERS: dict[str, tuple[str, str]] = {
    "test error": ("test_error_percent", "points"),
    "training error": ("train_error_percent", "points"),
    "training loss": ("train_loss", "nats"),
}
"""Columns of a history and units of differences, by what they are called in a sentence."""


@dataclass(frozen=True)
class Part:
    """A half of a claim: a number, and where the claim has it: above or below a bound, or not further than it from 0.

    A bound of None is the bound of the number.
    """

    interval: Interval | None
    claimed: Literal["above", "below", "within"]
    bound: float | None = None

    @property
    def outcome(self) -> Outcome:
        """What the number says about this half."""
        if self.claimed == "within":
            assert self.bound is not None, "a distance is needed"
            return outcome_within(self.interval, self.bound)
        return outcome_of(self.interval, self.claimed, self.bound)


def fate(record: Record) -> Fate:
    """Return whether a run learned; one whose loss or gradient was not finite diverged."""
    if record["outcome"] != "finished":
        return "diverged"
    last = record["last"]
    loss = finite(last["train_loss"]) if last else None
    return "learns" if loss is not None and loss < math.log(record["data"]["classes"]) - MARGIN else "flat"


def learns(record: Record) -> bool:
    """True where a run learned."""
    return fate(record) == "learns"


def final(record: Record, number: str) -> float:
    """Return a number of the last epoch; a run that diverged counts as one that guesses.

    Args:
        record: Of a training.
        number: A key of :data:`NUMBERS`.
    """
    classes = record["data"]["classes"]
    guessing = math.log(classes) if number == "training loss" else 100.0 * (1.0 - 1.0 / classes)
    last = record["last"] if record["outcome"] == "finished" else None
    value = finite(last[NUMBERS[number][0]]) if last else None
    return guessing if value is None else value


def errors_of(records: Sequence[Record]) -> list[float]:
    """Return the test errors of the last epoch, in percent, of the runs that came to their end."""
    return [final(record, "test error") for record in records if fate(record) != "diverged"]


def share_of(quantity: str, outcomes: Sequence[bool]) -> Interval | None:
    """Return the share of true outcomes, to be compared with one half; None where there are none."""
    return compared(proportion(quantity, sum(outcomes), len(outcomes)), MOST)


def share(
    results: Results,
    quantity: str,
    groups: Sequence[Sequence[Training]],
    holds: Callable[[Record], bool] = learns,
) -> Interval | None:
    """Return the share of runs for which something holds, as :func:`share_of`; None while a group has no run."""
    found = [results.present(group) for group in groups]
    return share_of(quantity, [holds(record) for group in found for record in group]) if all(found) else None


def difference(
    results: Results,
    quantity: str,
    first: Sequence[Training],
    second: Sequence[Training],
    number: str = "test error",
) -> Interval | None:
    """Return by how much the first exceed the second in a number of the last epoch, paired by seed."""
    records = [(results.of(one), results.of(other)) for one, other in zip(first, second, strict=True)]
    pairs = [(final(one, number), final(other, number)) for one, other in records if one and other]
    return paired_difference(
        f"{number} of {quantity}", [a for a, _ in pairs], [b for _, b in pairs], unit=NUMBERS[number][1]
    )


def counts(results: Results, jobs: Sequence[Training]) -> str:
    """Say how many runs have each fate, e.g. "learns 4 of 5, diverged 1 of 5"; empty where nothing was run."""
    fates = [fate(record) for record in results.present(jobs)]
    return ", ".join(f"{each} {fates.count(each)} of {len(fates)}" for each in dict.fromkeys(fates))


def in_words(interval: Interval) -> str:
    """Write an interval for a sentence.

    Example:
        >>> in_words(Interval("runs that learn", "", 1.0, 0.48, 1.0, 5, "Clopper-Pearson, 95 %"))
        'runs that learn: 1.00 (0.48 to 1.00, n = 5)'
    """
    unit = f" {interval.unit}" if interval.unit else ""
    numbers = f"{interval.estimate:.2f}{unit} ({interval.low:.2f} to {interval.high:.2f}, n = {interval.n})"
    return f"{interval.quantity}: {numbers}"


def differing(differs: str, setting: Setting) -> str:
    """Return how runs at a setting differ from the paper's; empty at the paper's scale."""
    if setting.scale == "paper":
        return ""
    return "; ".join(filter(None, (ON_DIGITS if setting.data == "digits" else "", differs)))


def conclude(
    number: int,
    statement: str,
    results: Results,
    jobs: Sequence[Job],
    parts: Sequence[Part],
    *,
    beside: Sequence[Interval | None] = (),
    note: str = "",
    told: str = "",
    differs: str = "",
    data: str = "",
) -> Finding:
    """Return the finding of a claim with several parts, all of which must hold.

    Args:
        number: Of the claim.
        statement: What the paper says.
        results: The records.
        jobs: All trainings of the claim, and measurements if it has some.
        parts: What the verdict rests on.
        beside: Other numbers worth knowing, without a part in the verdict.
        note: A sentence that goes before the numbers.
        told: Another, which follows it.
        differs: How the runs differ from the paper's.
        data: The data set at the paper's scale; empty for the one that the first training names.
    """
    records = results.present(jobs)
    judged = [part.interval for part in parts if part.interval is not None]
    numbers = "; ".join(map(in_words, judged))
    trained = [record for record in records if not is_measurement(record)]
    diverged = sum(fate(record) == "diverged" for record in trained)
    ends = [f"{diverged} of {len(trained)} runs diverged and count as guessing"] if diverged else []
    sentences = [note, told, numbers, *ends] if records else []
    at_paper = data or next((job.recipe.data for job in jobs if isinstance(job, Training)), "")
    found = Finding(
        claim=number,
        statement=statement,
        outcome=all_of([part.outcome for part in parts]),
        evidence=" ".join(f"{sentence[0].upper()}{sentence[1:].rstrip('.')}." for sentence in sentences if sentence),
        intervals=(*judged, *(interval for interval in beside if interval is not None)),
        scale=results.setting.scale,
        data=results.setting.data if results.setting.scale == "cpu" else at_paper,
        runs=tuple(map(key_of, records)),
        differs=differing(differs, results.setting),
    )
    return at_its_scale(found)
