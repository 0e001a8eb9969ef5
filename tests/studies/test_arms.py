import dataclasses

import pytest

from mpelu.recipes import row
from mpelu.report.grid import Cell
from mpelu.studies import bottleneck, nonbottleneck, others, swapped
from mpelu.studies.arms import Arm, Contest, cell, contested, errors_text, factors_of
from mpelu.studies.beginning import measurements
from mpelu.studies.fate import errors_of
from mpelu.studies.jobs import Setting, key, key_of
from tests.studies.by_error import training
from tests.studies.contests import CPU, ends, judged
from tests.studies.trained import results

RELU, ELU = swapped.RELU, swapped.ELU
STUDIES = (swapped, nonbottleneck, bottleneck, others)
CLAIMS = [claim for study in STUDIES for claim in study.CLAIMS]
EXHIBITS = [exhibit for study in STUDIES for exhibit in study.EXHIBITS]
SETTINGS = (CPU, Setting("cpu", "digits", 2), Setting("paper", "cifar10"))
every_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
every_exhibit = pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)


def test_an_arm_has_the_recipe_of_its_row_with_its_changes():
    arm = Arm("x", "nopre164-mpelu", changes={"alpha": 1.0}, scaled={"model": "nopre11"})
    paper, cpu = arm.recipe(Setting("paper", "elsewhere")), arm.recipe(CPU)
    assert paper == dataclasses.replace(row("nopre164-mpelu").paper, alpha=1.0)
    assert (cpu.model, cpu.alpha, cpu.data, cpu.resize) == ("nopre11", 1.0, "cifar10-jpeg75", 16)
    assert arm.recipe(Setting("cpu", "digits")).resize is None


def test_seeds_are_those_of_the_setting_or_of_the_arm():
    assert [job.seed for job in Arm("x", "nopre164-mpelu", seeds=3).jobs(CPU)] == [0, 1, 2]
    assert [job.seed for job in Arm("x", "nopre164-mpelu").jobs(Setting("cpu", "digits", 2))] == [0, 1]


def test_a_contest_is_confirmed_refuted_or_open():
    claim = contested(1, "ELU is worse", [Contest(ELU, RELU)])
    worse = judged(claim, ends({ELU: 30.0, RELU: 20.0}))
    assert worse.outcome == "confirmed"
    assert worse.intervals[0].estimate == pytest.approx(10.0)
    assert worse.runs == tuple(key(job) for arm in (ELU, RELU) for job in arm.jobs(CPU))
    assert worse.differs.startswith("depth 110 to 20")
    assert "ELU 30.08 ± 0.08 % (n = 5)" in worse.evidence
    assert judged(claim, ends({ELU: 10.0, RELU: 20.0})).outcome == "refuted"
    assert judged(claim, ends({ELU: 20.0, RELU: 20.0})).outcome == "inconclusive"
    assert judged(claim, ends({ELU: 30.0})).outcome == "not run"
    assert judged(claim, ends({})).evidence == ""


def test_a_control_has_no_part_in_the_verdict():
    claim = contested(1, "ELU is worse", [Contest(ELU, RELU)], controls=[Contest(RELU, swapped.MPELU_A)])
    found = judged(claim, ends({ELU: 30.0, RELU: 20.0, swapped.MPELU_A: 40.0}))
    assert found.outcome == "confirmed"
    assert [interval.estimate for interval in found.intervals] == [pytest.approx(10.0), pytest.approx(-20.0)]
    assert judged(claim, ends({ELU: 30.0, RELU: 20.0})).outcome == "confirmed"


def test_what_diverged_counts_as_guessing_and_is_said():
    claim = contested(1, "ELU is worse", [Contest(ELU, RELU)])
    found = judged(claim, ends({ELU: 30.0, RELU: 20.0}, diverging=["ELU"]))
    assert found.outcome == "confirmed"
    assert found.intervals[0].estimate == pytest.approx(90.0 - 20.08)
    assert "ELU diverged 5 of 5" in found.evidence
    assert "5 of 10 runs diverged" in found.evidence


def test_a_cell_has_the_mean_of_what_came_to_its_end():
    def make(job):
        return training(job, [20.0 + job.seed] if job.seed else [], diverged=not job.seed)

    found = results(RELU.jobs(CPU), make, CPU)
    shown = cell(found, RELU, Cell(paper="6.43"))
    assert shown.ours is not None
    assert (shown.paper, shown.ours.mean, shown.ours.n, len(shown.runs)) == ("6.43", 22.5, 4, 5)
    assert "diverged 1 of 5" in shown.text
    assert errors_of(found.present(RELU.jobs(CPU))) == [21.0, 22.0, 23.0, 24.0]
    assert "diverged 1 of 5" in errors_text(found, RELU)
    assert errors_text(found, ELU) == ""


def test_factors_are_named_once():
    assert factors_of((RELU, ELU)) == row("resnet110-relu").factors


@every_claim
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_nothing_run_is_not_run(claim, setting):
    found = judged(claim, lambda _: None, setting)
    assert found.outcome == "not run"
    assert not found.runs
    assert bool(found.evidence) == (not claim.jobs(setting)), "why there are no jobs, else nothing"


@every_claim
def test_partial_records_can_be_judged(claim):
    def diverges(job):
        return None if job.seed % 2 or hasattr(job, "function") else training(job, [], diverged=True)

    def one_seed(job):
        return None if job.seed or hasattr(job, "function") else training(job, [20.0])

    assert judged(claim, diverges).outcome in ("refuted", "inconclusive", "not run")
    assert judged(claim, one_seed).outcome == "not run"


@every_claim
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_jobs_are_found_again_by_their_records(claim, setting):
    for job in claim.jobs(setting):
        if not hasattr(job, "function"):
            assert key_of(training(job, [1.0])) == key(job)


@every_exhibit
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_tables_have_full_rows_and_our_numbers(exhibit, setting):
    jobs = exhibit.jobs(setting)
    grid = exhibit.show(results(jobs, lambda job: None if hasattr(job, "function") else training(job, [12.0]), setting))
    assert {len(each) for each in grid.rows} == {len(grid.columns)}
    ours = [entry for each in grid.rows for entry in each if isinstance(entry, Cell) and entry.ours]
    assert ours
    assert {entry.ours.mean for entry in ours} == {12.0}
    assert {name for entry in ours for name in entry.runs} == {key(job) for job in jobs if not hasattr(job, "function")}
    empty = exhibit.show(results((), lambda _: None, setting))
    assert not [entry for each in empty.rows for entry in each if isinstance(entry, Cell) and entry.ours]


def test_claims_share_their_runs_with_the_tables():
    tables = {key(job) for exhibit in EXHIBITS for job in exhibit.jobs(CPU)}
    for claim in CLAIMS:
        if claim.number not in (37, 49, 52):
            assert {key(job) for job in claim.jobs(CPU)} <= tables, claim.name


def test_first_steps_are_the_same_jobs_in_all_claims():
    name = bottleneck.NOPRE.row
    wanted = {key(job) for job in measurements(name, CPU)}
    assert len(wanted) == 6
    assert wanted <= {key(job) for claim in bottleneck.CLAIMS for job in claim.jobs(CPU)}
