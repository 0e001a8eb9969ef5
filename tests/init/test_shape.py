import math

import pytest
import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.init.shape import (
    effective_depth,
    leaky_correlation,
    shape_rates,
    stack,
    sum_correlation,
    tailored_shape,
    tailored_slope,
)
from mpelu.moments import correlation_map
from mpelu.nn import MPELU
from tests.cases import normal, plain_formula

DEPTHS = [1, 10, 52, 100, 300, 1000]
over_depths = pytest.mark.parametrize("depth", DEPTHS)


def gaussian(function, *, low: float = -12.0, high: float = 12.0) -> float:
    """Average a function that is smooth on both sides of 0: Simpson's rule on each, exact to about 1e-13."""
    total = 0.0
    for a, b in ((low, 0.0), (0.0, high)):
        x = torch.linspace(a, b, 20_001, dtype=torch.float64)
        inside = torch.full_like(x, 2.0)
        inside[1::2] = 4.0
        inside[[0, -1]] = 1.0
        y = function(torch.where(x == 0, math.copysign(1e-300, a + b), x))
        total += float((inside * y * torch.exp(-x * x / 2)).sum()) * (b - a) / 20_000 / 3
    return total / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.3, 0.99, 1.0])
def test_correlation_behind_a_leaky_unit(correlation, slope):
    expected = correlation_map(nn.LeakyReLU(slope), correlation, second_moment=2.0, weight_variance=2 / (1 + slope**2))
    assert leaky_correlation(correlation, slope) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("eta", [0.2, 0.9])
@over_depths
def test_a_slope_reaches_its_correlation_or_is_relu(depth, eta):
    found = tailored_slope(depth, eta=eta)
    c = 0.0
    for _ in range(depth):
        c = leaky_correlation(c, found.negative_slope)
    assert found.correlation == pytest.approx(c, abs=1e-12)
    assert found.gain == pytest.approx(math.sqrt(2 / (1 + found.negative_slope**2)), rel=1e-14)
    if found.negative_slope > 0:
        assert c == pytest.approx(eta, abs=1e-9)
    else:
        assert c <= eta


def test_the_slope_in_a_real_net():
    """Two orthogonal inputs leave a wide net of 50 layers with the correlation that the slope was made for."""
    depth, width = 50, 256
    found = tailored_slope(depth, eta=0.6)
    generator = torch.Generator().manual_seed(0)
    x = nn.init.orthogonal_(torch.empty(64, width), generator=generator) * math.sqrt(width)
    for _ in range(depth):
        weight = nn.init.orthogonal_(torch.empty(width, width), gain=found.gain, generator=generator)
        x = nn.functional.leaky_relu(x, found.negative_slope) @ weight.T
    cosines = nn.functional.cosine_similarity(x[:32], x[32:])
    # orthogonal weights and inputs make a pair fluctuate less than independent ones would, 1 / sqrt(width) each layer
    assert cosines.mean().item() == pytest.approx(0.6, abs=0.03)
    assert x.square().mean().item() == pytest.approx(1.0, abs=0.3)


def test_deeper_and_straighter_go_together():
    slopes = [tailored_slope(depth).negative_slope for depth in DEPTHS]
    assert slopes == sorted(slopes)
    assert tailored_slope(100, eta=0.5).negative_slope > tailored_slope(100, eta=0.9).negative_slope
    betas = [tailored_shape(depth).beta for depth in DEPTHS]
    assert betas == sorted(betas, reverse=True)
    assert tailored_shape(100, tau=1.0).beta < tailored_shape(100, tau=3.0).beta


def test_a_fraction_of_a_layer_lies_between():
    low, middle, high = (tailored_slope(depth).negative_slope for depth in (20, 20.5, 21))
    assert low < middle < high


def test_effective_depth_adds_along_a_path_and_averages_at_a_sum():
    assert effective_depth(stack(40)) == pytest.approx(40, rel=1e-4)  # the next order is depth * 1e-6
    assert effective_depth(stack(2.5)) == pytest.approx(2.5, rel=1e-4)

    def residual(layer):
        c = 0.0
        for _ in range(10):
            branch = layer(layer(c))
            c = sum_correlation([math.sqrt(0.7), math.sqrt(0.3)], [c, branch])
        return c

    assert effective_depth(residual) == pytest.approx(10 * 0.3 * 2, rel=1e-4)
    # a residual net needs less straight units than a plain one of as many layers, about those of its effective depth
    slope = tailored_slope(residual, eta=0.3).negative_slope
    assert slope == pytest.approx(tailored_slope(6, eta=0.3).negative_slope, abs=0.02)  # equal for slight bends only
    assert slope < tailored_slope(20, eta=0.3).negative_slope


def test_correlation_of_a_sum_of_real_signals():
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for c in (0.2, 0.9):
        u, v = torch.randn(2, 1_000_000, generator=generator, dtype=torch.float64)
        pairs.append((u, c * u + math.sqrt(1 - c * c) * v))
    first, second = (0.6 * one + 1.5 * two for one, two in zip(*pairs, strict=True))
    measured = (first * second).mean() / (first.square().mean() * second.square().mean()).sqrt()
    assert sum_correlation([0.6, 1.5], [0.2, 0.9]) == pytest.approx(measured.item(), abs=4e-3)  # 4 standard errors


@pytest.mark.parametrize("tau", [0.3, 3.0])
@over_depths
def test_a_shape_has_no_kink_the_wanted_curvature_and_the_exact_gain(depth, tau):
    shape = tailored_shape(depth, tau=tau)
    assert shape.alpha * shape.beta == pytest.approx(1, rel=1e-12)
    second_moment = gaussian(lambda x: plain_formula(x, shape.alpha, shape.beta) ** 2)
    bend = gaussian(lambda x: torch.where(x > 0, 0.0, shape.beta * torch.exp(shape.beta * x.clamp(max=0))) ** 2)
    slope = gaussian(lambda x: torch.where(x > 0, 1.0, torch.exp(shape.beta * x.clamp(max=0))) ** 2)
    # the printed formula loses digits for small beta x: 1e-16 / beta, times alpha
    assert bend / second_moment == pytest.approx(tau / depth, rel=1e-9)
    assert shape.gain == pytest.approx(1 / math.sqrt(second_moment), rel=1e-9)
    assert shape.slope == pytest.approx(slope / second_moment, rel=1e-9)


@over_depths
def test_the_gradient_stays_within_a_factor_of_2(depth):
    assert 1 <= tailored_shape(depth).slope ** (depth / 2) < 2


@pytest.mark.parametrize("depth", [50, 300])
def test_mpelu_keeps_signal_and_gradient_through_its_own_parameters(depth):
    width = 128
    shape = tailored_shape(depth)
    generator = torch.Generator().manual_seed(0)
    unit = MPELU(1, shape.alpha, shape.beta, dtype=torch.float64)
    x = normal(16, width, seed=1).requires_grad_()
    y = x
    for _ in range(depth):
        weight = torch.empty(width, width, dtype=torch.float64)
        nn.init.orthogonal_(weight, gain=shape.gain, generator=generator)
        y = unit(y) @ weight.T
    cotangent = normal(16, width, seed=2)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    expected = shape.slope ** (depth / 2)
    # as for the wrapper, a random walk of log q: 5 % for 16 inputs at tau 0.3, and sqrt(10) times that at tau 3
    assert abs(math.log(y.square().mean().item())) < 0.5
    assert abs(math.log(gradient.norm().item() / cotangent.norm().item() / expected)) < 0.5


@pytest.mark.parametrize(("alpha", "beta"), [(28.0, 0.02), (4.0, 0.25), (0.25, 1.0), (98.0, 0.01)])
def test_one_step_of_a_shape_parameter_moves_the_output_no_more_than_one_of_a_weight(alpha, beta):
    """Measured on steps: the same gradient reaches the output of a unit, and what a unit weight multiplies."""
    unit = MPELU(1, alpha, beta, dtype=torch.float64)
    x = normal(400_000, 1)
    rates = dict(zip(("alpha", "beta"), shape_rates(alpha, beta), strict=True))
    by_weight = unit(x).square().mean().item()
    for name, parameter in unit.named_parameters():
        moved = _movement(unit, x, parameter) * rates[name]
        assert moved <= by_weight * 1.02  # the sample's error
        assert rates[name] == 1 or moved == pytest.approx(by_weight, rel=0.02)


def _movement(unit: MPELU, x: Tensor, parameter: nn.Parameter) -> float:
    """Return the mean square of the derivative of the output by a parameter, by a central difference."""
    start, step = parameter.item(), 1e-4 * parameter.item()
    outputs = []
    with torch.no_grad():
        for value in (start + step, start - step, start):
            parameter.fill_(value)
            outputs.append(unit(x))
    return ((outputs[0] - outputs[1]) / (2 * step)).square().mean().item()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tailored_slope(0), "depth must be at least 1, got 0"),
        (lambda: tailored_slope(10, eta=1.0), "eta, the correlation behind the network"),
        (lambda: tailored_shape(0.5), "depth must be at least 1, got 0.5"),
        (lambda: tailored_shape(10, tau=-1.0), "tau must be > 0"),
        (lambda: sum_correlation([1.0], [0.5, 0.5]), "a weight for each correlation"),
        (lambda: sum_correlation([0.0], [0.5]), "not all 0"),
    ],
)
def test_wrong_numbers_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
