"""Maps of second moments and correlations, their fixed points, and the edge of chaos."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from mpelu.errors import MpeluError, UsageError
from mpelu.moments import (
    correlation_map,
    critical_point,
    depth_scale,
    fixed_point,
    moments,
    slope,
    variance_map,
    variance_slope,
)
from mpelu.nn import MPELU
from tests.cases import over_activations

EXACT_GAINS = {  # 1 / E f^2 at q = 1, to the digits that are known from elsewhere
    "ReLU": (nn.ReLU(), 2.0),
    "LeakyReLU(0.25)": (nn.LeakyReLU(0.25), 1.8824),
    "ELU": (nn.ELU(), 1.5505),
    "MPELU(0.25, 1)": (MPELU(1, 0.25, 1.0), 1.9644),
    "SELU": (nn.SELU(), 1.0000),
    "GELU": (nn.GELU(), 2.3517),
    "SiLU": (nn.SiLU(), 2.8108),
    "Mish": (nn.Mish(), 2.2107),
    "tanh": (nn.Tanh(), 2.5362),
}
CRITICAL = {  # weight variance, bias variance and V' at q = 1
    "ReLU": (nn.ReLU(), 2.0, 0.0, 1.0),
    "LeakyReLU(0.25)": (nn.LeakyReLU(0.25), 1.8824, 0.0, 1.0),
    "ELU": (nn.ELU(), 1.4968, 0.0347, 0.860),
    "MPELU(0.25, 1)": (MPELU(1, 0.25, 1.0), 1.9588, 0.0028, 0.989),
    "SELU": (nn.SELU(), 0.9332, 0.0668, 0.730),
    "tanh": (nn.Tanh(), 2.1533, 0.1510, 0.3915),
}
SMOOTH = [nn.ELU(), nn.SELU(), nn.GELU(), nn.SiLU(), nn.Tanh(), MPELU(1, 0.25, 1.0)]
over_smooth = pytest.mark.parametrize("activation", SMOOTH, ids=lambda unit: type(unit).__name__)


@pytest.mark.parametrize(("activation", "gain"), EXACT_GAINS.values(), ids=EXACT_GAINS)
def test_exact_gains(activation, gain):
    assert 1 / moments(activation).second_moment == pytest.approx(gain, abs=5e-5)
    assert variance_map(activation, 1.0, weight_variance=gain) == pytest.approx(1.0, abs=5e-5)


@pytest.mark.parametrize("known", CRITICAL.values(), ids=CRITICAL)
def test_critical_points_at_one(known):
    activation, weight_variance, bias_variance, growth = known
    point = critical_point(activation)
    assert (point.second_moment, point.stable) == (1.0, True)
    assert point.weight_variance == pytest.approx(weight_variance, abs=5e-5)
    assert point.bias_variance == pytest.approx(bias_variance, abs=5e-5)
    assert point.variance_slope == pytest.approx(growth, abs=5e-4)


@pytest.mark.parametrize(
    ("activation", "smallest", "at_one"), [(nn.GELU(), 3.56, 1.067), (nn.SiLU(), 14.32, None)], ids=["GELU", "SiLU"]
)
def test_where_one_is_unstable_the_smallest_stable_is_taken(activation, smallest, at_one):
    unstable = critical_point(activation, second_moment=1.0)
    assert not unstable.stable
    assert at_one is None or unstable.variance_slope == pytest.approx(at_one, abs=5e-4)
    point = critical_point(activation)
    assert point.stable
    assert point.second_moment == pytest.approx(smallest, abs=0.005)
    assert not critical_point(activation, second_moment=0.99 * point.second_moment).stable
    assert critical_point(activation, second_moment=1.01 * point.second_moment).stable


@over_smooth
@pytest.mark.parametrize("q", [0.5, 1.0, 30.0])
def test_a_critical_point_is_a_fixed_point_with_slope_one(activation, q):
    point = critical_point(activation, second_moment=q)
    weights, biases = point.weight_variance, point.bias_variance
    assert variance_map(activation, q, weight_variance=weights, bias_variance=biases) == pytest.approx(q, rel=1e-12)
    assert slope(activation, second_moment=q, weight_variance=weights) == pytest.approx(1.0, rel=1e-12)
    growth = variance_slope(activation, second_moment=q, weight_variance=weights)
    assert point.variance_slope == pytest.approx(growth, rel=1e-12)


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.LeakyReLU(0.3), nn.Identity(), lambda x: x.abs()],
    ids=["ReLU", "LeakyReLU", "Identity", "abs"],
)
@pytest.mark.parametrize("q", [1e-3, 1.0, 77.0])
def test_scale_invariant_activations_need_no_bias_at_any_q(activation, q):
    point = critical_point(activation, second_moment=q)
    assert (point.bias_variance, point.stable) == (0.0, True)
    assert point.weight_variance * moments(activation).slope_second_moment == pytest.approx(1.0, rel=1e-12)


def test_sigmoid_is_critical_only_far_out():
    with pytest.raises(UsageError, match="would need the bias variance -"):
        critical_point(nn.Sigmoid(), second_moment=1.0)
    point = critical_point(nn.Sigmoid())
    assert point.second_moment > 10
    assert 0 <= point.bias_variance < 1e-6 * point.second_moment
    assert point.variance_slope < 1


def test_activations_without_a_critical_point():
    with pytest.raises(UsageError, match="derivative of the activation is 0"):
        critical_point(torch.sign)
    with pytest.raises(MpeluError, match="no stable critical point"):
        critical_point(torch.square)
    with pytest.raises(MpeluError, match="no stable critical point"):
        critical_point(torch.exp)  # V' = 2 everywhere, and the moments overflow above q = 194


@over_smooth
@pytest.mark.parametrize("start", [0.3, 5.0])
def test_fixed_point_is_where_the_iteration_ends(activation, start):
    weights, biases = 1.3, 0.2
    point = fixed_point(activation, weight_variance=weights, bias_variance=biases, start=start)
    q = start
    for _ in range(150):
        q = variance_map(activation, q, weight_variance=weights, bias_variance=biases)
        if q > 1e13:
            q = math.inf
            break
    assert point.second_moment == pytest.approx(q, rel=1e-9)
    if math.isfinite(q):
        assert point.stable
        assert variance_map(activation, q, weight_variance=weights, bias_variance=biases) == pytest.approx(q, rel=1e-9)


@pytest.mark.parametrize(
    ("weight_variance", "bias_variance", "q", "stable"),
    [(2.0, 0.0, 1.0, True), (1.9, 0.0, 0.0, True), (2.1, 0.0, math.inf, False), (1.0, 0.25, 0.5, True)],
)
def test_fixed_points_of_relu(weight_variance, bias_variance, q, stable):
    point = fixed_point(nn.ReLU(), weight_variance=weight_variance, bias_variance=bias_variance)
    assert point.second_moment == pytest.approx(q, rel=1e-12)
    assert point.stable is stable
    assert point.variance_slope == pytest.approx(weight_variance / 2, rel=1e-9)
    assert point.slope == pytest.approx(weight_variance / 2, rel=1e-9)


@over_activations
def test_variance_slope_is_the_derivative_of_the_map(case):
    unit, q, step = case.build(1), 0.8, 1e-4
    above, below = (variance_map(unit, q + sign * step, weight_variance=1.7) for sign in (1, -1))
    found = variance_slope(unit, second_moment=q, weight_variance=1.7)
    assert (above - below) / (2 * step) == pytest.approx(found, rel=1e-6)


@over_smooth
def test_correlation_map(activation):
    q, weights, biases = 1.0, 1.5, 0.1

    def image(c: float) -> float:
        return correlation_map(activation, c, second_moment=q, weight_variance=weights, bias_variance=biases)

    assert image(1.0) == pytest.approx(1.0, rel=1e-12)
    grid = [image(k / 10) for k in range(11)]
    assert grid == sorted(grid)
    rises = [after - before for before, after in pairwise(grid)]
    assert all(after >= before - 1e-12 for before, after in pairwise(rises))  # convex on [0, 1]
    total = variance_map(activation, q, weight_variance=weights, bias_variance=biases)
    chi = slope(activation, second_moment=q, weight_variance=weights)
    step = 1e-4
    # C'(1) = chi q / V(q); C'' is finite or, at a kink, has a root singularity: sqrt(step) times a small jump
    assert (1.0 - image(1.0 - step)) / step == pytest.approx(chi * q / total, abs=5e-3)


def test_correlation_map_of_relu_starts_at_one_over_pi():
    image = correlation_map(nn.ReLU(), 0.0, second_moment=3.0, weight_variance=0.7)
    assert image == pytest.approx(1 / math.pi, rel=1e-13)


def test_depth_scales_of_relu_and_tanh():
    critical = critical_point(nn.Tanh())
    scale = depth_scale(nn.Tanh(), weight_variance=critical.weight_variance, bias_variance=critical.bias_variance)
    assert scale.correlation == math.inf
    assert scale.fixed_correlation == 1.0
    assert scale.second_moment == pytest.approx(-1 / math.log(critical.variance_slope), rel=1e-6)
    ordered = depth_scale(nn.ReLU(), weight_variance=1.0, bias_variance=0.5)
    assert ordered.second_moment == pytest.approx(1 / math.log(2), rel=1e-9)
    assert ordered.correlation == pytest.approx(1 / math.log(2), rel=1e-9)


@pytest.mark.parametrize("bias_variance", [0.0, 0.05])
def test_in_the_chaotic_phase_correlations_settle_below_one(bias_variance):
    activation, weights = nn.Tanh(), 4.0
    scale = depth_scale(activation, weight_variance=weights, bias_variance=bias_variance)
    q = fixed_point(activation, weight_variance=weights, bias_variance=bias_variance).second_moment
    c, distances = scale.fixed_correlation + 0.02, []
    for _ in range(6):
        c = correlation_map(activation, c, second_moment=q, weight_variance=weights, bias_variance=bias_variance)
        distances.append(c - scale.fixed_correlation)
    assert (scale.fixed_correlation == pytest.approx(0.0, abs=1e-12)) == (bias_variance == 0)
    assert all(0 < after < before for before, after in pairwise(distances))
    # the map is convex: from above, the rate is that at the fixed point plus something of the size of the distance
    rate = distances[-1] / distances[-2]
    assert -1 / math.log(rate) == pytest.approx(scale.correlation, rel=0.05)


def test_what_is_refused():
    with pytest.raises(UsageError, match="diverges"):
        depth_scale(nn.ReLU(), weight_variance=3.0)
    with pytest.raises(UsageError, match="weight_variance must be"):
        slope(nn.ReLU(), second_moment=1.0, weight_variance=-1.0)
    with pytest.raises(UsageError, match="bias_variance must be"):
        fixed_point(nn.ReLU(), weight_variance=1.0, bias_variance=math.nan)
    with pytest.raises(UsageError, match="variance must be"):
        variance_map(nn.ReLU(), 0.0, weight_variance=1.0)
    with pytest.raises(UsageError, match="no correlation"):
        correlation_map(nn.ReLU(), 0.5, second_moment=1.0, weight_variance=0.0)
