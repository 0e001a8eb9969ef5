import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpelu.errors import MpeluError
from mpelu.studies import pool
from mpelu.studies.pool import Event, Job, Task, environments_of, run_all, run_tasks
from mpelu.train import checkpoint
from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare

pytestmark = pytest.mark.slow  # each process imports torch

SMALL = Recipe(model="plain9", width=4, data="digits", limit=96, epochs=2, batch_size=32, lr=0.05)
LONG = replace(SMALL, limit=600, batch_size=1, epochs=1, lr=0.001)
"""600 steps, some seconds; before the last of them nothing is saved, unless a signal asks for it."""


def jobs(runs: Path, *recipes: Recipe) -> list[Job]:
    return [Job(recipe, 0, prepare(recipe, seed=0, runs=runs, study="test").folder) for recipe in recipes]


def test_records_come_in_the_order_of_the_jobs(tmp_path):
    recipes = [replace(SMALL, epochs=4), SMALL, replace(SMALL, activation="elu")]
    records = run_all(jobs(tmp_path, *recipes), runs=tmp_path, study="test", workers=2)
    assert [(record["config"]["activation"], record["config"]["epochs"]) for record in records] == [
        ("mpelu", 4), ("mpelu", 2), ("elu", 2),
    ]  # fmt: skip
    assert {record["environment"]["threads"] for record in records} == {1}


def test_a_run_that_fails_is_named_and_the_others_are_finished(tmp_path):
    good, bad = jobs(tmp_path, SMALL, replace(SMALL, activation="elu"))
    bad.folder.parent.mkdir(parents=True)
    bad.folder.touch()  # a file where the folder of the run should be
    with pytest.raises(MpeluError, match=f"1 of 2 runs failed.*{bad.folder}"):
        run_all([bad, good], runs=tmp_path, study="test", workers=1)
    assert (good.folder / "result.json").exists()


def process(report: pool.Report) -> tuple[int, str]:
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def test_workers_persist_and_each_sees_a_gpu_of_its_own(monkeypatch):
    """There are none here, but the names are given out, before torch could look for them."""
    monkeypatch.setattr(pool, "gpus_of", lambda device: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    waiting = iter([Task(str(number), process) for number in range(20)])
    events: list[Event] = []
    run_tasks(lambda: next(waiting, None), workers=2, device="cuda", on_event=events.append)
    finished = [event for event in events if event.kind == "finished"]
    assert sorted(int(event.task.name) for event in finished) == list(range(20))
    found = {event.value for event in finished}
    assert len(found) == len({gpu for _, gpu in found}) <= 2
    assert {gpu for _, gpu in found} <= {"5", "7"}


def test_a_cpu_has_no_gpus_to_give_out():
    assert environments_of("cpu", 3) == ({}, {}, {})


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a program in a session of its own, by which all that it starts can be found."""
    started = []

    def start_program(text: str) -> subprocess.Popen:
        file = tmp_path / "program.py"
        file.write_text(text)
        started.append(
            subprocess.Popen([sys.executable, file], stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield start_program
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # as it should be
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


STUDY = """
import pickle
from pathlib import Path
from mpelu.studies.pool import run_all

if __name__ == "__main__":
    runs = Path(__file__).parent
    run_all(pickle.loads((runs / "jobs").read_bytes()), runs=runs, study="test", workers=2)
"""


@pytest.fixture
def study(start, tmp_path):
    """Start a study of a short and a long run, each in a worker of its own."""
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs(tmp_path, SMALL, LONG)))
    return start(STUDY)


DEAF_AT_FIRST = """
import multiprocessing, os, signal, time
from concurrent.futures import ProcessPoolExecutor
from mpelu.studies import pool

def kill_the_parent():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=pool.start_worker) as executor:
        executor.submit(kill_the_parent).result()
"""


def alive(session: int) -> dict[int, str]:
    """Return the command lines of the processes of a session that are still at work."""
    listing = subprocess.run(
        ["ps", "-ww", "-s", str(session), "-o", "pid=,stat=,args="], capture_output=True, text=True
    )
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
    return {int(number): command for number, state, command in rows if not state.startswith("Z")}


def workers(session: int) -> list[int]:
    return [number for number, command in alive(session).items() if "spawn_main" in command]


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def loads_torch(process: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{process}/maps").read_text()
    except FileNotFoundError:
        return False


def wait_for_the_end(process: subprocess.Popen) -> None:
    """Expect that a killed process and all that it has started end."""
    process.communicate(timeout=60)  # until the last of them closes stderr
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not alive(process.pid), seconds=60)


def test_run_of_a_killed_parent_is_saved_and_continues(study, tmp_path):
    short, long = jobs(tmp_path, SMALL, LONG)
    wait_until((short.folder / "result.json").exists, seconds=60)  # one worker has nothing left to do
    wait_until((long.folder / "environment.json").exists, seconds=60)  # the other trains
    assert len(workers(study.pid)) == 2
    study.kill()
    wait_for_the_end(study)

    assert not list(tmp_path.rglob("*.part"))
    saved = checkpoint.load(long.folder / "last.ckpt")["position"]
    assert 0 < saved["step"] < LONG.limit
    records = run_all([short, long], runs=tmp_path, study="test", workers=1)
    assert [record["outcome"] for record in records] == ["finished", "finished"]
    assert f"continued at epoch 1, step {saved['step']}" in (long.folder / "log.txt").read_text()


@pytest.mark.parametrize("moment", ["its workers start", "a worker imports torch"])
def test_workers_do_not_outlive_a_parent_that_is_killed_while(moment, study, tmp_path):
    wait_until(lambda: bool(workers(study.pid)), seconds=60)
    if moment == "a worker imports torch":
        wait_until(lambda: any(loads_torch(worker) for worker in workers(study.pid)), seconds=60)
    study.kill()
    wait_for_the_end(study)
    assert not (tmp_path / "test").exists()  # no run had begun


def test_worker_that_was_deaf_when_its_parent_died_ends_too(start):
    """So is a run that evaluates after its last step: it finishes, and after it the worker would wait for ever."""
    wait_for_the_end(start(DEAF_AT_FIRST))
