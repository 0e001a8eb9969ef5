"""A study is a file that names claims, tables and figures of the paper: the jobs behind each, and what they say."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from mpelu.report.finding import Finding
from mpelu.report.grid import Grid, Picture
from mpelu.report.summary import Record
from mpelu.studies.jobs import Job, Setting, key


@dataclass(frozen=True)
class Results:
    """The records at one setting, by key; ``setting.data`` is the name of the data set."""

    setting: Setting
    records: Mapping[str, Record]

    def of(self, job: Job) -> Record | None:
        """Return the record of a job, None if it has not been run."""
        return self.records.get(key(job))

    def present(self, jobs: Iterable[Job]) -> list[Record]:
        """Return the records of those jobs that have been run, in order."""
        return [record for job in jobs if (record := self.of(job)) is not None]


def at_its_scale(finding: Finding) -> Finding:
    """Return a finding whose words say no more than it shows: what scale cpu refutes is refuted there only."""
    if finding.outcome != "refuted" or finding.scale != "cpu":
        return finding
    where = f"at scale cpu on {finding.data}" if finding.data else "at scale cpu on this machine"
    return replace(
        finding, evidence=f"{finding.evidence} Refuted {where}; the paper's own setting was not run.".strip()
    )


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        number: Of the claim, 1 to 52.
        statement: What the paper says, in a sentence.
        jobs: What has to be run at a setting; none where the claim cannot be tested at that scale.
        judge: The verdict, from whichever of the records there are.
    """

    number: int
    statement: str
    jobs: Callable[[Setting], tuple[Job, ...]]
    judge: Callable[[Results], Finding]

    @property
    def name(self) -> str:
        return f"claim{self.number}"


@dataclass(frozen=True)
class Exhibit:
    """A table or a figure of the paper.

    Attributes:
        name: ``table1`` to ``table12``, ``figure1`` to ``figure5``.
        title: Its headline.
        jobs: What has to be run at a setting.
        show: The table or the picture, from whichever of the records there are.
    """

    name: str
    title: str
    jobs: Callable[[Setting], tuple[Job, ...]]
    show: Callable[[Results], Grid | Picture]
