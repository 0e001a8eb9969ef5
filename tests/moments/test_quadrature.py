"""Quadrature of functions whose kinks and jumps it is not told."""

import math
import random

import pytest
import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.moments import expectation, moments
from mpelu.moments.closed import PiecewiseLinear
from mpelu.moments.quadrature import rule

FIELDS = ("mean", "second_moment", "slope_mean", "slope_second_moment", "cross", "growth")


def random_pieces(seed: int, *, jumps: bool) -> PiecewiseLinear:
    draw = random.Random(seed)
    count = draw.randint(1, 4)
    knots = sorted(draw.choice([draw.gauss(0, 1), draw.uniform(-8, 8)]) for _ in range(count))
    slopes = [draw.choice([0.0, 1.0, draw.gauss(0, 1), draw.gauss(0, 0.01)]) for _ in range(count + 1)]
    intercepts = [draw.gauss(0, 1)]
    for knot, before, after in zip(knots, slopes, slopes[1:], strict=False):
        leap = draw.choice([-1, 1]) * 10 ** draw.uniform(-6, 1) if jumps else 0.0
        intercepts.append(intercepts[-1] + (before - after) * knot + leap)
    return PiecewiseLinear(*(torch.tensor(row, dtype=torch.float64)[:, None] for row in (knots, slopes, intercepts)))


@pytest.mark.parametrize("jumps", [False, True], ids=["kinks", "jumps"])
@pytest.mark.parametrize("seed", range(40))
def test_finds_kinks_and_jumps(seed, jumps):
    pieces = random_pieces(seed, jumps=jumps)
    draw = random.Random(seed)
    mean, variance = draw.uniform(-2, 2), 10 ** draw.uniform(-4, 4)

    def function(x: Tensor) -> Tensor:
        piece = torch.bucketize(x.detach(), pieces.knots[:, 0])
        return pieces.slopes[piece, 0] * x + pieces.intercepts[piece, 0]

    found = moments(function, mean=mean, variance=variance)
    known = pieces(torch.tensor([[mean]], dtype=torch.float64), variance)[:, 0, 0]
    sizes = moments(lambda x: function(x).abs(), mean=mean, variance=variance)
    scale = {
        "mean": sizes.mean,
        "second_moment": found.second_moment,
        # where f' is 0 but far out in the tail, this is more than is promised
        "slope_mean": math.sqrt(found.slope_second_moment),
        "slope_second_moment": found.slope_second_moment,
        "cross": math.sqrt(found.second_moment * found.slope_second_moment),
        "growth": max(abs(found.growth), found.second_moment / variance),
    }
    assert found.error < 1e-11
    for name, value in zip(FIELDS, known.tolist(), strict=True):
        # the closed form is right to 1e-13
        assert abs(getattr(found, name) - value) <= (found.error + 1e-13) * scale[name], name


@pytest.mark.parametrize("power", [0, 2, 4, 10])
@pytest.mark.parametrize("variance", [1e-4, 1.0, 1e4])
def test_powers(power, variance):
    value, error = expectation(lambda x: x**power, variance=variance)
    known = math.prod(range(power - 1, 0, -2)) * variance ** (power // 2)
    assert abs(value - known) <= error <= 1e-12 * known


@pytest.mark.parametrize("frequency", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (-2.0, 1e-4), (1.0, 100.0)])
def test_oscillations(frequency, mean, variance):
    value, error = expectation(lambda x: torch.cos(frequency * x), mean=mean, variance=variance)
    known = math.exp(-(frequency**2) * variance / 2) * math.cos(frequency * mean)
    assert abs(value - known) <= error <= 1e-10


def test_a_thousand_jumps():
    """E ceil(x) over N(1/2, 1e4) is 1, by symmetry about 1/2."""
    value, error = expectation(torch.ceil, mean=0.5, variance=1e4)
    assert abs(value - 1.0) <= error <= 1e-8


@pytest.mark.parametrize("width", [1e-1, 1e-3, 1e-6, 1e-9])
def test_steep_places(width):
    value, error = expectation(lambda x: torch.special.ndtr((x - 0.3) / width), variance=2.0)
    known = 0.5 * math.erfc(0.3 / math.sqrt(2 * (2.0 + width**2)))
    assert abs(value - known) <= error <= 1e-12


def test_a_function_in_float32_gets_a_wider_bound():
    found = moments(lambda x: torch.tanh(x.float()))
    exact = moments(torch.tanh)
    assert 1e-9 < found.error < 1e-6
    assert abs(found.second_moment - exact.second_moment) <= found.error * exact.second_moment


def test_functions_with_an_infinite_slope_moment_are_refused():
    with pytest.raises(UsageError, match="one of them is infinite"):
        moments(lambda x: x.abs().sqrt())  # f'^2 = 1 / (4 |x|)
    value, error = expectation(lambda x: x.abs().sqrt())
    known = 2**0.25 * math.gamma(0.75) / math.sqrt(math.pi)
    assert abs(value - known) <= error <= 1e-12


def test_integrable_singularity():
    """f = |x|^0.75: E f'^2 = 9/16 E |x|^-0.5 is finite though f' is not."""
    found = moments(lambda x: x.abs() ** 0.75)
    known = 9 / 16 * 2**-0.25 * math.gamma(0.25) / math.sqrt(math.pi)
    assert found.slope_second_moment == pytest.approx(known, rel=found.error)
    assert found.error < 1e-11


@pytest.mark.parametrize(
    ("function", "variance", "where"),
    [(torch.exp, 1e4, "3[0-9]{2}"), (torch.log, 1.0, "-"), (lambda x: x / 0, 1.0, "")],
)
def test_what_is_not_finite_is_refused(function, variance, where):
    with pytest.raises(UsageError, match=f"not finite.* at x = {where}"):
        moments(function, variance=variance)


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 0.0), (0.0, -1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_impossible_gaussians_are_refused(mean, variance):
    for function in (torch.relu, torch.tanh):
        with pytest.raises(UsageError, match="must be a finite number"):
            moments(function, mean=mean, variance=variance)
        with pytest.raises(UsageError, match="must be a finite number"):
            expectation(function, mean=mean, variance=variance)


def test_rule_integrates_polynomials_and_sees_their_degree():
    nodes, weights, tail = rule().nodes, rule().weights, rule().tail
    for degree in range(17):
        assert (nodes**degree @ weights).item() == pytest.approx((1 + (-1) ** degree) / (degree + 1), abs=1e-14)
        assert ((nodes**degree @ tail).abs().max() < 1e-15) == (degree < 13)
