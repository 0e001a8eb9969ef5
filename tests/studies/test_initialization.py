import pytest

from mpelu.studies import initialization, thirty
from mpelu.studies.initialization import DECISIVE_SEEDS, Start
from mpelu.studies.jobs import Setting, key
from tests.studies.trained import DIGITS, GUESSING, diverged, finished, results

CLAIMS = {claim.number: claim for claim in initialization.CLAIMS}
every_claim = pytest.mark.parametrize("number", CLAIMS)


def judged(number, make, setting=DIGITS):
    return CLAIMS[number].judge(results(CLAIMS[number].jobs(setting), make, setting))


def as_in_the_paper(job):
    return diverged(job) if job.recipe.init == "lsuv" and job.recipe.lr == 0.01 else finished(job, 1.0)


@every_claim
def test_claims_hold_on_runs_that_end_as_in_the_paper(number):
    finding = judged(number, as_in_the_paper)
    assert finding.outcome == "confirmed"
    assert finding.evidence


def test_claim_31_fails_if_lsuv_learns_at_one_depth():
    def only_52(job):
        return as_in_the_paper(job) if job.recipe.model == "plain52" else finished(job, 1.0)

    finding = judged(31, only_52)
    assert finding.outcome == "refuted"
    assert "30 layers, LSUV: learns 6 of 6; 52 layers, LSUV: diverged 6 of 6" in finding.evidence


def test_claim_31_reports_the_smaller_step_beside_the_verdict():
    finding = judged(31, as_in_the_paper)
    beside = {interval.quantity: interval.estimate for interval in finding.intervals[4:]}
    assert beside["runs that learn, 30 layers, LSUV, lr x 0.1"] == 1.0
    assert len(beside) == 4


def test_three_seeds_are_too_few_for_one_net():
    assert judged(31, as_in_the_paper, Setting("cpu", "digits", 3)).outcome == "inconclusive"
    assert len(Start(30, "lsuv").trainings(DIGITS)) == DECISIVE_SEEDS


def test_claim_34_fails_if_eq22_is_flat_in_the_deeper_net():
    assert (
        judged(34, lambda job: finished(job, GUESSING if job.recipe.model == "plain52" else 1.0)).outcome == "refuted"
    )


def test_claim_34_compares_with_exact_gains_at_unit_variance():
    def make(job):
        return finished(job, 1.5 + 0.01 * job.seed if job.recipe.init == "eq22" else 1.0)

    finding = judged(34, make)
    excess = [interval for interval in finding.intervals if "minus" in interval.quantity]
    assert len(excess) == 6
    assert all(interval.estimate == pytest.approx(0.51) and interval.unit == "nats" for interval in excess)
    assert {job.recipe.pixel_scale for job in CLAIMS[34].jobs(DIGITS) if job.recipe.init != "eq22"} == {"std"}


@every_claim
def test_what_is_missing_or_diverged_is_judged_too(number):
    assert judged(number, lambda _: None).outcome == "not run"
    assert judged(number, lambda _: None, Setting("paper")).outcome == "not run"
    assert judged(number, diverged).outcome == "refuted"
    assert judged(number, lambda job: as_in_the_paper(job) if job.seed == 0 else None).outcome == "inconclusive"


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_keys_are_unique_and_eq22_is_shared(scale):
    setting = Setting(scale, "digits")
    keys = {number: [key(job) for job in claim.jobs(setting)] for number, claim in CLAIMS.items()}
    for found in keys.values():
        assert len(set(found)) == len(found)
    eq22 = {key(job) for depth in (30, 52) for job in Start(depth, "eq22").trainings(setting)}
    assert eq22 <= set(keys[31]) & set(keys[34])
    table = {key(job) for job in thirty.trainings(thirty.Net("elu"), setting)}
    assert table < eq22
