"""Covariances of an activation of two correlated Gaussian variables."""

import math

import pytest
import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.moments import covariance, elementwise, moments, slope_covariance
from mpelu.nn import MPELU, SReLU
from tests.cases import normal, over_activations

CORRELATIONS = [-1.0, -0.95, -0.3, 0.0, 0.2, 0.7, 0.99, 1 - 1e-6, 1.0]
over_correlations = pytest.mark.parametrize("c", CORRELATIONS)

KNOWN = {
    "x^2": (torch.square, lambda q, c: q * q * (1 + 2 * c * c)),
    "x^3": (lambda x: x**3, lambda q, c: q**3 * (9 * c + 6 * c**3)),
    "cos": (torch.cos, lambda q, c: (math.exp(-q * (1 - c)) + math.exp(-q * (1 + c))) / 2),
    "sin": (torch.sin, lambda q, c: (math.exp(-q * (1 - c)) - math.exp(-q * (1 + c))) / 2),
    "sign": (torch.sign, lambda q, c: 2 / math.pi * math.asin(c)),
    "erf": (lambda x: torch.erf(x), lambda q, c: 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))),  # noqa: PLW0108
    "abs": (torch.abs, lambda q, c: 2 * q / math.pi * (math.sqrt(1 - c * c) + c * math.asin(c))),
}


@over_correlations
@pytest.mark.parametrize("q", [0.01, 1.0, 40.0])
@pytest.mark.parametrize("name", KNOWN)
def test_quadrature_agrees_with_what_is_known(name, q, c):
    function, known = KNOWN[name]
    size = known(q, 1.0)
    assert abs(covariance(function, variance=q, correlation=c) - known(q, c)) <= 1e-12 * size


@pytest.mark.parametrize("c", [-1.0, -0.95, 0.2, 1 - 1e-6])
@pytest.mark.parametrize("mean", [0.0, -0.7])
@pytest.mark.parametrize(
    "unit",
    [
        MPELU(1, 0.25, 1.0),
        MPELU(1, -2.0, 3.0),
        nn.GELU(),
        nn.LeakyReLU(-0.4),
        nn.Hardtanh(-0.3, 2.0),
        nn.Hardshrink(0.6),
    ],
    ids=str,
)
def test_once_and_twice_integrated_agree(unit, mean, c):
    """Sequential hides the closed form, and so asks for two integrals."""
    once = covariance(unit, variance=1.7, correlation=c, mean=mean)
    twice = covariance(nn.Sequential(unit), variance=1.7, correlation=c, mean=mean)
    size = moments(unit, variance=1.7, mean=mean).second_moment
    assert abs(once - twice) <= 1e-12 * size


@over_activations
@pytest.mark.parametrize("variance", [0.01, 1.0, 100.0])
def test_ends(case, variance):
    unit = case.build(1).double()
    found = moments(unit, variance=variance, mean=0.2)

    def at(c: float) -> float:
        return covariance(unit, variance=variance, mean=0.2, correlation=c)

    size = 1e-12 * found.second_moment
    assert at(1.0) == pytest.approx(found.second_moment, abs=size)
    assert at(0.0) == pytest.approx(found.mean**2, abs=size)
    values = [at(c) for c in (0.0, 0.3, 0.6, 0.9, 1.0)]  # all its derivatives by c are squares of Hermite coefficients
    assert values == sorted(values)
    assert all(-found.second_moment <= value for value in (at(-1.0), at(-0.5)))


@over_activations
def test_agrees_with_sampling(case):
    c, q, mean = 0.6, 1.3, -0.2
    u = normal(20_000, seed=1)
    v = c * u + math.sqrt(1 - c * c) * normal(20_000, seed=2)
    products = case.formula(mean + math.sqrt(q) * u) * case.formula(mean + math.sqrt(q) * v)
    error = products.std().item() / math.sqrt(len(products))
    found = covariance(case.build(1), variance=q, correlation=c, mean=mean)
    assert abs(found - products.mean().item()) <= 4 * error + 1e-6 * products.abs().mean().item()  # float32 parameters


@over_activations
@pytest.mark.parametrize("c", [-0.5, 0.0, 0.8])
def test_prices_theorem(case, c):
    """The derivative by the covariance q c is E[f'(u) f'(v)]."""
    unit, q, step = case.build(1).double(), 1.5, 1e-4
    above, below = (covariance(unit, variance=q, correlation=c + sign * step) for sign in (1, -1))
    slopes = slope_covariance(unit, variance=q, correlation=c)
    # truncation of the quotient is some 1e-8, its rounding 1e-14 / step
    assert (above - below) / (2 * step * q) == pytest.approx(slopes, rel=1e-6, abs=1e-8)


@over_activations
def test_slope_covariance_at_one_is_the_slope_moment(case):
    unit = case.build(1).double()
    found = moments(unit, variance=2.0)
    assert slope_covariance(unit, variance=2.0, correlation=1.0) == pytest.approx(found.slope_second_moment, rel=1e-11)
    zero = slope_covariance(unit, variance=2.0, correlation=0.0)
    assert zero == pytest.approx(found.slope_mean**2, rel=1e-11, abs=1e-12 * found.slope_second_moment)


@pytest.mark.parametrize("unit", [MPELU(3), nn.PReLU(3), SReLU(3)], ids=lambda unit: type(unit).__name__)
@pytest.mark.parametrize("mean", [0.0, 0.4])
def test_channels_are_averaged(unit, mean):
    name = "alpha" if isinstance(unit, MPELU) else "weight" if isinstance(unit, nn.PReLU) else "a_left"
    values = torch.tensor([0.1, 0.5, -1.0])
    with torch.no_grad():
        unit.get_parameter(name).copy_(values)
    single = []
    for value in values:
        one = type(unit)(1)
        with torch.no_grad():
            one.get_parameter(name).fill_(value)
        single.append(covariance(one, variance=0.9, correlation=0.4, mean=mean))
    for activation in (unit, nn.Sequential(unit)):
        together = covariance(activation, variance=0.9, correlation=0.4, mean=mean)
        assert together == pytest.approx(sum(single) / 3, rel=1e-11)


def test_a_wrapped_function_may_have_channels():
    slopes = torch.tensor([0.0, 1.0], dtype=torch.float64)
    function = elementwise(lambda x: torch.nn.functional.prelu(x, slopes), channels=2)
    units = [covariance(nn.LeakyReLU(slope), variance=1.0, correlation=0.5) for slope in (0.0, 1.0)]
    assert covariance(function, variance=1.0, correlation=0.5) == pytest.approx(sum(units) / 2, rel=1e-11)


@pytest.mark.parametrize("c", [1.1, -1.0001, math.nan])
def test_impossible_correlations_are_refused(c):
    for function in (covariance, slope_covariance):
        with pytest.raises(UsageError, match="correlation must lie in"):
            function(torch.tanh, variance=1.0, correlation=c)
