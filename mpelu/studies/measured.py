"""Claims that rest on measurements: the same steps from records to a finding, for every study of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpelu.report.finding import Finding, Interval, Outcome
from mpelu.report.summary import Record
from mpelu.studies.jobs import Job, Setting, key_of
from mpelu.studies.study import Claim, Results, at_its_scale

QUIET = 2
"""Version of measurements of time. The first ones were taken beside other work; they stay in the results, unused."""


@dataclass(frozen=True)
class Conclusion:
    """What records say: see :class:`mpelu.report.finding.Finding`."""

    outcome: Outcome
    evidence: str
    intervals: tuple[Interval, ...]


def claim(
    number: int,
    statement: str,
    jobs: Callable[[Setting], tuple[Job, ...]],
    conclude: Callable[[Sequence[Record]], Conclusion],
    *,
    differs: Callable[[Setting], str] = lambda _: "",
    has_scale: bool = True,
    data: Callable[[Setting], str] = lambda _: "",
) -> Claim:
    """Return a claim whose verdict follows from the records of its jobs.

    Args:
        number: Of the claim.
        statement: What the paper says.
        jobs: What has to be run.
        conclude: What the records say that there are; called with one at least, in the order of the jobs.
        differs: How a setting differs from the paper's.
        has_scale: False for what is computed: it is the same at every scale.
        data: The data set at a setting, empty where images play no part.
    """

    def judge(results: Results) -> Finding:
        setting = results.setting
        records = results.present(jobs(setting))
        nothing = Conclusion("not run", "No record yet.", ())
        found = conclude(records) if records else nothing
        judged = Finding(
            claim=number,
            statement=statement,
            outcome=found.outcome if found.intervals else "not run",
            evidence=found.evidence,
            intervals=found.intervals,
            scale=setting.scale if has_scale else "any",
            data=data(setting),
            runs=tuple(key_of(record) for record in records),
            differs=differs(setting),
        )
        return at_its_scale(judged)

    return Claim(number, statement, jobs, judge)


def seconds_in_turns(
    candidates: Mapping[str, Callable[[], tuple[float, ...]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Time candidates on one core, where they take turns; see :func:`mpelu.bench.timing.take_turns`.

    Returns:
        What a measurement of time returns: ``seconds``, by candidate, for each round; of several parts, their sum.
    """
    import torch

    from mpelu.bench.timing import take_turns

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = take_turns(candidates, rounds)
    finally:
        torch.set_num_threads(before)
    return {"seconds": {name: [sum(parts) for parts in times] for name, times in found.items()}}


def there(intervals: Iterable[Interval | None]) -> tuple[Interval, ...]:
    """Return the intervals that are not None."""
    return tuple(interval for interval in intervals if interval is not None)


def holds(condition: bool) -> Outcome:
    """Return the outcome of what was computed and can only be so or not."""
    return "confirmed" if condition else "refuted"
