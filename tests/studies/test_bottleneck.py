import pytest

from mpelu.report.grid import Cell
from mpelu.studies import bottleneck
from mpelu.studies.arms import Arm
from mpelu.studies.bottleneck import (
    FIG_5A,
    FIG_5A_WARM,
    FIG_5B,
    FIG_5C,
    FIG_5C_WARM,
    FIG_5E,
    FIG_5E_WARM,
    NO_END,
    NO_FIRST,
    NO_NORMS,
    NOPRE,
    NOPRE_RELU,
    PREACT,
    RELU,
    TABLE_11,
)
from mpelu.studies.jobs import Setting
from tests.studies.contests import CPU, ends, judged
from tests.studies.trained import results

CLAIMS = {claim.number: claim for claim in bottleneck.CLAIMS}
ERRORS: dict[Arm, float] = {
    RELU: 5.9, PREACT: 5.4, FIG_5A: 6.0, FIG_5A_WARM: 6.0, FIG_5B: 5.7, FIG_5C: 6.0, FIG_5C_WARM: 5.3, NOPRE: 5.0,
    FIG_5E: 8.0, FIG_5E_WARM: 8.0, NO_NORMS: 9.0, NO_FIRST: 5.6, NO_END: 9.0, NOPRE_RELU: 6.0,
}  # fmt: skip
FAIL = {arm.row for arm in (FIG_5A, FIG_5C, FIG_5E, NO_NORMS)}
DIVERGE = ["5a", "5c", "5e", "nopre without BN1 and BNend"]
UNEVEN = {FIG_5A.row: 1000.0, FIG_5C.row: 1000.0}
AS_SAID = ends(ERRORS, failing=FAIL, diverging=DIVERGE, spreads=UNEVEN)


@pytest.mark.parametrize("number", CLAIMS)
def test_what_the_paper_says_is_confirmed(number):
    found = judged(CLAIMS[number], AS_SAID)
    assert found.outcome == "confirmed", found
    assert found.differs
    assert found.evidence
    assert len(found.runs) == len(CLAIMS[number].jobs(CPU))


@pytest.mark.parametrize("number", CLAIMS)
def test_the_contrary_is_refuted(number):
    errors = {arm: 20.0 - error for arm, error in ERRORS.items()}
    contrary = ends(errors, failing={FIG_5B.row, NO_FIRST.row}, spreads={FIG_5B.row: 99.0, NOPRE.row: 99.0})
    assert judged(CLAIMS[number], contrary).outcome == "refuted"


@pytest.mark.parametrize(("number", "arm"), [(40, FIG_5A), (43, FIG_5C), (44, FIG_5E), (45, NO_NORMS)])
def test_nets_that_begin_to_learn_refute_that_they_fail(number, arm):
    found = judged(CLAIMS[number], ends(ERRORS, failing=FAIL - {arm.row}, diverging=DIVERGE))
    assert found.outcome == "refuted"
    assert f"{arm.label} failed 0 of 6" in found.evidence


def test_five_seeds_of_first_steps_say_nothing_about_most():
    five = Setting("cpu", CPU.data, 5)
    assert judged(CLAIMS[44], AS_SAID, five).outcome == "inconclusive"


def test_a_warm_up_must_help():
    found = judged(CLAIMS[43], ends(ERRORS, failing=FAIL))
    assert found.outcome == "inconclusive", "all learn, with and without it"
    found = judged(CLAIMS[43], ends(ERRORS, failing=FAIL, diverging=["5c with warm-up"]))
    assert found.outcome == "refuted"


def test_only_first_steps_are_enough_for_words_and_intervals():
    found = judged(CLAIMS[44], ends({}, failing=FAIL))
    assert found.outcome == "confirmed"
    assert "5e failed 6 of 6" in found.evidence
    assert found.intervals[0].bound == 0.5


def test_the_missing_case_is_reported_beside_the_verdict():
    found = judged(CLAIMS[45], ends(ERRORS, failing=FAIL | {NO_END.row}, diverging=DIVERGE))
    assert found.outcome == "confirmed"
    assert found.intervals[-1].quantity.startswith("share of nopre without BNend")
    assert found.intervals[-1].estimate == 1.0


def test_gradients_of_blocks_are_compared_in_powers_of_ten():
    found = judged(CLAIMS[46], AS_SAID)
    assert [round(interval.estimate, 6) for interval in found.intervals] == [2.0, 2.0]
    assert "5c 3.00 powers of ten (n = 6)" in found.evidence
    alike = judged(CLAIMS[46], ends(ERRORS))
    assert alike.outcome == "inconclusive"


def test_table_11_says_what_fails_beside_the_paper():
    (exhibit,) = bottleneck.EXHIBITS
    grid = bottleneck.show_11(results(exhibit.jobs(CPU), AS_SAID, CPU))
    rows = {row[0]: row for row in grid.rows}
    assert len(rows) == len(TABLE_11)
    ending = rows["nopre ending with BN (Fig. 5c)"]
    assert isinstance(ending[1], Cell)
    assert (ending[1].paper, ending[1].text) == ("diverges within steps at 0.1", "failed 6 of 6")
    assert (ending[2].paper, ending[2].ours, ending[2].text) == ("", None, "diverged 5 of 5")
    warm = rows["nopre ending with BN (Fig. 5c), warm-up"]
    assert warm[1].paper == "0.01 then 0.1 -> converges well"
    assert warm[2].paper == "", "the text gives no number"
    best = rows["nopre (Fig. 5d)"]
    assert (best[2].paper, best[3], best[1].text) == ("5.04", "4.87", "failed 0 of 6")
    assert rows["not in the paper: nopre with ReLU"][2].paper == ""
