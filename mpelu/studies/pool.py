"""Several runs at once, each in a process of its own with one thread."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mpelu.errors import MpeluError
from mpelu.train.recipe import Recipe


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

    Each worker has one thread: on a CPU, several single-threaded runs side by side are faster than one run on all
    cores. Jobs are started in the given order, so the longest should stand first. If this process dies, however that
    happens, the workers save their state and end.

    Args:
        jobs: What to run.
        runs: Folder of all runs.
        study: Name of the study; stands in the folder and in the record.
        workers: Number of processes.
        device: ``cpu``, ``cuda`` or ``auto``.
        on_change: Called about every ``poll_seconds``, for a live table.
        poll_seconds: See ``on_change``.

    Raises:
        MpeluError: If a worker was killed; what is finished or saved stays, the same call continues.
        KeyboardInterrupt: If SIGINT arrived; SIGTERM ends in SystemExit(143). The workers save their state first.
    """
    context = multiprocessing.get_context("spawn")
    with _terminable(), ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures: list[Future[dict[str, Any]]] = [
            pool.submit(_run, job.recipe, seed=job.seed, runs=runs, study=study, device=device) for job in jobs
        ]
        try:
            pending: set[Future[dict[str, Any]]] = set(futures)
            while pending:
                done, pending = wait(pending, timeout=poll_seconds, return_when=FIRST_COMPLETED)
                on_change()
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise MpeluError(
                "a worker process was killed (out of memory?); run the same command again to continue, "
                "with fewer --workers if it happens again"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return [future.result() for future in futures]


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()  # first: importing torch takes seconds

    import torch

    torch.set_num_threads(1)


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


def _run(recipe: Recipe, *, seed: int, runs: Path, study: str, device: str) -> dict[str, Any]:
    from mpelu.train.loop import StoppedError
    from mpelu.train.run import prepare, run

    try:
        return run(prepare(recipe, seed=seed, runs=runs, study=study), study=study, device=device)
    except StoppedError as error:  # the state is saved; a worker that only reported it would wait for more work
        os._exit(128 + error.signal_number)


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
