"""Intervals cover what they should, and a verdict follows from where an interval lies."""

import math

import numpy as np
import pytest

from mpelu.report.finding import Interval
from mpelu.studies import statistic


def coverage(make, truth, *, trials=300):
    """Return the share of intervals that hold the truth."""
    draw = np.random.default_rng(1)
    found = [make(draw) for _ in range(trials)]
    return sum(each.low <= truth <= each.high for each in found) / trials


# with 300 trials the share of a 95 % interval has a standard error of 1.3 %: four of them are 5 %
def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    assert abs(coverage(lambda draw: statistic.mean("x", draw.normal(3.0, 2.0, 4).tolist()), 3.0) - 0.95) <= 0.05


def test_pairs_remove_what_seeds_have_in_common():
    draw = np.random.default_rng(0)
    seeds = draw.normal(0.0, 100.0, 6)
    found = statistic.paired_difference("a - b", (seeds + 1 + draw.normal(0, 0.1, 6)).tolist(), seeds.tolist())
    assert found is not None
    assert (found.unit, found.n) == ("points", 6)
    assert found.low > 0.5
    assert found.high < 1.5


def test_the_interval_of_a_ratio_holds_it_as_often_as_it_says():
    def make(draw):
        common = draw.lognormal(0.0, 3.0, 5)
        return statistic.ratio("a / b", (2 * common * draw.lognormal(0, 0.3, 5)).tolist(), common.tolist())

    assert abs(coverage(make, 2.0) - 0.95) <= 0.05


def test_a_ratio_does_not_care_which_comes_first():
    first, second = [1.0, 2.0, 5.0], [3.0, 1.0, 4.0]
    one, other = statistic.ratio("", first, second), statistic.ratio("", second, first)
    assert math.isclose(one.low, 1 / other.high)
    assert math.isclose(one.estimate, 1 / other.estimate)


def test_a_ratio_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"positive values, got 0\.0"):
        statistic.ratio("seconds", [1.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("successes", [0, 3, 10])
def test_the_interval_of_a_share_ends_where_the_binomial_tails_are(successes):
    found = statistic.proportion("share", successes, 10)

    def at_least(k, p):
        return sum(math.comb(10, i) * p**i * (1 - p) ** (10 - i) for i in range(k, 11))

    assert math.isclose(at_least(successes, found.low), 0.025 if successes else 1.0, rel_tol=1e-9)
    assert math.isclose(1 - at_least(successes + 1, found.high), 0.025 if successes < 10 else 1.0, rel_tol=1e-6)


def test_rank_correlation_sees_a_trend_only_where_chance_does_not_reach():
    levels = [0.0, 0.1, 0.25, 0.5, 1.0]
    rising = [[1.0, 2.0, 3.0, 4.0, 5.0]]
    assert statistic.rank_correlation("r", levels, rising).low > 0  # 1 order of 120 on each side: 1.7 %
    assert statistic.rank_correlation("r", levels[:4], [rising[0][:4]]).low <= 0  # 1 order of 24 on each side: 8 %
    assert statistic.rank_correlation("r", levels[:4], [rising[0][:4]] * 2).low > 0
    falling = statistic.rank_correlation("r", levels, [run[::-1] for run in rising])
    assert (falling.estimate, falling.low) == (-1.0, -1.0)
    assert falling.high < 0


def test_rank_correlation_is_spearmans():
    from scipy import stats

    levels, run = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 2.0, 5.0, 1.0, 9.0, 7.0]
    found = statistic.rank_correlation("r", levels, [run])
    assert math.isclose(found.estimate, stats.spearmanr(levels, run).statistic, rel_tol=1e-9)


def test_rank_correlation_of_noise_leaves_out_zero_no_more_than_it_says(monkeypatch):
    monkeypatch.setattr(statistic, "PERMUTATIONS", 2000)
    share = coverage(lambda draw: statistic.rank_correlation("r", range(5), draw.normal(size=(3, 5)).tolist()), 0.0)
    assert share >= 0.91


def test_no_rank_correlation_without_differences():
    assert statistic.rank_correlation("r", [1, 2, 3], [[1.0, 1.0, 1.0]]) is None
    with pytest.raises(ValueError, match="at least 3 levels, got 2"):
        statistic.rank_correlation("r", [1, 2], [[1.0, 2.0]])


def test_the_difference_of_shares_is_that_of_newcombe():
    """Table II of the source: 36, 12, 2 and 0 pairs give 0.0569 to 0.3404."""
    pairs = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    found = statistic.share_difference("d", [a for a, _ in pairs], [b for _, b in pairs])
    assert (round(found.estimate, 4), round(found.low, 4), round(found.high, 4)) == (0.2, 0.0569, 0.3404)


def test_the_difference_of_shares_turns_with_its_sides():
    first, second = [True, True, True, False], [False, True, False, False]
    one, other = statistic.share_difference("", first, second), statistic.share_difference("", second, first)
    assert math.isclose(one.low, -other.high)
    assert math.isclose(one.high, -other.low)


@pytest.mark.parametrize(
    ("low", "high", "claimed", "outcome"),
    [
        (1.0, 3.0, "above", "confirmed"),
        (1.0, 3.0, "below", "refuted"),
        (-3.0, -1.0, "above", "refuted"),
        (-3.0, -1.0, "below", "confirmed"),
        (-1.0, 1.0, "above", "inconclusive"),
        (0.0, 1.0, "above", "inconclusive"),
    ],
)
def test_a_verdict_follows_from_the_side_on_which_an_interval_lies(low, high, claimed, outcome):
    assert statistic.outcome_of(Interval("x", "", low, low, high, 2, ""), claimed) == outcome


def test_an_interval_brings_its_own_bound():
    ratio = statistic.ratio("a / b", [2.0, 2.1, 2.2], [1.0, 1.0, 1.0])
    assert statistic.outcome_of(ratio, "above") == "confirmed"
    assert statistic.outcome_of(statistic.compared(ratio, 3.0), "above") == "refuted"
    assert statistic.outcome_of(statistic.compared(ratio, 3.0), "above", 1.0) == "confirmed"
    assert statistic.compared(None, 3.0) is None


def test_what_was_not_run_has_no_verdict():
    nothing = [
        statistic.mean("x", [1.0]),
        statistic.proportion("x", 0, 0),
        statistic.ratio("x", [1.0], [1.0]),
        statistic.rank_correlation("x", [1, 2, 3], []),
        statistic.share_difference("x", [], []),
    ]
    assert nothing == [None] * 5
    assert statistic.outcome_of(None, "above") == "not run"
    assert statistic.outcome_within(None, 0.1) == "not run"
    assert statistic.all_of([]) == "not run"


def test_one_refuted_part_refutes_a_claim():
    assert statistic.all_of(["confirmed", "inconclusive", "refuted"]) == "refuted"
    assert statistic.all_of(["confirmed", "inconclusive"]) == "inconclusive"
    assert statistic.all_of(["confirmed", "confirmed"]) == "confirmed"
