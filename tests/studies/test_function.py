"""Claims about the function are judged from measurements, and a wrong measurement would turn the verdict."""

import copy
import json
import math
import re
from functools import cache

import pytest

from mpelu.report.grid import Cell
from mpelu.studies import function
from mpelu.studies.jobs import Measurement, Setting, Training, key, key_of
from mpelu.studies.study import Results
from mpelu.studies.work import function_of

SETTING = Setting()
CLAIMS = {claim.number: claim for claim in function.CLAIMS}
QUICK = {"rounds": 3, "shape": [2, 8, 16, 16], "sweep": 20, "batch": 2, "size": 16}


@cache
def values_of(text):
    """Measure with the options of a job, but quickly."""
    job = json.loads(text)
    measurement = Measurement(job["function"])
    options = {name: QUICK.get(name, value) for name, value in job["options"].items()}
    if "options" in options:
        options["options"] = {"width": 4, "input_size": 16, "batch_norm": True}
    return json.dumps(function_of(measurement)(seed=0, data="", **options))


def record_of(job):
    if isinstance(job, Training):
        config = {"init": job.recipe.init}
        last = {"test_error_percent": 20.0 + job.seed + (10.0 if job.recipe.init == "msra" else 0.0)}
        return {"config": config, "seed": job.seed, "outcome": "finished", "last": last}
    text = json.dumps({"function": job.function, "options": dict(job.options)}, sort_keys=True)
    return {
        "kind": "measurement",
        "function": job.function,
        "options": json.loads(json.dumps(dict(job.options))),
        "seed": job.seed,
        "version": job.version,
        "data": None,
        "values": json.loads(values_of(text)),
    }


def results_for(item, change=lambda values: None):
    records = {}
    for job in item.jobs(SETTING):
        record = copy.deepcopy(record_of(job))
        if isinstance(job, Measurement):
            assert key_of(record) == key(job)
            change(record["values"])
        records[key(job)] = record
    return Results(SETTING, records)


@pytest.fixture(autouse=True)
def _key_without_config(monkeypatch):
    """The trainings here are stubs: their keys are not asked for."""
    monkeypatch.setattr("mpelu.studies.measured.key_of", lambda record: record.get("function", "training"))


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (1, "confirmed"),
        (2, "confirmed"),
        (3, "refuted"),
        (4, "refuted"),
        (5, "refuted"),
        pytest.param(7, "confirmed", marks=pytest.mark.slow),
        (30, "refuted"),
        pytest.param(51, "confirmed", marks=pytest.mark.slow),
    ],
)
def test_what_is_computed_has_a_verdict(number, outcome):
    claim = CLAIMS[number]
    found = claim.judge(results_for(claim))
    assert found.outcome == outcome
    assert found.intervals
    assert found.runs
    assert (found.scale, found.data) == ("any", "")


@pytest.mark.parametrize("number", CLAIMS)
def test_nothing_is_said_without_records(number):
    found = CLAIMS[number].judge(Results(SETTING, {}))
    assert (found.outcome, found.intervals, found.runs) == ("not run", (), ())


def one_value_differs(values):
    values["relu_differs"] = 1


def elu_is_off(values):
    values["elu_ulps"] = 3.0


def misses_at_5(values):
    values["at_5"] = 0.01


def is_the_identity(values):
    values["largest"]["3"] = 0.001


def has_no_kink(values):
    values["slopes"] = [{"left": 1.0, "right": 1.0}] * len(values["slopes"])


def is_never_convex(values):
    values["convex"] = [False] * len(values["convex"])


def has_three_each(values):
    values["nin"]["mpelu"] += values["nin"]["channels"]


def is_as_printed(values):
    values["percent"] = [float(text) for text in function.PRINTED_SHARES.values()]


def is_larger(values):
    values["nopre164"]["mpelu"] += 10_000


@pytest.mark.parametrize(
    ("number", "change", "outcome"),
    [
        (1, one_value_differs, "refuted"),
        (1, elu_is_off, "refuted"),
        (2, misses_at_5, "refuted"),
        (3, is_the_identity, "confirmed"),
        (4, has_no_kink, "confirmed"),
        (5, is_never_convex, "confirmed"),
        pytest.param(7, has_three_each, "refuted", marks=pytest.mark.slow),
        (30, is_as_printed, "confirmed"),
        pytest.param(51, is_larger, "refuted", marks=pytest.mark.slow),
    ],
)
def test_another_measurement_gives_another_verdict(number, change, outcome):
    assert CLAIMS[number].judge(results_for(CLAIMS[number], change)).outcome == outcome


@pytest.mark.parametrize(("times", "outcome"), [(1.1, "confirmed"), (1.6, "refuted")])
def test_speed_is_judged_by_the_ratio_of_rounds(times, outcome):
    def change(values):
        prelu = [1.0, 2.0, 1.5]  # a slow round is slow for all
        values["seconds"] |= {"prelu": prelu, "mpelu": [times * second for second in prelu]}

    found = CLAIMS[6].judge(results_for(CLAIMS[6], change))
    assert found.outcome == outcome
    assert math.isclose(found.intervals[0].estimate, times)
    assert "16 x 64 x 56 x 56" in found.differs


def test_net_that_starts_where_mpelu_is_not_convex_is_compared():
    claim = CLAIMS[5]
    inits = [(job.recipe.init, job.seed) for job in claim.jobs(SETTING) if isinstance(job, Training)]
    assert sorted(inits) == sorted((init, seed) for init in ("eq22", "msra") for seed in range(5))
    found = claim.judge(results_for(claim))
    assert "Eq. 22 22.0 % test error, n = 5; from MSRA 32.0 % test error, n = 5" in found.evidence
    assert found.intervals[1].high < 0


def test_nets_that_diverge_are_counted():
    claim = CLAIMS[5]
    results = results_for(claim)
    records = {
        name: {**record, "outcome": "diverged"} if record.get("config", {}).get("init") == "msra" else record
        for name, record in results.records.items()
    }
    found = claim.judge(Results(SETTING, records))
    assert "MSRA 5 of 5 diverged" in found.evidence
    assert found.intervals[1].estimate == 1.0


def test_units_of_the_last_place_see_a_wrong_bit():
    import torch

    exact = torch.tensor([0.3, 1.0, -2.5], dtype=torch.float64)
    assert function._units_of_the_last_place(exact.float(), exact) <= 0.5
    off = torch.nextafter(exact.float(), torch.tensor(9.0))
    assert 0.5 <= function._units_of_the_last_place(off, exact.float().double()) <= 1.0


def test_table4_has_a_column_for_each_unit():
    exhibit = next(each for each in function.EXHIBITS if each.name == "table4")
    grid = exhibit.show(results_for(exhibit))
    assert grid.columns == ("", "ReLU", "PReLU", "ELU", "MPELU")
    cells = [cell for cell in grid.rows[0] if isinstance(cell, Cell)]
    assert all(cell.paper == "" and cell.ours.n == 3 and cell.ours.mean > 0 and cell.runs for cell in cells)
    empty = exhibit.show(Results(SETTING, {}))
    assert all(cell.ours is None for cell in empty.rows[0] if isinstance(cell, Cell))


def test_figure1_is_drawn_by_the_library(monkeypatch):
    exhibit = next(each for each in function.EXHIBITS if each.name == "figure1")
    picture = exhibit.show(Results(SETTING, {}))
    assert picture.svg == exhibit.show(Results(SETTING, {})).svg
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg)
    assert {label for curves in function.PANELS.values() for label in curves} <= set(texts)
    assert "currentColor" in picture.svg
    monkeypatch.setattr("mpelu.functional.mpelu", lambda y, alpha, beta: y * alpha * beta)
    assert exhibit.show(Results(SETTING, {})).svg != picture.svg
