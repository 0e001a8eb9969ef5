import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpelu.cli import main
from mpelu.errors import UsageError
from mpelu.report.finding import Finding
from mpelu.report.summary import check_record
from mpelu.studies import catalog, pool, reproduce
from mpelu.studies.jobs import Measurement, Setting, Training, key, key_of
from mpelu.studies.reproduce import Request
from mpelu.studies.store import Store
from mpelu.studies.study import Claim
from mpelu.train import checkpoint
from mpelu.train.records import read_metrics
from mpelu.train.run import prepare, run
from tests.studies import fake

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mpelu.studies.fake", fake)
    monkeypatch.setattr(catalog, "STUDIES", ("fake",))
    return tmp_path


def ask(*words: str) -> int:
    return main(["reproduce", *words])


def offer(monkeypatch, *jobs: Measurement) -> None:
    """Let claims 1, 2, ... want one measurement each."""
    claims = tuple(fake.claim(number, (job,)) for number, job in enumerate(jobs, 1))
    monkeypatch.setattr(fake, "CLAIMS", claims)
    monkeypatch.setattr(fake, "EXHIBITS", ())


def refuse_to_run(*arguments, **options) -> None:
    raise AssertionError


def test_jobs_of_several_claims_are_collected_once(tmp_path):
    plan = reproduce.plan(Request(("claim1", "claim2", "claim1")))
    assert [item.name for item in plan.items] == ["claim1", "claim2"]
    assert sorted(job.options["number"] for job in plan.jobs.values()) == [1, 2, 3]
    assert {name: key(job) for name, job in plan.jobs.items()} == {name: name for name in plan.jobs}
    assert sorted(map(len, (wanted.keys for wanted in plan.wanted))) == [2, 2]


def test_number_of_seeds_is_the_users_or_that_of_the_study():
    assert len(reproduce.plan(Request(("table1",))).jobs) == 4
    assert len(reproduce.plan(Request(("table1",), seeds=5)).jobs) == 10


def test_shards_of_a_plan_cover_it():
    whole = reproduce.plan(Request(("all",))).jobs
    parts = [reproduce.plan(Request(("all",), shard=(index, 3))).jobs for index in (1, 2, 3)]
    assert sum(map(len, parts)) == len(whole) == 7
    assert set().union(*parts) == set(whole)


def test_data_in_a_folder_is_known_by_its_name(monkeypatch):
    """Jobs are found again by the name of the data set, and run where it lies."""
    monkeypatch.setattr(reproduce, "_name_of_data", lambda place: "cifar10")
    measured = Measurement(f"{fake.HERE}:square", {"number": 1}, data="cifar10")
    here = replace(fake.SMALL, data="cifar10", augment="pad4")
    jobs = (Training(here, 0, "paper"), Training(replace(here, data="cifar100"), 0, "paper"), measured)
    monkeypatch.setattr(fake, "CLAIMS", (fake.claim(1, jobs),))
    plan = reproduce.plan(Request(("claim1",), scale="paper", data="/images"))
    assert plan.setting == Setting("paper", "cifar10")
    assert list(plan.jobs) == [key(job) for job in jobs]
    first, second, third = plan.jobs.values()
    assert (first.recipe.data, second.recipe.data, third.data) == ("/images", "cifar100", "/images")


def test_data_that_nothing_asks_for_is_refused(monkeypatch):
    monkeypatch.setattr(reproduce, "_name_of_data", lambda place: "cifar10-jpeg75")
    jobs = (Training(replace(fake.SMALL, data="cifar10"), 0, "paper"),)
    monkeypatch.setattr(fake, "CLAIMS", (fake.claim(1, jobs),))
    with pytest.raises(UsageError, match="/images holds cifar10-jpeg75, and what is asked for wants cifar10 at scale"):
        reproduce.plan(Request(("claim1",), scale="paper", data="/images"))


def test_dry_run_writes_nothing(capsys, tmp_path):
    assert ask("all", "--dry-run") == 0
    assert "7 of 7 jobs to run" in capsys.readouterr().out
    assert ask("claim1", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "claim1", "jobs": 2, "missing": 2, "cpu_seconds": 2.0}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("claim99", "claim99.*there are table1 to table12"),
        ("claim1 --budget soon", "e.g. 60m"),
        ("claim1 --shard 3/2", "i from 1 to n"),
        ("claim1 --seeds 0", "--seeds must be at least 1"),
        ("claim1 --scale huge", "--scale must be paper, cpu"),
        ("claim1 --data nowhere", "nowhere"),
    ],
)
def test_wrong_input_is_refused(words, message, capsys):
    try:
        code = ask(*words.split())
    except SystemExit as stopped:  # the parser's
        code = stopped.code
    assert code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_everything_is_run_once_and_judged(capsys, monkeypatch, tmp_path):
    assert ask("all", "--workers", "2", "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "claim1: confirmed" in text
    assert "sum: 13 [13, 13]" in text
    assert "claim3: inconclusive (scale cpu, digits)" in text
    assert "9.06 | " in text
    assert "0 jobs were recorded before, 7 were run, 0 failed" in text
    records = Store(tmp_path / "results").records
    assert records.keys() == reproduce.plan(Request(("all",))).jobs.keys()
    for record in records.values():
        if record.get("kind") != "measurement":
            check_record(record)

    monkeypatch.setattr(reproduce, "run_tasks", refuse_to_run)
    assert ask("all") == 0
    assert "7 jobs were recorded before, 0 were run" in capsys.readouterr().out
    for file in (tmp_path / "results").iterdir():
        file.unlink()
    assert ask("all", "--dry-run") == 0
    assert "0 of 7 jobs to run" in capsys.readouterr().out
    assert not list((tmp_path / "results").glob("*.jsonl"))
    assert ask("claim1", "table1", "--json") == 0  # the run folders are enough
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["recorded"], result["done"]) == ("result", 6, 0)
    assert len(Store(tmp_path / "results").records) == 6

    assert main(["report", "runs", "--study", "reproduce"]) == 0  # trainings alone
    printed = capsys.readouterr().out
    assert "plain15-mpelu" in printed
    assert "square" not in printed


@pytest.mark.slow
def test_what_fails_takes_nothing_down(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(pool, "RETRIES", 1)  # each takes seconds
    (tmp_path / "deaths").mkdir()
    offer(
        monkeypatch,
        Measurement(f"{fake.HERE}:fails", {"text": "no such thing"}, seconds=1.0),
        Measurement(f"{fake.HERE}:dies", {"folder": str(tmp_path / "deaths"), "times": 99}, seconds=1.0),
        Measurement(f"{fake.HERE}:nothing", seconds=1.0),
        *fake.squares((5,)),
    )
    assert ask("all", "--workers", "1", "--device", "cpu") == 1
    text = capsys.readouterr().out
    assert "failed: fails(text no such thing) seed 0: ValueError: no such thing" in text
    assert "its worker was killed by SIGKILL (out of memory?)" in text
    assert "no function 'nothing' in a module" in text
    assert len(list((tmp_path / "deaths").iterdir())) == 2
    assert "claim1: not run" in text
    assert "claim4: confirmed" in text
    assert "0 jobs were recorded before, 1 were run, 3 failed" in text
    assert "incomplete: claim1 has 0 of 1 jobs" in text


@pytest.mark.slow
def test_budget_runs_what_fits_and_says_what_does_not(capsys, monkeypatch, tmp_path):
    long = Measurement(f"{fake.HERE}:square", {"number": 7, "seconds": 600.0}, seconds=600.0)
    short = Measurement(f"{fake.HERE}:square", {"number": 3}, seed=4, data="digits", seconds=1.0, version=2)
    offer(monkeypatch, long, short)
    assert ask("all", "--budget", "60s", "--workers", "1", "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "incomplete: claim1 has 0 of 1 jobs" in text
    assert "1 were run, 0 failed" in text

    (folder,) = (tmp_path / "runs" / "reproduce").glob("square-*/seed4")
    record = json.loads((folder / "result.json").read_text())
    assert key_of(record) == key(short)
    assert record["values"] == {"square": 9, "seed": 4}
    assert (record["kind"], record["version"], record["data"]["name"]) == ("measurement", 2, "digits")
    assert len(record["data"]["sha256"]) == 64
    assert (record["environment"]["device"], record["environment"]["threads"]) == ("cpu", 1)


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from tests.studies import fake
from mpelu.cli import main
from mpelu.errors import UsageError
if __name__ == "__main__":
    fake.install(fake.KILLED, ())
    sys.exit(main(["reproduce", *sys.argv[1:]]))
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a study in a session of its own, by which its workers can be found."""
    started = []
    (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT)))

    def start_study(*words: str) -> subprocess.Popen:
        command = [sys.executable, "program.py", *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield start_study
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # as it should be
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def workers(session: int) -> list[int]:
    listing = subprocess.run(
        ["ps", "-ww", "-s", str(session), "-o", "pid=,stat=,args="], capture_output=True, text=True
    )
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
    return [int(number) for number, state, command in rows if "spawn_main" in command and not state.startswith("Z")]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_kills_lose_no_more_than_an_epoch_and_nothing_is_done_twice(start, place):
    """First a worker is killed, then the study; the run ends with the bits of one that nobody disturbed."""
    folder = prepare(fake.LONG, seed=0, runs=place / "runs", study="reproduce").folder
    study = start("all", "--workers", "1", "--device", "cpu")
    wait_until(lambda: len(read_metrics(folder)) >= 3)
    (worker,) = workers(study.pid)
    os.kill(worker, signal.SIGKILL)
    epochs = len(read_metrics(folder))
    wait_until(lambda: "continued at epoch" in (folder / "log.txt").read_text())
    wait_until(lambda: len(read_metrics(folder)) >= epochs + 2)
    study.kill()
    assert "killed by SIGKILL" in study.communicate()[0]
    wait_until(lambda: not workers(study.pid))
    assert not (folder / "result.json").exists()
    measured = {file: file.stat().st_mtime_ns for file in (place / "runs").rglob("square-*/seed0/result.json")}
    assert len(measured) == 2  # the cheapest claim first

    again = start("all", "--workers", "1", "--device", "cpu")
    text, _ = again.communicate()
    assert again.returncode == 0
    assert "2 jobs were recorded before, 1 were run, 0 failed" in text
    assert {file: file.stat().st_mtime_ns for file in measured} == measured
    begun = [int(epoch) for epoch in re.findall(r"continued at epoch (\d+)", (folder / "log.txt").read_text())]
    assert len(begun) == 2
    assert begun[0] >= epochs
    assert begun[1] >= begun[0] + 2

    files = [place / "results" / "runs.jsonl", place / "results" / "measurements.jsonl"]
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(map(key_of, records)) == sorted(map(key, fake.LONG_JOBS))
    whole = run(prepare(fake.LONG, seed=0, runs=place / "whole"), device="cpu")
    assert records[0]["state_sha256"] == whole["state_sha256"]


@pytest.mark.slow
def test_runs_that_exceed_the_budget_are_stopped_and_saved(monkeypatch, place):
    endless = Training(replace(fake.LONG, epochs=100_000), 0)
    monkeypatch.setattr(fake, "CLAIMS", (fake.claim(1, (endless,)),))
    monkeypatch.setattr(reproduce, "_expected", lambda jobs: dict.fromkeys(jobs, 1.0))
    request = Request(("claim1",), device="cpu", budget_seconds=10.0)
    folder = prepare(endless.recipe, seed=0, runs=place / "runs", study="reproduce").folder
    monkeypatch.setattr(reproduce, "monotonic", lambda: 11.0 if read_metrics(folder) else 0.0)
    board = reproduce.run(reproduce.plan(request), Store(request.results), request)
    assert [line.state for line in board.lines.values()] == ["stopped"]
    assert checkpoint.load(folder / "last.ckpt")["position"]["step"] >= 2


def test_a_claim_that_cannot_be_judged_takes_no_other_down(capsys, monkeypatch, place):
    def judge(results):
        raise KeyError("layer")

    broken = Claim(1, "It breaks.", lambda _: (), judge)
    monkeypatch.setattr(fake, "CLAIMS", (broken, fake.claim(2, ())))
    monkeypatch.setattr(fake, "EXHIBITS", ())
    assert ask("all", "-v") == 1
    printed, errors = capsys.readouterr()
    assert "claim1: its records cannot be judged (KeyError: 'layer')" in printed
    assert "claim2: confirmed" in printed
    assert "in judge" in errors
    assert ask("all", "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["broken"], len(result["findings"])) == ({"claim1": "KeyError: 'layer'"}, 1)


def test_dry_run_says_what_a_budget_would_choose(capsys, monkeypatch):
    long = Measurement(f"{fake.HERE}:square", {"number": 7}, seconds=600.0)
    offer(monkeypatch, long, *fake.squares((5,)))
    words = ("all", "--dry-run", "--budget", "60s", "--workers", "2")
    assert ask(*words) == 0
    text = capsys.readouterr().out
    assert re.search(r"claim1 .* no .*\n.*claim2 .* yes ", text)
    assert "60s with 2 workers: 1 of 2 fit, 1 jobs, 1 s of CPU time. Not: claim1;" in text
    assert ask(*words, "--json") == 0
    assert [json.loads(line)["fits"] for line in capsys.readouterr().out.splitlines()] == [False, True]


def test_what_differs_is_labelled(capsys, monkeypatch):
    found = Finding(1, "It holds.", "not run", "", (), "cpu", "digits", differs="8 images")
    monkeypatch.setattr(fake, "CLAIMS", (Claim(1, "It holds.", lambda _: (), lambda _: found),))
    monkeypatch.setattr(fake, "EXHIBITS", ())
    assert ask("claim1") == 0
    assert "differs from the paper: 8 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("claim53", "'claim53'; there are"),
        ("clam3", "did you mean claim3?"),
        ("fig5d164", "'mpelu train --recipe nopre164-mpelu' runs it"),
    ],
)
def test_a_wrong_name_gets_a_hint_that_helps(name, hint):
    with pytest.raises(UsageError, match=re.escape(hint)):
        catalog.find(name)


@pytest.mark.parametrize("text", ['{"schema": 1, "kind": "measurement"}\n', "[1]\n", '{"schema": 1, "study"\n{}\n'])
def test_damaged_records_are_named(text, capsys, place):
    (place / "results").mkdir()
    (place / "results" / "measurements.jsonl").write_text(text)
    assert ask("claim1") == 1
    assert re.fullmatch(r"mpelu: error: results/measurements.jsonl .*\n", capsys.readouterr().err)
