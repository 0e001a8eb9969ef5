"""Shards of a study as tasks of a Slurm array, through submitit. Each task has workers of its own."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpelu.errors import MpeluError, UsageError
from mpelu.studies import reproduce
from mpelu.studies.reproduce import Request


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What each task of the array is given.

    Attributes:
        tasks: Number of tasks, and of shards.
        partition: Of the cluster; None for its default.
        minutes: Wall time; a task that is cut off saves its runs and is queued again.
        cpus: Cores, and on a CPU as many workers.
        gpus: GPUs, and on a GPU as many workers.
    """

    tasks: int = 4
    partition: str | None = None
    minutes: int = 240
    cpus: int = 4
    gpus: int = 0

    def __post_init__(self) -> None:
        limits = {"tasks": 1, "minutes": 1, "cpus": 1, "gpus": 0}
        problems = [
            f"--slurm_{name} must be at least {least}, got {getattr(self, name)}"
            for name, least in limits.items()
            if getattr(self, name) < least
        ]
        if problems:
            raise UsageError("; ".join(problems))


class ShardRun:
    """Runs one shard of a request, in whichever process it is called.

    Args:
        request: What is asked for; its paths are absolute.
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    def __call__(self, shard: tuple[int, int]) -> dict[str, str]:
        """Run the i-th of n shards and return why jobs failed, by their names."""
        request = dataclasses.replace(self._request, shard=shard)
        plan = reproduce.plan(request)
        board = reproduce.run(plan, reproduce.open_store(request, plan), request)
        return {line.name: line.reason for line in board.named("failed").values()}

    def checkpoint(self, shard: tuple[int, int]) -> Any:
        """Return what submitit queues when the task is cut off: the same shard, whose runs continue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, shard)


def slurm_executor(cluster: Cluster, folder: Path) -> Any:
    """Return submitit's executor for Slurm.

    Args:
        cluster: What each task is given.
        folder: For the scripts and the output of the tasks; all machines must see it.

    Raises:
        UsageError: If submitit is not installed or this machine cannot submit to Slurm.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--launcher slurm needs submitit: pip install 'mpelu[slurm]'") from error
    missing = [program for program in ("sbatch", "srun") if shutil.which(program) is None]
    if missing:
        raise UsageError(f"--launcher slurm needs {' and '.join(missing)} on PATH; use --launcher local")
    executor = submitit.SlurmExecutor(folder)
    optional = {"partition": cluster.partition, "gpus_per_node": cluster.gpus or None}
    executor.update_parameters(
        job_name="mpelu",
        time=cluster.minutes,
        cpus_per_task=cluster.cpus,
        **{name: value for name, value in optional.items() if value is not None},
    )
    return executor


def launch(
    request: Request,
    executor: Any,
    tasks: int,
    *,
    work: Callable[[Request], Callable[[tuple[int, int]], dict[str, str]]] = ShardRun,
    on_submitted: Callable[[list[str]], None] = lambda _: None,
) -> dict[str, str]:
    """Submit a request in shards, wait for all of them, and return why jobs failed, by their names.

    Args:
        request: What is asked for.
        executor: Of submitit.
        tasks: Number of shards.
        work: Makes of a request what is called in a task.
        on_submitted: Called with the numbers of the submitted tasks.

    Raises:
        MpeluError: If they cannot be submitted.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

    data = request.data
    if data is not None and Path(data).exists():
        data = str(Path(data).absolute())
    everywhere = dataclasses.replace(
        request, runs=request.runs.absolute(), results=request.results.absolute(), data=data
    )
    shards = [(index, tasks) for index in range(1, tasks + 1)]
    try:
        jobs = executor.map_array(work(everywhere), shards)
    except (FailedJobError, FailedSubmissionError) as error:
        raise MpeluError(f"sbatch refused the tasks: {' '.join(str(error).split())}") from error
    on_submitted([job.job_id for job in jobs])
    failed: dict[str, str] = {}
    for shard, job in zip(shards, jobs, strict=True):
        try:
            failed |= job.result()
        except UncompletedJobError as error:
            *_, reason = str(error).strip().splitlines() or ["no reason is known"]
            failed[f"shard {shard[0]}/{shard[1]}"] = f"{reason.strip()} (see {job.paths.stderr})"
    return failed
