"""Run what claims, tables and figures ask for, and say what came out."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from time import monotonic
from typing import Any, Literal

from mpelu.errors import DataError, UsageError
from mpelu.report.finding import Finding
from mpelu.report.grid import Grid, Picture
from mpelu.report.summary import Record
from mpelu.studies import catalog
from mpelu.studies.jobs import STUDY, Job, Measurement, Scale, Setting, key, key_of
from mpelu.studies.pool import Event, Task, gpus_of, run_tasks
from mpelu.studies.schedule import Schedule, Wanted, choose, in_shard
from mpelu.studies.store import Store, finished_below
from mpelu.studies.study import Claim, Exhibit, Results
from mpelu.studies.work import measure, train
from mpelu.train.recipe import Recipe, recipe_name

DEFAULT_DATA = {"cpu": "digits", "paper": "cifar10"}
OVERRUN = 1.05
"""A budget may be exceeded by so much; then the trainings that still run are stopped, and saved."""

State = Literal["waits", "runs", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        names: Of claims, tables and figures; see :func:`mpelu.studies.catalog.find`.
        scale: ``paper`` or ``cpu``.
        data: At scale ``cpu``, the images; at scale ``paper``, where the data set of that name lies. A name or a path;
            None for the digits, or what the paper took.
        seeds: How many seeds of each training; None for the number that each study has.
        runs: Folder of all runs.
        results: Folder of the files of records.
        device: ``cpu``, ``cuda`` or ``auto``.
        workers: Number of processes.
        budget_seconds: Wall time; None for as long as it takes.
        shard: (i, n): only the i-th of n parts of the jobs.
    """

    names: tuple[str, ...]
    scale: Scale = "cpu"
    data: str | None = None
    seeds: int | None = None
    runs: Path = Path("runs")
    results: Path = Path("results")
    device: str = "auto"
    workers: int = 1
    budget_seconds: float | None = None
    shard: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Plan:
    """The jobs of what is asked for, each once.

    Attributes:
        items: The claims and exhibits.
        setting: With the name of the data set.
        jobs: By key; with the place of the data.
        seconds: That each is expected to take.
        wanted: The keys of each item, by its name.
    """

    items: tuple[Claim | Exhibit, ...]
    setting: Setting
    jobs: Mapping[str, Job]
    seconds: Mapping[str, float]
    wanted: tuple[Wanted, ...]


@dataclass
class Line:
    """Where a job is.

    Attributes:
        name: What it is called in a list.
        state: See :data:`State`.
        epoch: Epochs that are finished.
        epochs: All of them; 0 for a measurement.
        error_percent: On the test set, after the last epoch.
        started: By the clock of :func:`time.monotonic`.
        seconds: How long a finished job was run.
        seconds_to_go: Expected wall time until a running job ends.
        reason: Why it failed, or was begun again.
    """

    name: str
    state: State = "waits"
    epoch: int = 0
    epochs: int = 0
    error_percent: float | None = None
    started: float = 0.0
    seconds: float = 0.0
    seconds_to_go: float = 0.0
    reason: str = ""


@dataclass
class Board:
    """Where every job is.

    Attributes:
        lines: By key, of the jobs without a record when it was begun.
        recorded: How many had a record.
        seconds_to_go: Expected wall time for all that is left.
    """

    lines: dict[str, Line] = field(default_factory=dict)
    recorded: int = 0
    seconds_to_go: float = 0.0

    def named(self, state: State) -> dict[str, Line]:
        """Return the lines of the jobs in a state, by key."""
        return {name: line for name, line in self.lines.items() if line.state == state}


def plan(request: Request) -> Plan:
    """Collect the jobs of what is asked for; nothing is run.

    Raises:
        UsageError: If a name is unknown.
        DataError: If the data set cannot be read.
    """
    items = tuple({item.name: item for name in request.names for item in catalog.find(name)}.values())
    place = request.data or DEFAULT_DATA[request.scale]
    setting = Setting(request.scale, _name_of_data(place), request.seeds)
    jobs: dict[str, Job] = {}
    names: set[str] = set()
    wanted = []
    for item in items:
        asked = {key(job): job for job in item.jobs(setting)}
        names |= {job.data if isinstance(job, Measurement) else job.recipe.data for job in asked.values()}
        asked = {name: job for name, job in asked.items() if in_shard(name, request.shard)}
        jobs |= {name: _placed(job, setting.data, place) for name, job in asked.items() if name not in jobs}
        wanted.append(Wanted(item.name, tuple(asked)))
    if request.data is not None and names - {""} and setting.data not in names:
        raise UsageError(
            f"{request.data} holds {setting.data}, and what is asked for wants {', '.join(sorted(names - {''}))} at "
            f"scale {request.scale}: give a folder with that, or leave out --data"
        )
    return Plan(items, setting, jobs, _expected(jobs), tuple(wanted))


def _name_of_data(place: str) -> str:
    from mpelu.recipes.duration import DATA

    if place in DATA:  # the catalog's names, without torch
        return place

    from mpelu.data import find_photographs, load

    try:
        return load(place).name
    except (UsageError, DataError):
        if not Path(place).is_dir():
            raise
        return find_photographs(place).name


def _placed(job: Job, name: str, place: str) -> Job:
    """Say where the data set of that name lies."""
    if isinstance(job, Measurement):
        return dataclasses.replace(job, data=place) if job.data == name else job
    if job.recipe.data != name:
        return job
    return dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, data=place))


def _expected(jobs: Mapping[str, Job]) -> dict[str, float]:
    from mpelu.recipes.duration import expected_seconds

    known: dict[str, float] = {}

    def seconds(recipe: Recipe) -> float:
        fields = json.dumps(vars(recipe), sort_keys=True)
        if fields not in known:
            known[fields] = expected_seconds(recipe)
        return known[fields]

    return {name: job.seconds if isinstance(job, Measurement) else seconds(job.recipe) for name, job in jobs.items()}


def name_of(job: Job) -> str:
    """Return what a job is called in a list."""
    if isinstance(job, Measurement):
        options = shorten(", ".join(f"{name} {value}" for name, value in job.options.items()), 80, placeholder=" ...")
        return f"{job.function.rpartition(':')[2]}({options}) seed {job.seed}"
    return f"{recipe_name(job.recipe)} seed {job.seed}"


def recorded(request: Request) -> dict[str, Record]:
    """Return the records that there are, in the files of records or in run folders, by key; nothing is written."""
    finished = {key_of(record): record for record in finished_below(request.runs / STUDY)}
    return finished | dict(Store(request.results).records)


def open_store(request: Request, wanted: Plan) -> Store:
    """Open the files of records, and take in the runs that were finished but not recorded."""
    store = Store(request.results)
    known = recorded(request)
    missing = [known[name] for name in wanted.jobs if name in known and name not in store.records]
    if missing:
        store.append(missing)
    return store


def run(
    wanted: Plan,
    store: Store,
    request: Request,
    *,
    on_event: Callable[[Board, str, Event], None] = lambda *_: None,
    on_poll: Callable[[Board], None] = lambda _: None,
    started: float | None = None,
) -> Board:
    """Run the jobs that have no record, and record each when it is finished.

    Args:
        wanted: The jobs.
        store: The records.
        request: How and where.
        on_event: Called with the key of a job that something has become of.
        on_poll: Called about twice a second.
        started: When the budget began, by the clock of :func:`time.monotonic`.

    Returns:
        Where every job is in the end.
    """
    begun = monotonic() if started is None else started
    end = begun + (request.budget_seconds or float("inf"))
    limit = begun + OVERRUN * (request.budget_seconds or float("inf"))
    done = [name for name in wanted.jobs if name in store.records]
    kinds = {name: type(job).__name__ for name, job in wanted.jobs.items()}
    schedule = Schedule(wanted.wanted, wanted.seconds, done, workers=request.workers, kinds=kinds)
    lines = {name: Line(name_of(job)) for name, job in wanted.jobs.items() if name not in store.records}
    board = Board(lines, recorded=len(done))
    first_epochs: dict[str, int] = {}

    def next_task() -> Task | None:
        now = monotonic()
        name = schedule.take(now, end - now)
        return None if name is None else Task(name, _work(wanted.jobs[name], request))

    def note(event: Event) -> None:
        name = event.task.name
        line = board.lines[name]
        if event.kind == "started":
            line.state, line.started = "runs", monotonic()
        elif event.kind == "reported":
            first_epochs.setdefault(name, event.value["epoch"] - 1)
            line.epoch, line.epochs = event.value["epoch"], event.value["epochs"]
            line.error_percent = event.value["error_percent"]
        elif event.kind == "retried":
            line.reason = event.value
            first_epochs.pop(name, None)  # it goes on from its checkpoint
        elif event.kind == "finished":
            line.state, line.seconds = _recorded(store, name, event.value, line), event.seconds
            schedule.ended(name, event.seconds, _share(wanted.jobs[name], line, first_epochs.get(name)))
        else:
            line.state = "failed" if event.kind == "failed" else "stopped"
            line.reason = event.value or ""
            schedule.ended(name)
        on_event(board, name, event)

    def poll() -> bool:
        now = monotonic()
        board.seconds_to_go = schedule.seconds_to_go(now)
        for name, line in board.named("runs").items():
            gone, fresh = now - line.started, line.epoch - first_epochs.get(name, line.epoch)
            rest = schedule.seconds(name) - gone if not fresh else gone / fresh * (line.epochs - line.epoch)
            line.seconds_to_go = max(0.0, rest)
        on_poll(board)
        return now > limit

    if lines:
        run_tasks(next_task, workers=request.workers, device=request.device, on_event=note, on_poll=poll)
    return board


def _work(job: Job, request: Request) -> Callable[[Any], Any]:
    if isinstance(job, Measurement):
        return partial(measure, measurement=job, runs=request.runs, study=STUDY, device=request.device)
    recipe, seed, scale = job.recipe, job.seed, job.scale
    return partial(train, recipe=recipe, seed=seed, runs=request.runs, study=STUDY, device=request.device, scale=scale)


def _recorded(store: Store, name: str, record: dict[str, Any], line: Line) -> State:
    if key_of(record) != name:  # it would be run again and again, and never be found
        line.reason = "its record does not belong to what was asked for: the data set or the network resolves otherwise"
        return "failed"
    store.append([record])
    return "done"


def _share(job: Job, line: Line, first_epoch: int | None) -> float:
    """Return the part of a job that was run just now, 0 if its record was there or is short because it diverged."""
    if isinstance(job, Measurement):
        return 1.0
    return (line.epochs - first_epoch) / line.epochs if first_epoch is not None and line.epoch == line.epochs else 0.0


@dataclass
class Answers:
    """What claims, tables and figures say.

    Attributes:
        findings: Of the claims.
        exhibits: The tables and figures.
        broken: By name, why a claim, table or figure says nothing: its records are not what its study expects.
    """

    findings: list[Finding] = field(default_factory=list)
    exhibits: list[Grid | Picture] = field(default_factory=list)
    broken: dict[str, Exception] = field(default_factory=dict)


def answers(wanted: Plan, records: Mapping[str, Any]) -> Answers:
    """Judge each claim and make each table and figure, from the records that there are."""
    results, found = Results(wanted.setting, records), Answers()
    for item in wanted.items:
        try:
            if isinstance(item, Claim):
                found.findings.append(item.judge(results))
            else:
                found.exhibits.append(item.show(results))
        except Exception as error:  # whatever it is, the others still have something to say
            found.broken[item.name] = error
    return found


def left_out(wanted: Plan, records: Iterable[str]) -> list[tuple[str, int, int]]:
    """Return what lacks records: its name, how many jobs have one, and how many there are."""
    known = set(records)
    return [
        (item.name, len(known.intersection(item.keys)), len(item.keys))
        for item in wanted.wanted
        if not known.issuperset(item.keys)
    ]


def capacity(device: str) -> int:
    """Return how many workers a device feeds: one for each GPU, or one for each core of this machine."""
    return gpus_of(device) or os.cpu_count() or 1


def chosen(wanted: Plan, records: Iterable[str], request: Request) -> frozenset[str]:
    """Return the names of what fits into the budget as things stand; of everything where there is none."""
    if request.budget_seconds is None:
        return frozenset(item.name for item in wanted.wanted)
    missing = set(wanted.jobs).difference(records)
    capacity = request.budget_seconds * request.workers
    fits, _ = choose(wanted.wanted, missing, wanted.seconds, capacity=capacity, longest=request.budget_seconds)
    return frozenset(item.name for item in fits)


def costs(wanted: Plan, records: Iterable[str]) -> Sequence[tuple[Wanted, int, float]]:
    """Return for each item how many jobs lack a record, and the CPU seconds that they take together."""
    known = set(records)
    rows = []
    for item in wanted.wanted:
        missing = [name for name in item.keys if name not in known]
        rows.append((item, len(missing), sum(wanted.seconds[name] for name in missing)))
    return rows
