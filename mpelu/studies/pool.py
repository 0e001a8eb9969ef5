"""Worker processes that are given one job after the other, and outlive neither their jobs' crashes nor their parent."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias

from mpelu.errors import MpeluError
from mpelu.train.recipe import Recipe

Report: TypeAlias = Callable[[Mapping[str, Any]], None]
"""What a job calls when it has come further; what it says must be picklable."""
RETRIES = 2
TRANSIENT = (OSError, MemoryError, RuntimeError)
"""Errors that may be gone the next time. Others say that the job itself is wrong."""


@dataclass(frozen=True)
class Task:
    """Something that a worker can do.

    Attributes:
        name: By which its caller knows it again.
        work: Called in a worker with a function to report by, returns the result; both are picklable.
    """

    name: str
    work: Callable[[Report], Any]


@dataclass(frozen=True)
class Event:
    """What became of a task.

    Attributes:
        kind: ``started``; ``reported``, with what the job says in ``value``; ``finished``, with the result there;
            ``retried`` and ``failed``, with the reason there; ``stopped``, because :func:`run_tasks` was asked to.
        task: The task.
        value: See ``kind``.
        seconds: Of a finished task, how long its worker was at it.
    """

    kind: Literal["started", "reported", "finished", "retried", "failed", "stopped"]
    task: Task
    value: Any = None
    seconds: float = 0.0


class _Worker:
    """A process, and the task that it has."""

    def __init__(self, environment: Mapping[str, str], threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, other_end = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(other_end, dict(environment), threads))
        self.process.start()
        other_end.close()  # or the death of the process would not end the connection
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        """Hand over a task; if the process is dead, that is the next news of it."""
        self.task = task
        with suppress(OSError):
            self.connection.send(task)

    def has_news(self) -> bool:
        return self.connection.poll() or not self.process.is_alive()

    def hear(self) -> tuple[str, Any, float] | None:
        """Return the next message, None if there is none; to be called when there is news."""
        try:
            message: tuple[str, Any, float] | None = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            return None
        return message

    def close(self) -> str:
        """Wait until the process has ended, and return how it ended."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        if code >= 0:
            return f"its worker ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


class _Crew:
    """The workers by their places, and the tasks that have to be begun again."""

    def __init__(self, environments: Sequence[Mapping[str, str]], on_event: Callable[[Event], None]) -> None:
        self._environments = environments
        self._threads = max(1, (os.cpu_count() or 1) // len(environments)) if environments[0] else 1
        self._on_event = on_event
        self._workers: dict[int, _Worker] = {}
        self._again: deque[Task] = deque()
        self._tries: dict[str, int] = {}

    def busy(self) -> dict[int, _Worker]:
        """Return the workers that have a task, by their places."""
        return {place: worker for place, worker in self._workers.items() if worker.task is not None}

    def employ(self, next_task: Callable[[], Task | None]) -> None:
        """Give each idle worker a task, as long as there are any; processes start when they are needed."""
        places = range(len(self._environments))
        for place in sorted(set(places) - self.busy().keys(), key=lambda place: place not in self._workers):
            task = self._again.popleft() if self._again else next_task()
            if task is None:
                return
            if place not in self._workers:
                self._workers[place] = _Worker(self._environments[place], self._threads)
            self._workers[place].give(task)
            self._on_event(Event("started", task))

    def attend(self, timeout: float) -> bool:
        """Wait for news of the workers and take them in; True if one has become free."""
        busy = self.busy()
        connection.wait([worker.connection for worker in busy.values()], timeout=timeout)
        free = False
        for place, worker in busy.items():
            while worker.task is not None and worker.has_news():
                self._hear(place, worker, worker.task)
            free |= worker.task is None
        return free

    def _hear(self, place: int, worker: _Worker, task: Task) -> None:
        kind, value, extra = worker.hear() or ("died", None, 0.0)
        if kind == "reported":
            self._tries[task.name] = 0
            self._on_event(Event("reported", task, value))
            return
        worker.task = None
        if kind == "finished":
            self._on_event(Event("finished", task, value, extra))
        elif kind == "failed" and not extra:
            self._on_event(Event("failed", task, value))
        else:
            self._begin_again(place, task, value)

    def _begin_again(self, place: int, task: Task, reason: str | None) -> None:
        """Have another worker begin a task anew, unless that was done too often."""
        end = self._workers.pop(place).close()
        self._tries[task.name] = self._tries.get(task.name, 0) + 1
        hopeful = self._tries[task.name] <= RETRIES
        if hopeful:
            self._again.append(task)
        self._on_event(Event("retried" if hopeful else "failed", task, reason or end))

    def stop(self) -> None:
        """Have all workers save their state and end, and wait for them."""
        for worker in self._workers.values():
            worker.process.terminate()
        stopped = [worker.task for worker in self.busy().values() if worker.task is not None]
        self.dismiss()
        for task in stopped:
            self._on_event(Event("stopped", task))

    def dismiss(self) -> None:
        """Let idle workers end, and wait for them."""
        for worker in self._workers.values():
            worker.connection.close()
        while self._workers:
            self._workers.popitem()[1].close()


def run_tasks(
    next_task: Callable[[], Task | None],
    *,
    workers: int,
    device: str = "cpu",
    on_event: Callable[[Event], None] = lambda _: None,
    on_poll: Callable[[], bool | None] = lambda: None,
    poll_seconds: float = 0.5,
) -> None:
    """Have tasks done, several at once, each worker one after the other.

    A worker has one thread on a CPU: several single-threaded runs side by side are faster than one run on all cores.
    On GPUs, each worker sees one of them. A task whose worker dies, or which fails with an error that may be gone the
    next time, is begun again in another worker, twice at most unless it came further in between. If this process dies,
    however that happens, the workers save their state and end.

    Args:
        next_task: Called when a worker is free; None leaves the worker idle until another task ends.
        workers: Number of processes; they start when they are needed.
        device: ``cpu``, ``cuda`` or ``auto``.
        on_event: Called with what became of the tasks.
        on_poll: Called about every ``poll_seconds``; True stops the workers, whose trainings save their state.
        poll_seconds: See ``on_poll``.

    Raises:
        KeyboardInterrupt: If SIGINT arrived; SIGTERM ends in SystemExit(143). The workers save their state first.
    """
    crew = _Crew(environments_of(device, workers), on_event)
    with _terminable():
        try:
            crew.employ(next_task)
            while crew.busy():
                free = crew.attend(poll_seconds)
                if on_poll():
                    crew.stop()
                    return
                if free:  # only then is there anything new to do
                    crew.employ(next_task)
        except BaseException:
            crew.stop()
            raise
        crew.dismiss()


def environments_of(device: str, workers: int) -> tuple[dict[str, str], ...]:
    """Return what is set in the environment of each worker, so that it sees one GPU; nothing on a CPU.

    Raises:
        MpeluError: If cuda was asked for and there is none.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return assign(range(workers), gpus_of(device), visible)


def gpus_of(device: str) -> int:
    """Return how many GPUs a study on a device has; 0 on a CPU."""
    if device == "cpu":
        return 0
    import torch

    found = torch.cuda.device_count()
    if device == "cuda" and not found:
        raise MpeluError("device cuda was asked for, but torch finds none; use --device cpu")
    return found


def assign(places: Sequence[int], gpus: int, visible: str | None = None) -> tuple[dict[str, str], ...]:
    """Deal GPUs out to workers in turn.

    Args:
        places: Of the workers.
        gpus: How many there are.
        visible: ``CUDA_VISIBLE_DEVICES`` of this process, None if it is not set.

    Example:
        >>> assign(range(3), 2)
        ({'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '1'}, {'CUDA_VISIBLE_DEVICES': '0'})
        >>> assign(range(2), 2, visible="4,6")
        ({'CUDA_VISIBLE_DEVICES': '4'}, {'CUDA_VISIBLE_DEVICES': '6'})
        >>> assign(range(2), 0)
        ({}, {})
    """
    if not gpus:
        return tuple({} for _ in places)
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(gpus)]
    return tuple({"CUDA_VISIBLE_DEVICES": names[place % gpus]} for place in places)


def _serve(tasks: Connection, environment: Mapping[str, str], threads: int) -> None:
    """Do tasks until there are no more."""
    start_worker()
    os.environ.update(environment)  # before CUDA starts

    import torch

    from mpelu.train.loop import StoppedError

    torch.set_num_threads(threads)
    while True:
        try:
            task: Task = tasks.recv()
        except EOFError:
            return
        started = time.perf_counter()
        try:
            value = task.work(partial(_report, tasks))
        except StoppedError as error:  # the state is saved; a worker that only reported it would wait for more work
            os._exit(128 + error.signal_number)
        except Exception as error:  # whatever it is, it ends this task and no other
            known = isinstance(error, MpeluError)
            text = " ".join(str(error).split())
            again = isinstance(error, TRANSIENT)
            _tell(tasks, "failed", text if known else f"{type(error).__name__}: {text}", again)
            if again:  # in another process: this one may have been left in disorder
                return
        else:
            _tell(tasks, "finished", value, time.perf_counter() - started)


def _report(tasks: Connection, message: Mapping[str, Any]) -> None:
    _tell(tasks, "reported", message)


def _tell(tasks: Connection, kind: str, value: Any, extra: float = 0.0) -> None:
    with suppress(BrokenPipeError):  # the parent is dead, and soon this process will be told to end
        tasks.send((kind, value, extra))


def start_worker() -> None:
    """Make this process end with its parent, and quietly at Ctrl-C, which its parent hears as well."""
    threading.Thread(target=_end_with_parent, daemon=True).start()  # first: importing torch takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning, to all processes of a task; the parent acts on it


def _end_with_parent() -> None:
    """Send this process SIGTERM once its parent is dead, which an idle worker would not notice in any other way.

    More than once, because a run that is past its last step takes no heed, and after it comes the next one.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the workers are told as well."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Job:
    """One run: a recipe, a seed, and the folder that the run will have."""

    recipe: Recipe
    seed: int
    folder: Path


def run_all(
    jobs: Sequence[Job],
    *,
    runs: Path,
    study: str,
    workers: int,
    device: str = "cpu",
    on_change: Callable[[], None] = lambda: None,
    poll_seconds: float = 0.5,
) -> list[dict[str, Any]]:
    """Run every job that has no record yet and return the records in the order of the jobs.

    See :func:`run_tasks`. Jobs are started in the given order, so the longest should stand first.

    Args:
        jobs: What to run.
        runs: Folder of all runs.
        study: Name of the study; stands in the folder and in the record.
        workers: Number of processes.
        device: ``cpu``, ``cuda`` or ``auto``.
        on_change: Called about every ``poll_seconds``, for a live table.
        poll_seconds: See ``on_change``.

    Raises:
        MpeluError: If runs failed; the others are finished, and the same call continues.
    """
    from mpelu.studies.work import train

    tasks = [
        Task(str(index), partial(train, recipe=job.recipe, seed=job.seed, runs=runs, study=study, device=device))
        for index, job in enumerate(jobs)
    ]
    records: dict[str, dict[str, Any]] = {}
    failures: list[str] = []

    def note(event: Event) -> None:
        if event.kind == "finished":
            records[event.task.name] = event.value
        elif event.kind == "failed":
            failures.append(f"{jobs[int(event.task.name)].folder}: {event.value}")

    waiting = iter(tasks)
    run_tasks(
        lambda: next(waiting, None),
        workers=workers,
        device=device,
        on_event=note,
        on_poll=on_change,
        poll_seconds=poll_seconds,
    )
    if failures:
        raise MpeluError(
            f"{len(failures)} of {len(jobs)} runs failed; run the same command again to continue, with fewer --workers "
            f"if memory was short. {'; '.join(failures)}"
        )
    return [records[task.name] for task in tasks]
