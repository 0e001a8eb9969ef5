import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mpelu.cli import main
from mpelu.studies import demo
from mpelu.studies.pool import Job, run_all
from mpelu.train.recipe import Recipe
from mpelu.train.run import prepare


def record(activation: str, init: str, *, loss: float, error: float, outcome: str = "finished") -> dict:
    return {
        "config": {"activation": activation, "init": init},
        "data": {"classes": 10},
        "seed": 0,
        "outcome": outcome,
        "reason": None if outcome == "finished" else "the training loss is nan at step 3",
        "last": {"train_loss": loss, "test_error_percent": error},
    }


def outcomes(records: list[dict]) -> list[str]:
    return [verdict.outcome for verdict in demo.verdicts(records)]


def test_verdicts_follow_the_numbers():
    flat, learned = record("relu", "gaussian", loss=math.log(10), error=90.0), {"loss": 0.01, "error": 5.0}
    elu, mpelu = record("elu", "eq22", **learned), record("mpelu", "eq22", **learned)
    assert outcomes([flat, elu, mpelu]) == ["holds", "holds", "holds"]
    assert outcomes([record("relu", "gaussian", loss=2.2, error=80.0), elu, mpelu])[0] == "fails"
    assert outcomes([flat, record("elu", "eq22", loss=0.1, error=10.0), mpelu])[1] == "fails"
    assert outcomes([flat, elu, record("mpelu", "eq22", loss=0.1, error=5.0, outcome="diverged")])[2] == "fails"
    assert outcomes([flat, elu, mpelu, record("mpelu", "eq22", loss=2.0, error=60.0)])[2] == "inconclusive"


@pytest.mark.slow
def test_demo_shows_one_flat_curve_and_three_that_learn(tmp_path, monkeypatch, capsys):
    """The main job, as a newcomer runs it."""
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    assert capsys.readouterr().out.count("holds") == 3
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 2
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("result.json")]
    losses = {(r["config"]["activation"], r["config"]["init"]): r["last"]["train_loss"] for r in records}
    assert abs(losses.pop(("relu", "gaussian")) - math.log(10)) < 0.01
    assert len(losses) == 3
    assert max(losses.values()) < 0.2
    assert main(["demo"]) == 0  # everything is there already


SMALL = Recipe(model="plain9", width=4, data="digits", limit=96, epochs=2, batch_size=32, lr=0.05)


def jobs(runs, *recipes: Recipe) -> list[Job]:
    return [Job(recipe, 0, prepare(recipe, seed=0, runs=runs, study="test").folder) for recipe in recipes]


@pytest.mark.slow
def test_records_come_in_the_order_of_the_jobs(tmp_path):
    recipes = [replace(SMALL, epochs=4), SMALL, replace(SMALL, activation="elu")]
    records = run_all(jobs(tmp_path, *recipes), runs=tmp_path, study="test", workers=2)
    assert [(record["config"]["activation"], record["config"]["epochs"]) for record in records] == [
        ("mpelu", 4), ("mpelu", 2), ("elu", 2),
    ]  # fmt: skip
    assert {record["environment"]["threads"] for record in records} == {1}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_demo_leaves_no_worker_and_continues(number, code, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "mpelu", "demo"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = 120
    while not list(tmp_path.rglob("last.ckpt")) and deadline:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        deadline -= 1
    assert deadline
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    for _ in range(20):  # the resource tracker of multiprocessing ends a moment after its parent
        alive = subprocess.run(["pgrep", "-as", str(process.pid)], capture_output=True, text=True)
        if not alive.stdout:
            break
        time.sleep(0.5)
    assert alive.stdout == ""
    assert not list(tmp_path.rglob("*.part"))
