import pytest

from mpelu.report.grid import Cell
from mpelu.studies import swapped
from mpelu.studies.swapped import ELU, MPELU_A, MPELU_B, RELU, WITHOUT_DECAY
from tests.studies.by_error import training
from tests.studies.contests import CPU, ends, judged
from tests.studies.trained import results

CLAIMS = {claim.number: claim for claim in swapped.CLAIMS}
PAPER = {ELU: 8.0, RELU: 7.0, MPELU_A: 6.0, MPELU_B: 5.0, WITHOUT_DECAY: 5.0}


@pytest.mark.parametrize("number", [35, 36])
def test_the_order_of_the_paper_is_confirmed_and_another_refuted(number):
    assert judged(CLAIMS[number], ends(PAPER)).outcome == "confirmed"
    assert judged(CLAIMS[number], ends(PAPER | {MPELU_A: 7.5, MPELU_B: 9.0})).outcome == "refuted"


def test_decay_of_variant_b_is_a_control():
    found = judged(CLAIMS[36], ends(PAPER | {WITHOUT_DECAY: 1.0}))
    assert found.outcome == "confirmed"
    assert found.intervals[-1].estimate == pytest.approx(4.0)


def plain(errors):
    def make(job):
        error = errors[job.recipe.activation, job.recipe.batch_norm]
        return training(job, [error + 0.1 * (job.seed % 2)] if error else [], diverged=not error)

    return make


def test_bn_must_hurt_elu_and_help_mpelu():
    as_said = {("relu", False): 50.0, ("relu", True): 40.0, ("elu", False): 30.0, ("elu", True): 35.0}
    as_said |= {("mpelu", False): 30.0, ("mpelu", True): 28.0}
    found = judged(CLAIMS[37], plain(as_said))
    assert found.outcome == "confirmed"
    assert [interval.estimate for interval in found.intervals] == [
        pytest.approx(5),
        pytest.approx(2),
        pytest.approx(10),
    ]
    assert judged(CLAIMS[37], plain(as_said | {("elu", True): 25.0})).outcome == "refuted"
    assert judged(CLAIMS[37], plain(as_said | {("elu", True): 30.0})).outcome == "inconclusive"
    assert "RELU without BN diverged 5 of 5" in judged(CLAIMS[37], plain(as_said | {("relu", False): None})).evidence


def test_plain_nets_differ_in_activation_and_bn_only():
    jobs = CLAIMS[37].jobs(CPU)
    recipes = {str(job.recipe): job.recipe for job in jobs}.values()
    assert len(recipes) == 6
    varied = {"activation", "alpha", "beta", "batch_norm"}
    assert (
        len({str({name: value for name, value in vars(each).items() if name not in varied}) for each in recipes}) == 1
    )


def test_table_9_has_the_one_depth_of_the_text():
    made = results(swapped.EXHIBITS[0].jobs(CPU), ends(PAPER), CPU)
    grid = swapped.show_9(made)
    by_name = {row[0]: row for row in grid.rows}
    assert list(by_name)[:4] == ["ReLU", "ELU", "MPELU (A)", "MPELU (B)"]
    cells = {name: row[2] for name, row in by_name.items()}
    assert all(isinstance(each, Cell) for each in cells.values())
    assert (cells["ReLU"].paper, by_name["ReLU"][3]) == ("6.61+-0.16", "6.43")
    assert cells["ELU"].paper == "", "the text gives no number"
    assert cells["MPELU (B)"].ours.mean == pytest.approx(5.08)
    assert "depth 110 to 20" in grid.notes
