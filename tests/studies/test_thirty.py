import re
from dataclasses import replace

import pytest

from mpelu.report.grid import Cell
from mpelu.report.paper import lines
from mpelu.studies import thirty
from mpelu.studies.jobs import SEEDS, Setting, Training, key
from mpelu.studies.study import Results
from tests.studies.trained import DIGITS, GUESSING, diverged, finished, results

CLAIMS = {claim.number: claim for claim in thirty.CLAIMS}
EXHIBITS = {exhibit.name: exhibit for exhibit in thirty.EXHIBITS}
every_claim = pytest.mark.parametrize("number", CLAIMS)


def judged(number, make, setting=DIGITS):
    return CLAIMS[number].judge(results(CLAIMS[number].jobs(setting), make, setting))


def by_start(job):
    if job.recipe.init == "gaussian" and not job.recipe.batch_norm:
        return finished(job, GUESSING, 90.0)
    return finished(job, 0.5, 10.0)


def as_in_the_paper(job):
    """End as the paper says: Eq. 22 before Gaussian, MPELU before ELU, 30 layers before 15 but for BN."""
    recipe = job.recipe
    error = 40.0 + 0.1 * (job.seed % 2)
    error += 2.0 * (recipe.init == "gaussian") + 1.0 * (recipe.activation == "elu")
    error += 4.0 * (recipe.model.endswith("30") == bool(recipe.batch_norm))
    return finished(job, GUESSING if recipe.init == "gaussian" and not recipe.batch_norm else 1.0, error)


def test_claim_21_holds_if_gaussian_is_flat_and_eq22_learns():
    finding = judged(21, by_start)
    assert finding.outcome == "confirmed"
    assert [interval.estimate for interval in finding.intervals[:2]] == [0.0, 1.0]
    assert len(finding.runs) == 4 * SEEDS


def test_claim_21_fails_if_gaussian_learns_or_eq22_diverges():
    assert judged(21, lambda job: finished(job, 0.5)).outcome == "refuted"
    assert judged(21, lambda job: diverged(job) if job.recipe.init == "eq22" else by_start(job)).outcome == "refuted"


def test_claim_21_needs_three_seeds_of_both_activations():
    assert judged(21, by_start, Setting("cpu", "digits", 3)).outcome == "confirmed"
    assert judged(21, by_start, Setting("cpu", "digits", 2)).outcome == "inconclusive"
    assert judged(21, lambda job: by_start(job) if job.recipe.activation == "elu" else None).outcome == "not run"


@every_claim
def test_claims_hold_on_runs_that_end_as_in_the_paper(number):
    finding = judged(number, as_in_the_paper)
    assert finding.outcome == "confirmed"
    assert finding.evidence
    assert finding.differs


@pytest.mark.parametrize("number", [22, 23, 24, 25])
def test_claims_fail_on_runs_that_end_the_other_way(number):
    def otherwise(job):
        record = as_in_the_paper(job)
        return finished(job, 1.0, 100.0 - record["last"]["test_error_percent"])

    assert judged(number, otherwise).outcome == "refuted"


@every_claim
def test_what_is_missing_or_diverged_is_judged_too(number):
    assert judged(number, lambda _: None).outcome == "not run"
    assert judged(number, lambda _: None, Setting("paper")).outcome == "not run"
    assert judged(number, lambda job: as_in_the_paper(job) if job.seed == 0 else None).outcome != "confirmed"
    assert judged(number, diverged).outcome != "confirmed"
    half = judged(number, lambda job: diverged(job) if job.seed % 2 else as_in_the_paper(job))
    assert "diverged" in half.evidence


@pytest.mark.parametrize("number", [22, 23, 24, 25])
def test_a_difference_as_large_as_its_spread_is_inconclusive(number):
    noise = (0.0, 30.0, -25.0, 40.0, -30.0)

    def noisy(job):
        turn = int(key(replace(job, seed=0)), 16) % len(noise)
        return finished(job, 1.0, 45.0 + noise[(job.seed + turn) % len(noise)])

    assert judged(number, noisy).outcome == "inconclusive"


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_keys_are_unique_and_shared_between_claims_and_table(scale):
    setting = Setting(scale, "digits")
    jobs = {
        name: [key(job) for job in item.jobs(setting)]
        for name, item in {**{str(number): claim for number, claim in CLAIMS.items()}, **EXHIBITS}.items()
    }
    for keys in jobs.values():
        assert len(set(keys)) == len(keys)
    assert set(jobs["21"]) < set(jobs["table5"])
    assert set(jobs["24"]) < set(jobs["table5"])
    assert set(jobs["figure3"]) <= set(jobs["25"])
    assert jobs["21"] == [key(job) for job in CLAIMS[21].jobs(setting)]


def test_the_size_of_maps_is_told_apart_from_depth_at_scale_paper_only():
    def options(setting):
        return {str(job.recipe.model_options) for job in CLAIMS[25].jobs(setting)}

    assert options(Setting("paper")) == {"None", "{'growing': False}"}
    assert options(DIGITS) == {"None"}


def test_15_layers_with_bn_are_the_runs_of_the_15_layer_table():
    from mpelu.recipes import imagenet15

    rows = {row.name: row for row in imagenet15.ROWS}
    for init in ("gaussian", "eq22"):
        ours = thirty.trainings(thirty.Net("mpelu", init, batch_norm=True, depth=15), Setting("paper"))[0]
        theirs = rows[imagenet15.name_of("mpelu1", init=init)].recipe("paper")
        assert key(ours) == key(Training(theirs, 0, "paper"))


def test_table_5_has_the_lines_of_the_paper_and_ours_beside():
    jobs = EXHIBITS["table5"].jobs(DIGITS)
    grid = EXHIBITS["table5"].show(results(jobs, lambda job: None if job.recipe.batch_norm else by_start(job)))
    assert [row[:4] for row in grid.rows] == [
        (line["network"], line["activation"], line["BN"], line["init"]) for line in lines("table05")
    ]
    assert all(len(row) == len(grid.columns) for row in grid.rows)
    cells = {row[1:4]: row[4:] for row in grid.rows}
    error, outcome = cells["ELU", "no", "Eq. 22"]
    assert (error.paper, error.ours.mean, error.ours.n) == ("37.08", 10.0, SEEDS)
    assert (outcome.paper, outcome.text) == ("converges", "learns 5 of 5")
    assert cells["ELU", "no", "Gaussian"][1].text == "flat 5 of 5"
    assert cells["MPELU(1,1) no decay", "yes", "Gaussian"][0] == Cell(
        paper="44.28", source="text of the paper", ours=None, text="", runs=()
    )


def test_table_5_says_where_all_runs_diverged():
    grid = EXHIBITS["table5"].show(results(EXHIBITS["table5"].jobs(DIGITS), diverged))
    error = grid.rows[0][4]
    assert isinstance(error, Cell)
    assert (error.ours, error.text) == (None, "diverged 5 of 5")


@pytest.mark.parametrize("make", [as_in_the_paper, diverged, lambda _: None], ids=["finished", "diverged", "not run"])
def test_figure_3_is_one_drawing(make):
    picture = EXHIBITS["figure3"].show(results(EXHIBITS["figure3"].jobs(DIGITS), make))
    assert picture.svg.startswith("<svg")
    assert picture.svg.count("<svg") == 1
    named = set(re.findall(r"\d+-layer MPELU with(?:out)? BN from (?:Eq. 22|Gaussian)", picture.svg))
    assert len(named) == (5 if picture.runs else 0)


def test_figure_3_has_curves_of_the_seeds_that_there_are():
    jobs = EXHIBITS["figure3"].jobs(DIGITS)
    one = Results(DIGITS, {key(jobs[0]): as_in_the_paper(jobs[0])})
    assert len(EXHIBITS["figure3"].show(one).runs) == 1
