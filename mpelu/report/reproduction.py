"""What all runs together say about the paper: the weightiest finding on each claim, and each table and figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpelu.report.finding import OUTCOMES, Finding, Outcome
from mpelu.report.grid import Cell, Grid, Picture
from mpelu.report.summary import Record

DIGITS = "digits"
"""The built-in images of handwritten digits; every other data set holds natural images."""

PARTS: tuple[tuple[int, int, str, str], ...] = (
    (1, 7, "The function", ""),
    (8, 12, "NIN on CIFAR-10", "cifar10"),
    (13, 20, "The 15-layer network on ImageNet", "imagenet"),
    (21, 34, "Initialization", "imagenet"),
    (35, 37, "CIFAR residual networks with another activation", "cifar10"),
    (38, 46, "MPELU residual blocks", "cifar10"),
    (47, 52, "Against other networks", "cifar10"),
)
"""First claim, last claim and title of each part of the paper's argument, and the images that it rests on."""


ON_IMAGENET = (*(f"table{number}" for number in range(2, 9)), "figure3")
"""Tables and figures that rest on ImageNet; the others rest on CIFAR-10 first of all."""


@dataclass(frozen=True)
class Judged:
    """A claim and all that was found about it.

    Attributes:
        finding: The one that weighs most, see :func:`weight`.
        others: The findings at other settings, in the order of their weight.
    """

    finding: Finding
    others: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A table or a figure of the paper, once for each setting at which there are numbers for it.

    Attributes:
        name: e.g. ``table5``.
        title: Its headline.
        views: The most telling setting first; never empty.
    """

    name: str
    title: str
    views: tuple[Grid | Picture, ...]


@dataclass(frozen=True)
class Reproduction:
    """All claims, tables and figures of the paper, and the records that they rest on.

    Attributes:
        claims: In the order of their numbers.
        exhibits: Tables, then figures.
        records: The records of trainings and measurements by key.
        left_out: How many records of other studies were given and not used.
    """

    claims: tuple[Judged, ...]
    exhibits: tuple[Shown, ...]
    records: Mapping[str, Record]
    left_out: int = 0


def weight(finding: Finding) -> tuple[bool, bool, bool, bool, int, bool]:
    """Return what a finding weighs against another one on the same claim, greater for more.

    Something that was run comes before nothing, the paper's scale (or none, for what is computed) before a shortened
    one, natural images before digits, more seeds before fewer, images like the paper's before others; of what was not
    run, what says why. What the verdict is plays no part.

    Example:
        >>> from mpelu.report.finding import Interval
        >>> one = Interval("x", "", 1.0, 0.5, 1.5, 3, "")
        >>> digits = Finding(1, "", "confirmed", "", (one,), "cpu", "digits")
        >>> photographs = Finding(1, "", "refuted", "", (one,), "cpu", "cifar10")
        >>> weight(photographs) > weight(digits) > weight(Finding(1, "", "not run", "", (), "paper", "cifar10"))
        True
    """
    return (
        finding.outcome != "not run",
        finding.outcome != "not run" or bool(finding.evidence),
        finding.scale != "cpu",
        finding.data != DIGITS,
        min((interval.n for interval in finding.intervals), default=0),
        any(first <= finding.claim <= last and finding.data.startswith(images) for first, last, _, images in PARTS),
    )


def headline(findings: Sequence[Finding]) -> Judged:
    """Return the findings on one claim with the weightiest in front; of those where nothing was run, one is kept.

    Args:
        findings: At least one, all on the same claim.
    """
    ordered = sorted(_distinct(findings), key=weight, reverse=True)
    return Judged(ordered[0], tuple(finding for finding in ordered[1:] if finding.outcome != "not run"))


def counts(claims: Sequence[Judged]) -> dict[Outcome, int]:
    """Return how many claims have each outcome, zeros too.

    Example:
        >>> counts([headline([Finding(1, "", "not run", "", (), "cpu", "")])])
        {'confirmed': 0, 'refuted': 0, 'inconclusive': 0, 'not run': 1}
    """
    found = Counter(claim.finding.outcome for claim in claims)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def nearest_first(views: Sequence[Grid | Picture]) -> list[Grid | Picture]:
    """Return what was shown at several settings by their weight, as of findings: scale, then images."""

    def far(view: Grid | Picture) -> tuple[bool, bool, bool]:
        images = "imagenet" if view.name in ON_IMAGENET else "cifar10"
        return view.scale == "cpu", view.data == DIGITS, not view.data.startswith(images)

    return sorted(views, key=far)


def has_numbers(view: Grid | Picture) -> bool:
    """Return whether a table or picture holds anything of ours, or is drawn from the code itself."""
    if isinstance(view, Picture):
        return bool(view.svg) and (bool(view.runs) or view.scale == "any")
    cells = [cell for row in view.rows for cell in row if isinstance(cell, Cell)]
    return any(cell.ours is not None or cell.runs for cell in cells)


def setting_text(scale: str, data: str) -> str:
    """Write at which scale and on which data a number was made.

    Example:
        >>> setting_text("cpu", "digits"), setting_text("paper", "cifar10"), setting_text("any", "")
        ('scale cpu, digits', 'scale paper, cifar10', 'computed, no data')
    """
    if scale == "any":
        return f"computed, {data}" if data else "computed, no data"
    return f"scale {scale}, {data}" if data else f"scale {scale}, no data"


def counts_by_setting(claims: Sequence[Judged]) -> dict[str, dict[Outcome, int]]:
    """Return the counts of outcomes apart by scale and data; claims for which nothing was run are under ``""``."""
    places: dict[str, list[Judged]] = {}
    for claim in sorted(claims, key=lambda claim: weight(claim.finding)[:4], reverse=True):
        finding = claim.finding
        place = "" if finding.outcome == "not run" else setting_text(finding.scale, finding.data)
        places.setdefault(place, []).append(claim)
    return {place: counts(alike) for place, alike in places.items()}


def parts(claims: Sequence[Judged]) -> tuple[tuple[str, tuple[Judged, ...]], ...]:
    """Return the claims by part of the paper's argument, with the title of the part."""
    found = [
        (title, tuple(claim for claim in claims if first <= claim.finding.claim <= last))
        for first, last, title, _ in PARTS
    ]
    rest = tuple(claim for claim in claims if not PARTS[0][0] <= claim.finding.claim <= PARTS[-1][1])
    return tuple((title, alike) for title, alike in (*found, ("Others", rest)) if alike)


def _distinct(findings: Sequence[Finding]) -> list[Finding]:
    """Drop a finding that says the same as an earlier one from the same runs, whatever setting it was asked at."""
    seen: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        same = (finding.outcome, finding.evidence, finding.intervals, finding.runs, finding.scale)
        seen.setdefault(same, finding)
    return list(seen.values())
