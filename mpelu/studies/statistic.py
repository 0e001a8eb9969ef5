"""The statistics behind a verdict: intervals, and what they say about a claim. They need scipy."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, overload

from mpelu.report.finding import Interval, Outcome

CONFIDENCE = 0.95
PERMUTATIONS = 100_000


def paired_difference(
    quantity: str, first: Sequence[float], second: Sequence[float], *, unit: str = "points"
) -> Interval | None:
    """Return the Student interval of the mean of ``first - second``, paired by seed; None for less than two pairs.

    Example:
        >>> found = paired_difference("a minus b", [3.0, 4.0, 5.0], [1.0, 1.0, 4.0])
        >>> round(found.estimate, 6), round(found.low, 3), round(found.high, 3), found.n
        (2.0, -0.484, 4.484, 3)
    """
    return mean(quantity, [a - b for a, b in zip(first, second, strict=True)], unit=unit, method="paired Student, 95 %")


def mean(quantity: str, values: Sequence[float], *, unit: str = "", method: str = "Student, 95 %") -> Interval | None:
    """Return the Student interval of a mean; None for less than two values.

    Example:
        >>> mean("x", [1.0]) is None
        True
    """
    from scipy import stats

    n = len(values)
    if n < 2:
        return None
    centre = statistics.fmean(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(quantity, unit, centre, centre - half, centre + half, n, method)


def proportion(quantity: str, successes: int, n: int) -> Interval | None:
    """Return the Clopper-Pearson interval of a share; None for no trial.

    Example:
        >>> found = proportion("runs that learn", 5, 5)
        >>> found.estimate, round(found.low, 3), found.high
        (1.0, 0.478, 1.0)
    """
    from scipy import stats

    if n == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return Interval(quantity, "", successes / n, low, high, n, "Clopper-Pearson, 95 %")


def ratio(quantity: str, first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Return the Student interval of the geometric mean of ``first / second``, paired; None for less than two pairs.

    For what is multiplied rather than added, such as seconds or variances.

    Raises:
        ValueError: If a value is not positive.

    Example:
        >>> found = ratio("a over b", [2.0, 4.0, 8.0], [1.0, 1.0, 1.0])
        >>> round(found.estimate, 6), round(found.low, 3), round(found.high, 3), found.n
        (4.0, 0.715, 22.38, 3)
    """
    if not all(value > 0 for value in (*first, *second)):
        raise ValueError(f"a ratio is taken of positive values, got {min(*first, *second)} for {quantity!r}")
    logs = mean(quantity, [math.log(a / b) for a, b in zip(first, second, strict=True)])
    if logs is None:
        return None
    low, centre, high = (math.exp(value) for value in (logs.low, logs.estimate, logs.high))
    return Interval(quantity, "times", centre, low, high, logs.n, "paired Student of logarithms, 95 %", bound=1.0)


def rank_correlation(quantity: str, levels: Sequence[float], runs: Sequence[Sequence[float]]) -> Interval | None:
    """Return Spearman's rank correlation of an outcome with the level of what was varied, averaged over seeds.

    The interval is the estimate plus or minus what permutations within each seed reach: it leaves out 0 just when
    the permutation test at 5 % does, also where all runs have the same order and a bootstrap would have no width.

    Args:
        quantity: What it is.
        levels: What was varied, at least 3 values.
        runs: For each seed, the outcome at each level.

    Returns:
        None for no seed, or if a seed has the same outcome at all levels.

    Example:
        >>> found = rank_correlation("error with slope", [0.0, 0.1, 0.25, 0.5, 1.0], [[1.0, 2.0, 3.0, 4.0, 5.0]])
        >>> found.estimate, round(found.low, 6), found.high, found.n
        (1.0, 0.1, 1.0, 1)
    """
    import numpy as np
    from scipy import stats

    if len(levels) < 3:
        raise ValueError(f"a rank correlation takes at least 3 levels, got {len(levels)}")
    if not runs or any(len(set(run)) == 1 for run in runs):
        return None
    given = stats.zscore(stats.rankdata(levels))
    ranks = np.stack([stats.zscore(stats.rankdata(run)) for run in runs])
    estimate = float((ranks @ given).mean() / len(levels))
    shuffle = np.random.default_rng(0)
    chance = np.zeros(PERMUTATIONS)
    for row in ranks:
        chance += shuffle.permuted(np.tile(row, (PERMUTATIONS, 1)), axis=1) @ given
    reach = float(np.quantile(np.abs(chance), CONFIDENCE, method="higher")) / (len(levels) * len(runs))
    estimate = min(1.0, max(-1.0, round(estimate, 12)))
    low, high = (round(min(1.0, max(-1.0, estimate + sign * reach)), 9) for sign in (-1, 1))
    return Interval(quantity, "", estimate, low, high, len(runs), "Spearman, permutations within seeds, 95 %")


def share_difference(quantity: str, first: Sequence[bool], second: Sequence[bool]) -> Interval | None:
    """Return Newcombe's interval of the difference of two shares, paired by seed; None for no pair.

    Source: Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10.

    Example:
        >>> found = share_difference("runs that learn", [True] * 5, [False] * 5)
        >>> found.estimate, round(found.low, 3), found.high
        (1.0, 0.386, 1.0)
    """
    n = len(first)
    if n == 0:
        return None
    pairs = list(zip(first, second, strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    one, other = sum(first), sum(second)
    (low_1, high_1), (low_2, high_2) = _wilson(one, n), _wilson(other, n)
    share_1, share_2 = one / n, other / n
    phi = _correlation(both, one - both, other - both, neither)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = share_1 - share_2
    low = max(-1.0, difference - reach(share_1 - low_1, high_2 - share_2))
    high = min(1.0, difference + reach(high_1 - share_1, share_2 - low_2))
    return Interval(quantity, "", difference, low, high, n, "Newcombe, paired, 95 %")


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the score interval of a share."""
    from scipy import stats

    found = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Return phi of a two by two table, with Newcombe's correction for continuity."""
    sides = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if sides == 0:
        return 0.0
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - (both + only_first + only_second + neither) / 2, 0.0)
    return product / math.sqrt(sides)


def computed(
    quantity: str, value: float, *, n: int, unit: str = "", error: float = 0.0, bound: float | None = None
) -> Interval:
    """Return a number that was computed, not sampled, with the error of the computation."""
    return Interval(quantity, unit, value, value - error, value + error, n, "computed", bound)


@overload
def compared(interval: Interval, bound: float) -> Interval: ...
@overload
def compared(interval: None, bound: float) -> None: ...
@overload
def compared(interval: Interval | None, bound: float) -> Interval | None: ...
def compared(interval: Interval | None, bound: float) -> Interval | None:
    """Return an interval with what its claim compares it with."""
    return None if interval is None else replace(interval, bound=bound)


def outcome_of(interval: Interval | None, claimed: Literal["above", "below"], bound: float | None = None) -> Outcome:
    """Return whether an interval lies on the claimed side of a bound, on the other one, or on both.

    Args:
        interval: None where nothing was run.
        claimed: The side.
        bound: None is the interval's own, which is 0 unless it has another.

    Example:
        >>> outcome_of(Interval("x", "", 2.0, 1.0, 3.0, 5, ""), "above")
        'confirmed'
        >>> outcome_of(Interval("x", "", 2.0, -1.0, 3.0, 5, ""), "above")
        'inconclusive'
    """
    if interval is None:
        return "not run"
    if bound is None:
        bound = interval.bound or 0.0
    above, below = interval.low > bound, interval.high < bound
    if not (above or below):
        return "inconclusive"
    return "confirmed" if above == (claimed == "above") else "refuted"


def outcome_within(interval: Interval | None, bound: float, *, around: float = 0.0) -> Outcome:
    """Return whether an interval lies within a distance of a value, for a claim that two things are alike.

    Example:
        >>> [outcome_within(Interval("x", "", 0.0, -high, high, 5, ""), 0.1) for high in (0.05, 0.5)]
        ['confirmed', 'inconclusive']
        >>> outcome_within(Interval("x", "", 2.0, 1.0, 3.0, 5, ""), 0.1)
        'refuted'
    """
    if interval is None:
        return "not run"
    if interval.low > around + bound or interval.high < around - bound:
        return "refuted"
    return "confirmed" if around - bound <= interval.low and interval.high <= around + bound else "inconclusive"


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a claim with several parts: refuted if one is, confirmed if all are.

    Example:
        >>> all_of(["confirmed", "refuted", "inconclusive"]), all_of(["confirmed", "not run"])
        ('refuted', 'not run')
    """
    order: tuple[Outcome, ...] = ("refuted", "not run", "inconclusive")
    return next((worse for worse in order if worse in outcomes), "confirmed" if outcomes else "not run")
