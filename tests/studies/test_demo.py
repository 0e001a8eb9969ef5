import json
import math
import signal
import subprocess
import sys
import time

import pytest

from mpelu.cli import main
from mpelu.errors import UsageError
from mpelu.studies import demo


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


def test_verdicts_of_a_deeper_net():
    learned, slow = {"loss": 0.01, "error": 5.0}, {"loss": 0.4, "error": 20.0}
    records = [record("mpelu", "tailored", **learned), record("mpelu", "eq22", **slow), record("relu", "msra", **slow)]
    assert [verdict.outcome for verdict in demo.verdicts(records, 100)] == ["holds"] * 3
    records = [record("mpelu", "tailored", **slow), record("mpelu", "eq22", **learned), record("relu", "msra", **slow)]
    assert [verdict.outcome for verdict in demo.verdicts(records, 100)] == ["fails", "fails", "holds"]
    diverged = record("mpelu", "eq22", **learned, outcome="diverged")
    assert demo.verdicts([*records[:1], diverged, records[2]], 100)[1].outcome == "holds"


def test_recipes_of_a_deeper_net():
    assert demo.recipes(30) == demo.RECIPES
    assert {recipe.model for recipe in demo.recipes(100)} == {"plain100"}
    assert [recipe.init for recipe in demo.recipes(60)] == ["tailored", "eq22", "msra"]
    with pytest.raises(UsageError, match="--depth must be 30"):
        demo.recipes(31)


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
