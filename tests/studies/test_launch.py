import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import submitit

from mpelu.cli import main
from mpelu.errors import MpeluError, UsageError
from mpelu.studies import launch as launching
from mpelu.studies.jobs import key
from mpelu.studies.launch import Cluster, ShardRun, launch, slurm_executor
from mpelu.studies.reproduce import Request
from mpelu.studies.store import Store
from tests.studies import fake

ROOT = Path(__file__).parents[2]
NUMBERS = tuple(range(1, 9))


class FakeShard(ShardRun):
    """A shard of the study of the tests, in a process that knows only the real ones."""

    def __call__(self, shard: tuple[int, int]) -> dict[str, str]:
        fake.install((fake.claim(1, (*fake.squares(NUMBERS), fake.Measurement(f"{fake.HERE}:nothing"))),), ())
        return super().__call__(shard)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def check(failed: dict[str, str], place: Path) -> None:
    assert list(failed) == ["nothing() seed 0"]
    assert Store(place / "results").records.keys() == set(map(key, fake.squares(NUMBERS)))


@pytest.mark.slow
def test_a_shard_runs_as_a_job_of_submitit(place):
    executor = submitit.LocalExecutor(place / "jobs")
    executor.update_parameters(timeout_min=10)
    check(launch(Request(("claim1",), device="cpu"), executor, 1, work=FakeShard), place)


SBATCH = """#!/usr/bin/env python3
import os, re, subprocess, sys
text = open(sys.argv[1]).read()
last = int(re.search(r"--array=0-(\\d+)", text)[1])
print("Submitted batch job 4711")
for task in range(last + 1):
    environment = {"SLURM_JOB_ID": str(4711 + task), "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": str(task)}
    log = open(f"task{task}.log", "w")
    subprocess.Popen(["bash", sys.argv[1]], env=os.environ | environment, stdout=log, stderr=log)
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do
  case "$1" in --unbuffered) shift ;; *) shift 2 ;; esac
done
exec "$@"
"""


@pytest.fixture
def cluster(place, monkeypatch):
    """Put programs on PATH that stand in for those of a cluster: tasks run at once, in the background."""
    (place / "bin").mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": "#!/bin/sh\n"}.items():
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.slow
def test_shards_run_as_tasks_of_a_slurm_array(place, cluster):
    executor = slurm_executor(Cluster(tasks=2, partition="short", minutes=7, cpus=3, gpus=1), place / "jobs")
    submitted = []
    failed = launch(Request(("claim1",), device="cpu"), executor, 2, work=FakeShard, on_submitted=submitted.extend)
    check(failed, place)
    assert submitted == ["4711_0", "4711_1"]
    (script,) = (file for file in (place / "jobs").rglob("*submission.sh") if not file.is_symlink())
    for flag in ("partition=short", "time=7", "cpus-per-task=3", "gpus-per-node=1", "array=0-1"):
        assert f"#SBATCH --{flag}" in script.read_text()


def test_command_waits_for_the_tasks_and_judges(place, cluster, monkeypatch, capsys):
    """What the tasks leave in the files of records is what counts; one that fails is named."""
    monkeypatch.setattr(fake.catalog, "STUDIES", ("fake",))
    monkeypatch.setitem(sys.modules, "mpelu.studies.fake", fake)

    def stand_in(request, executor, tasks, *, on_submitted):
        assert (request.workers, tasks) == (3, 2)
        on_submitted(["1_0", "1_1"])
        records = [
            {
                "schema": 1, "kind": "measurement", "study": "reproduce", "function": job.function, "seed": 0,
                "options": job.options, "version": 1, "data": None, "values": {"square": job.options["number"] ** 2},
            }
            for job in fake.squares((1, 2))
        ]  # fmt: skip
        Store(request.results).append(records)
        return {"shard 2/2": "it was cancelled"}

    monkeypatch.setattr(launching, "launch", stand_in)
    words = ["reproduce", "claim1", "--launcher", "slurm", "--slurm-tasks", "2", "--slurm-cpus", "3", "--json"]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "submitted 1_0, 1_1" in printed.err
    result = json.loads(printed.out)
    assert (result["done"], result["failed"]) == (2, {"shard 2/2": "it was cancelled"})
    assert result["findings"][0]["outcome"] == "confirmed"


def test_a_task_that_dies_is_named(place):
    class Dead:
        job_id = "7_0"

        class paths:
            stderr = "7_0.err"

        def result(self):
            raise submitit.core.utils.UncompletedJobError("no output\nstate OUT_OF_MEMORY")

    class Executor:
        def map_array(self, work, shards):
            return [Dead() for _ in shards]

    failed = launch(Request(("claim1",)), Executor(), 2)
    assert failed == {f"shard {i}/2": "state OUT_OF_MEMORY (see 7_0.err)" for i in (1, 2)}


def test_a_refused_submission_is_said(cluster, place):
    (place / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    executor = slurm_executor(Cluster(), place / "jobs")
    with pytest.raises(MpeluError, match=r"sbatch refused the tasks: .*invalid partition"):
        launch(Request(("claim1",)), executor, 2)


def test_a_shard_that_is_cut_off_is_queued_again():
    run = ShardRun(Request(("claim1",)))
    again = run.checkpoint((1, 2))
    assert again.function is run
    assert again.args == ((1, 2),)


@pytest.mark.parametrize(("words", "message"), [
    ("--slurm-tasks 0", "--slurm_tasks must be at least 1, got 0"),
    ("--shard 1/2", "leave out --shard"),
])  # fmt: skip
def test_wrong_options(words, message, cluster, monkeypatch, capsys):
    monkeypatch.setattr(fake.catalog, "STUDIES", ("fake",))
    monkeypatch.setitem(sys.modules, "mpelu.studies.fake", fake)
    assert main(["reproduce", "claim1", "--launcher", "slurm", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_machine_without_slurm(place, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(UsageError, match="sbatch and srun on PATH"):
        slurm_executor(replace(Cluster(), tasks=1), place / "jobs")
