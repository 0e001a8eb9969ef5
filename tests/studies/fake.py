"""A study for the tests of what runs studies: two claims and a table, of measurements and of short trainings."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mpelu.report.finding import Finding
from mpelu.report.grid import Cell, Grid
from mpelu.report.summary import spread
from mpelu.studies import catalog
from mpelu.studies.jobs import Job, Measurement, Setting, Training, key
from mpelu.studies.statistic import computed, paired_difference
from mpelu.studies.study import Claim, Exhibit, Results
from mpelu.train.recipe import Recipe

SMALL = Recipe(
    model="plain15",
    width=16,
    batch_norm=True,
    data="digits",
    augment="none",
    limit=64,
    epochs=3,
    batch_size=32,
    lr=0.02,
)
HERE = "tests.studies.fake"


def square(*, seed: int, data: str, number: float, seconds: float = 0.0) -> dict[str, float]:
    time.sleep(seconds)
    return {"square": number * number, "seed": seed}


def fails(*, seed: int, data: str, text: str) -> None:
    raise ValueError(text)


def dies(*, seed: int, data: str, folder: str, times: int) -> dict[str, int]:
    """Kill this process, so many times; each leaves a file."""
    died = len(list(Path(folder).glob("died*")))
    if died < times:
        (Path(folder) / f"died{died}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": died}


def squares(numbers: tuple[int, ...], **options: Any) -> tuple[Measurement, ...]:
    return tuple(Measurement(f"{HERE}:square", {"number": number, **options}, seconds=1.0) for number in numbers)


def trainings(setting: Setting) -> tuple[Training, ...]:
    return tuple(
        Training(replace(SMALL, activation=activation, data=setting.data), seed, setting.scale)
        for activation in ("relu", "mpelu")
        for seed in range(setting.seeds or 2)
    )


def judge_squares(number: int, jobs: tuple[Job, ...], results: Results) -> Finding:
    records = results.present(jobs)
    total = sum(record["values"]["square"] for record in records)
    done = len(records) == len(jobs)
    return Finding(
        number, "Squares add up.", "confirmed" if done else "not run", f"the sum is {total:g}" if done else "",
        (computed("sum", total, n=len(records)),) if done else (), "any", "", tuple(key(job) for job in jobs),
    )  # fmt: skip


def judge_trainings(results: Results) -> Finding:
    records = results.present(trainings(results.setting))
    errors = [record["last"]["test_error_percent"] for record in records]
    half = len(errors) // 2
    found = paired_difference("ReLU minus MPELU", errors[:half], errors[half:]) if half >= 2 else None
    return Finding(
        3, "MPELU is better.", "inconclusive" if found else "not run", "", (found,) if found else (),
        results.setting.scale, results.setting.data,
    )  # fmt: skip


def show(results: Results) -> Grid:
    records = results.present(trainings(results.setting))
    cell = Cell("9.06", "Table 1", spread([record["last"]["test_error_percent"] for record in records]))
    return Grid("table1", "Errors", ("net", "error"), (("plain15", cell),), results.setting.scale, results.setting.data)


def claim(number: int, jobs: tuple[Job, ...]) -> Claim:
    return Claim(number, "Squares add up.", lambda _: jobs, lambda results: judge_squares(number, jobs, results))


CLAIMS = (
    claim(1, squares((1, 2))),
    claim(2, squares((2, 3))),
    Claim(3, "MPELU is better.", trainings, judge_trainings),
)
EXHIBITS = (Exhibit("table1", "Errors", trainings, show),)


LONG = replace(SMALL, epochs=40)
LONG_JOBS = (*squares((1, 2)), Training(LONG, 0))


def judge_ends(results: Results) -> Finding:
    n = len(results.present(LONG_JOBS))
    return Finding(2, "They end.", "confirmed", "", (computed("records", n, n=n),), "cpu", "digits")


KILLED = (claim(1, LONG_JOBS[:2]), Claim(2, "They end.", lambda _: LONG_JOBS, judge_ends))


def install(claims: tuple[Claim, ...] = CLAIMS, exhibits: tuple[Exhibit, ...] = EXHIBITS) -> ModuleType:
    """Make this the one study of the catalog."""
    module = ModuleType("mpelu.studies.fake")
    module.CLAIMS, module.EXHIBITS = claims, exhibits  # type: ignore[attr-defined]
    sys.modules["mpelu.studies.fake"] = module
    catalog.STUDIES = ("fake",)  # type: ignore[misc]
    return module
