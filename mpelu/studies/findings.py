"""What all studies say about the records at hand, at every setting that occurs among them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mpelu.errors import DataError, MpeluError
from mpelu.report.finding import Finding
from mpelu.report.grid import Grid, Picture
from mpelu.report.provenance import is_measurement
from mpelu.report.reproduction import DIGITS, Reproduction, Shown, has_numbers, headline, nearest_first
from mpelu.report.summary import Record, check_measurement, check_record
from mpelu.studies.jobs import STUDY, Scale, Setting, key, key_of
from mpelu.studies.study import Claim, Exhibit, Results

SCALES: tuple[Scale, ...] = ("paper", "cpu")


def belongs(record: Record) -> bool:
    """Return whether a record was made for a study of the paper."""
    return is_measurement(record) or record.get("study") == STUDY


def reproduction(records: Iterable[Record], *, exhibits: bool = True) -> Reproduction:
    """Return what the studies say about records: each claim, table and figure, judged at every scale on every data set.

    Args:
        records: Of trainings and measurements; those of other studies are counted and left out.
        exhibits: Whether to make tables and figures too, which takes most of the time.

    Raises:
        DataError: If a record cannot be read, or two that differ are of the same run.
    """
    from mpelu.studies import catalog

    given = list(records)
    mine = [record for record in given if belongs(record)]
    by_key = keyed(mine)
    results = [Results(setting, by_key) for setting in settings(mine)]
    return Reproduction(
        claims=tuple(headline(_judged(claim, results)) for claim in catalog.claims()),
        exhibits=tuple(_shown(exhibit, results) for exhibit in catalog.exhibits()) if exhibits else (),
        records=by_key,
        left_out=len(given) - len(mine),
    )


def settings(records: Sequence[Record]) -> tuple[Setting, ...]:
    """Return both scales on each data set of the records, natural images first; the digits if there is none.

    At scale paper the recipes name the data themselves, so that all runs of that scale are found in each setting.
    """
    names = {record["data"]["name"] for record in records if record["data"]} or {DIGITS}
    seeds = 1 + max((record["seed"] for record in records), default=0)
    ordered = sorted(names, key=lambda name: (name == DIGITS, name))
    return tuple(Setting(scale, name, seeds) for scale in SCALES for name in ordered)


def keyed(records: Sequence[Record]) -> dict[str, Record]:
    """Return records by key; one that is given twice is taken once.

    Raises:
        DataError: If a record cannot be read, or two that differ are of the same run.
    """
    found: dict[str, Record] = {}
    for record in records:
        (check_measurement if is_measurement(record) else check_record)(record)
        same = found.setdefault(key_of(record), record)
        if _told(same) != _told(record):
            name = record["function"] if is_measurement(record) else record["recipe"]
            raise DataError(
                f"two records of {name!r} with seed {record['seed']} (hash {record['hash']}) differ: leave out the "
                "file or folder of one of them"
            )
    return found


def _told(record: Record) -> tuple[object, ...]:
    """Return what two copies of a record have in common, and two runs of one recipe have not."""
    told = ("outcome", "steps", "state_sha256", "values", "wall_seconds")
    return tuple(record.get(name) for name in told)


def _judged(claim: Claim, results: Sequence[Results]) -> list[Finding]:
    findings: list[Finding] = []
    for each in results:
        with _named(claim.name, each):
            findings.append(_as_far(claim.judge(each), claim, each))
        if _is_computed(findings[-1]):
            break
    return findings


def _as_far(finding: Finding, claim: Claim, results: Results) -> Finding:
    """Return a finding that says how many runs of its claim are missing, with as many seeds as the claim has itself."""
    if finding.outcome == "not run":
        return finding
    jobs = {key(job) for job in claim.jobs(replace(results.setting, seeds=None))}
    missing = len(jobs - results.records.keys())
    if not missing:
        return finding
    told = f"{missing} of {len(jobs)} runs of this claim are missing here, so that more may change the verdict."
    return replace(finding, evidence=f"{finding.evidence} {told}".strip())


def _shown(exhibit: Exhibit, results: Sequence[Results]) -> Shown:
    views: list[Grid | Picture] = []
    for each in results:
        with _named(exhibit.name, each):
            view = exhibit.show(each)
        if not any(_same(view, other) for other in views):
            views.append(view)
        if _is_computed(view):
            break
    told = [view for view in views if has_numbers(view)]
    return Shown(exhibit.name, exhibit.title, tuple(nearest_first(told) or views[:1]))


def _is_computed(found: Finding | Grid | Picture) -> bool:
    """Return whether something has neither a scale nor data, and so is the same at every setting."""
    return found.scale == "any" and not found.data


@contextmanager
def _named(name: str, results: Results) -> Iterator[None]:
    try:
        yield
    except MpeluError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        setting = results.setting
        raise DataError(
            f"{name} cannot be told from its records at scale {setting.scale} on {setting.data} "
            f"({type(error).__name__}: {error}): one of them is not what the study wrote; take it out and run it again"
        ) from error


def _same(one: Grid | Picture, other: Grid | Picture) -> bool:
    if isinstance(one, Grid) and isinstance(other, Grid):
        return one.rows == other.rows and one.scale == other.scale
    if isinstance(one, Picture) and isinstance(other, Picture):
        return one.svg == other.svg
    return False
