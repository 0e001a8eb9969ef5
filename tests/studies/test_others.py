import pytest

from mpelu.report.grid import Cell
from mpelu.studies import others
from mpelu.studies.bottleneck import NOPRE, RELU
from mpelu.studies.jobs import Setting, key
from mpelu.studies.others import DEEP, SHALLOW, SWEEP
from tests.studies.by_error import training
from tests.studies.contests import CPU, ends, judged
from tests.studies.trained import results

CLAIMS = {claim.number: claim for claim in others.CLAIMS}
PAPER = Setting("paper", "cifar10")
LONGER = others.nopre_arm(164, "cifar10")
ALPHA_1 = others.nopre_arm(164, "cifar10", alpha="1")
AS_SAID = {NOPRE: 5.0, LONGER: 4.5, ALPHA_1: 4.8, SHALLOW: 6.0, DEEP: 3.7}


@pytest.mark.parametrize(("number", "outcome"), [(47, "confirmed"), (48, "inconclusive"), (49, "confirmed")])
def test_the_order_of_the_paper_is_confirmed_and_the_contrary_refuted(number, outcome):
    """But for claim 48, which is about two data sets, of which a setting at scale cpu has one."""
    assert judged(CLAIMS[number], ends(AS_SAID)).outcome == outcome
    contrary = {arm: 10.0 - error for arm, error in AS_SAID.items()}
    assert judged(CLAIMS[number], ends(contrary)).outcome == "refuted"
    assert judged(CLAIMS[number], ends({NOPRE: 5.0})).outcome == "not run"


@pytest.mark.parametrize("number", [47, 48])
def test_labels_at_scale_cpu_name_neither_the_depth_nor_the_data_of_the_paper(number):
    found = judged(CLAIMS[number], ends(AS_SAID))
    told = f"{found.evidence} {found.intervals[0].quantity}"
    assert "nopre, longer recipe" in told
    assert "164" not in told
    assert "CIFAR" not in told
    at_paper = CLAIMS[number].judge(results(CLAIMS[number].jobs(PAPER), lambda job: training(job, [5.0]), PAPER))
    assert "nopre-164, longer recipe, CIFAR-100" in at_paper.evidence


def test_at_scale_paper_both_data_sets_are_compared():
    for number in (47, 48, 49, 50):
        jobs = CLAIMS[number].jobs(PAPER)
        assert {job.recipe.data for job in jobs} == {"cifar10", "cifar100"}
    assert {job.recipe.data for number in CLAIMS for job in CLAIMS[number].jobs(CPU)} == {CPU.data}


def test_alpha_1_is_to_help_on_cifar_100_only():
    pairs = [(contest.worse.label, contest.better.label) for contest in others.alpha_contests(PAPER)]
    assert [worse.startswith("nopre-164, alpha 1") for worse, _ in pairs] == [True, False]


def test_the_data_set_decides_which_way_alpha_is_to_work():
    on_100 = Setting("cpu", "cifar100-x")
    (contest,) = others.alpha_contests(on_100)
    assert "alpha 1" in contest.better.label
    found = judged(CLAIMS[48], ends({contest.worse: 5.0, contest.better: 4.0}, on_100), on_100)
    assert found.outcome == "inconclusive"
    assert found.intervals[0].low > 0, "the half that is tested holds"
    assert "alpha 1" in others.alpha_contests(CPU)[0].worse.label


def test_1001_layers_are_not_run_at_scale_cpu_and_the_reason_is_given():
    assert CLAIMS[50].jobs(CPU) == ()
    found = judged(CLAIMS[50], lambda _: None)
    assert found.outcome == "not run"
    assert "1001 layers" in found.evidence
    assert len({job.recipe.model for job in CLAIMS[50].jobs(PAPER)}) == 2


def swept(rate, decay):
    """Return what makes records of the sweep: errors that a rate of 5 and a decay lower by these."""

    def make(job):
        recipe = job.recipe
        error = 50.0 - rate * (recipe.alpha_beta_lr == 5.0) - decay * (recipe.alpha_beta_weight_decay > 0)
        return training(job, [error + 0.1 * job.seed * recipe.alpha_beta_lr])

    return make


def test_the_sweep_has_every_combination_and_its_main_effects():
    jobs = CLAIMS[52].jobs(CPU)
    assert len({key(job) for job in jobs}) == 8 * others.SWEEP_SEEDS
    assert {job.recipe.model for job in jobs} == {"nopre20"}
    found = judged(CLAIMS[52], swept(5.0, 3.0))
    assert [round(interval.estimate, 6) for interval in found.intervals] == [4.6, 3.0, 0.0]
    assert found.outcome == "confirmed"
    assert judged(CLAIMS[52], swept(5.0, -3.0)).outcome == "refuted"
    assert judged(CLAIMS[52], swept(5.0, 0.0)).outcome == "inconclusive"


def test_a_sweep_with_a_hole_uses_whole_seeds_only():
    hole = next(iter(SWEEP.values())).jobs(CPU)[0]
    found = judged(CLAIMS[52], lambda job: None if key(job) == key(hole) else swept(5.0, 3.0)(job))
    assert [interval.n for interval in found.intervals] == [2, 2, 2]


def test_table_12_in_the_layout_of_the_paper():
    jobs = others.jobs_12(CPU)
    grid = others.show_12(results(jobs, ends(AS_SAID | {RELU: 6.0}), CPU))
    rows = {row[:4]: row for row in grid.rows}
    nopre = rows["MPELU nopre ResNet", "164", "0.25", "300 epochs, batches of 64"]
    assert isinstance(nopre[5], Cell)
    assert (nopre[4], nopre[5].paper, nopre[6].paper) == ("1.696M", "4.43 (4.53+-0.12)", "21.69 (21.88+-0.19)")
    assert nopre[5].ours.mean == pytest.approx(4.58)
    assert nopre[6].ours is None, "not on CIFAR-100"
    assert rows["MPELU nopre ResNet", "164", "0.25", "200 epochs"][5].paper == "4.87 (5.04)"
    assert rows["Pre-ResNet", "164", "", "He et al."][6].paper == "median 24.33"
    assert rows["MPELU nopre ResNet", "1001", "0.25", "300 epochs, batches of 64"][5].ours is None
    assert ("Pre-ResNet", "1001", "", "He et al. batch 64") in rows


def test_table_12_on_cifar_100_fills_its_column():
    setting = Setting("cpu", "cifar100-x", 2)
    grid = others.show_12(results(others.jobs_12(setting), lambda job: training(job, [70.0]), setting))
    assert [row[5].ours for row in grid.rows] == [None] * len(grid.rows)
    assert sum(row[6].ours is not None for row in grid.rows) == 4
