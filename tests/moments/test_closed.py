"""What the closed forms must obey, whatever the numbers are."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.moments import expectation, moments
from mpelu.moments.tails import interval_moments, tail_moments
from mpelu.nn import MPELU, SPELU, SReLU
from tests.cases import normal, over_activations

FIELDS = ("mean", "second_moment", "slope_mean", "slope_second_moment", "cross", "growth")
PLACES = [(0.0, 1.0), (0.0, 1e-4), (0.0, 1e4), (2.0, 0.01), (-2.0, 0.3), (0.3, 7.0)]
over_places = pytest.mark.parametrize(("mean", "variance"), PLACES)


def numbers(activation, mean: float, variance: float) -> list[float]:
    found = moments(activation, mean=mean, variance=variance)
    assert found.method == "closed form"
    return [getattr(found, name) for name in FIELDS]


def assert_same(first, second, mean: float, variance: float, relative: float = 2e-13) -> None:
    """Both are right to 1e-13."""
    assert numbers(first, mean, variance) == pytest.approx(numbers(second, mean, variance), rel=relative, abs=1e-290)


SAME = {
    "alpha = 0 is ReLU": (MPELU(1, 0.0, 1.0), nn.ReLU()),
    "alpha = beta = 1 is ELU": (MPELU(1, 1.0, 1.0), nn.ELU()),
    "beta = 1 is ELU": (MPELU(1, 0.25, 1.0), nn.ELU(0.25)),
    "CELU is MPELU(a, 1 / a)": (nn.CELU(4.0), MPELU(1, 4.0, 0.25)),
    "SPELU is ELU": (SPELU(1, 2.0), nn.ELU(2.0)),
    "PReLU is LeakyReLU": (nn.PReLU(1, 0.25), nn.LeakyReLU(0.25)),
    "RReLU in eval mode is LeakyReLU": (nn.RReLU(0.25, 0.75), nn.LeakyReLU(0.5)),
    "slope 1 is the identity": (nn.LeakyReLU(1.0), nn.Identity()),
    "Hardtanh(0, 6) is ReLU6": (nn.Hardtanh(0.0, 6.0), nn.ReLU6()),
    "SReLU at its start is LeakyReLU": (SReLU(1, 0.0, 0.25, 1.0, 1.0), nn.LeakyReLU(0.25)),
    "flat SReLU is Hardtanh": (SReLU(1, -0.5, 0.0, 0.75, 0.0), nn.Hardtanh(-0.5, 0.75)),
    "Hardshrink(0) is the identity": (nn.Hardshrink(0.0), nn.Identity()),
    "Softshrink(0) is the identity": (nn.Softshrink(0.0), nn.Identity()),
    "Threshold(0, 0) is ReLU": (nn.Threshold(0.0, 0.0), nn.ReLU()),
    "F.relu": (F.relu, nn.ReLU()),
    "torch.relu": (torch.relu, nn.ReLU()),
    "F.leaky_relu": (F.leaky_relu, nn.LeakyReLU()),
    "F.relu6": (F.relu6, nn.ReLU6()),
    "F.hardtanh": (F.hardtanh, nn.Hardtanh()),
    "F.hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid()),
    "F.softshrink": (F.softshrink, nn.Softshrink()),
    "F.hardshrink": (F.hardshrink, nn.Hardshrink()),
    "F.elu": (F.elu, nn.ELU()),
    "F.celu": (F.celu, nn.CELU()),
    "F.selu": (F.selu, nn.SELU()),
    "torch.selu": (torch.selu, nn.SELU()),
    "F.gelu": (F.gelu, nn.GELU()),
    "torch.special.erf": (torch.special.erf, torch.erf),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
@over_places
def test_same_functions_have_the_same_moments(pair, mean, variance):
    assert_same(*pair, mean, variance)


@over_places
def test_small_beta_is_prelu(mean, variance):
    beta = 1e-9 / (abs(mean) + math.sqrt(variance))
    # alpha (exp(beta x) - 1) = slope x (1 + beta x / 2 + ...): within 1e-9 of a straight line over most of the mass
    unit = MPELU(1, 0.5 / beta, beta, dtype=torch.float64)
    assert_same(unit, nn.LeakyReLU(0.5), mean, variance, relative=1e-8)


@over_activations
@over_places
def test_agree_with_sampling(case, mean, variance):
    """Within 4 standard errors, of f by the plain formula and of f' by its difference quotient off the kink."""
    x = mean + math.sqrt(variance) * normal(20_000, seed=1)
    step = 1e-6 * math.sqrt(variance)
    x = x[x.abs() > step]
    value, slope = case.formula(x), (case.formula(x + step) - case.formula(x - step)) / (2 * step)
    found = moments(case.build(1), mean=mean, variance=variance)
    samples = {
        "mean": value,
        "second_moment": value**2,
        "slope_mean": slope,
        "slope_second_moment": slope**2,
        "cross": value * slope,
        "growth": value**2 * ((x - mean) ** 2 / variance - 1) / (2 * variance),
    }
    for name, sample in samples.items():
        error = sample.std().item() / math.sqrt(len(sample))
        # 1e-7 of the size: float32 alpha and beta, and the difference quotient
        slack = 4 * error + 1e-7 * sample.abs().mean().item()
        assert abs(getattr(found, name) - sample.mean().item()) <= slack, name


@over_activations
@over_places
def test_steins_identity(case, mean, variance):
    """E[(x - mean) f] = variance E[f'], since these are continuous; the left side is integrated, not closed."""
    activation = case.build(1).double()
    left, error = expectation(lambda x: (x - mean) * activation(x).detach(), mean=mean, variance=variance)
    found = moments(activation, mean=mean, variance=variance)
    size = math.sqrt(variance * found.second_moment)
    assert abs(left - variance * found.slope_mean) <= error + 1e-12 * size


@over_activations
@over_places
def test_growth_is_the_derivative_by_the_variance(case, mean, variance):
    activation = case.build(1)
    step = 1e-4 * variance
    above, below = (moments(activation, mean=mean, variance=variance + sign * step) for sign in (1, -1))
    found = moments(activation, mean=mean, variance=variance)
    quotient = (above.second_moment - below.second_moment) / (2 * step)
    # the quotient: its truncation is of the order of 1e-8, its rounding 1e-13 E f^2 / step
    assert quotient == pytest.approx(found.growth, rel=1e-6, abs=1e-13 * found.second_moment / step)


@pytest.mark.parametrize("activation", [nn.Hardshrink(0.7), nn.Threshold(0.3, -2.0)], ids=str)
@over_places
def test_growth_counts_jumps(activation, mean, variance):
    step = 1e-4 * variance
    above, below = (moments(activation, mean=mean, variance=variance + sign * step) for sign in (1, -1))
    found = moments(activation, mean=mean, variance=variance)
    quotient = (above.second_moment - below.second_moment) / (2 * step)
    assert quotient == pytest.approx(found.growth, rel=1e-4, abs=1e-13 * found.second_moment / step)


def test_channels_are_averaged():
    unit, shaped = MPELU(3, dtype=torch.float64), SReLU(3).double()
    with torch.no_grad():
        unit.alpha.copy_(torch.tensor([0.25, -0.5, 98.0]))
        unit.beta.copy_(torch.tensor([1.0, 2.0, 0.01]))
        shaped.t_left.copy_(torch.tensor([0.5, -1.0, 0.0]))  # the first is past its right threshold
        shaped.t_right.copy_(torch.tensor([-0.5, 1.0, 0.7]))
        shaped.a_right.copy_(torch.tensor([0.3, 0.8, 1.5]))
    for activation, parameters in ((unit, ("alpha", "beta")), (shaped, ("t_left", "t_right", "a_left", "a_right"))):
        together = numbers(activation, 0.3, 2.0)
        by_channel = []
        for channel in range(3):
            single = type(activation)(1).double()
            with torch.no_grad():
                for name in parameters:
                    single.get_parameter(name).copy_(activation.get_parameter(name)[channel])
            by_channel.append(numbers(single, 0.3, 2.0))
        expected = torch.tensor(by_channel, dtype=torch.float64).mean(0).tolist()
        assert together == pytest.approx(expected, rel=1e-12)
        assert torch.tensor(by_channel).std(0).min() > 1e-3  # the channels do differ


def test_crossed_srelu_agrees_with_quadrature():
    shaped = SReLU(1).double()
    with torch.no_grad():
        shaped.t_left.fill_(0.5)
        shaped.t_right.fill_(-0.25)
        shaped.a_right.fill_(0.375)
    found = moments(lambda x: 1.0 * shaped(x), mean=0.1, variance=0.8)  # not recognized
    assert numbers(shaped, 0.1, 0.8) == pytest.approx([getattr(found, name) for name in FIELDS], rel=1e-12)


def test_subclasses_are_not_taken_for_their_parents():
    class Shifted(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - 0.25

    found = moments(Shifted())
    assert found.method == "quadrature"
    assert found.mean == pytest.approx(1 / math.sqrt(2 * math.pi) - 0.25, rel=1e-12)


def test_descending_knots_have_no_closed_form():
    found = moments(nn.Hardshrink(-1.0))  # torch lets everything pass
    assert (found.method, found.second_moment) == ("quadrature", pytest.approx(1.0, rel=1e-13))


@pytest.mark.parametrize("t", [-30.0, -1.0, 0.0, 0.3, 1.99, 2.01, 3.0, 8.0, 30.0])
def test_tail_moments(t):
    mp = pytest.importorskip("mpmath")
    at = torch.tensor(t, dtype=torch.float64)
    found = tail_moments(at, torch.exp(-at * at / 2) / math.sqrt(2 * math.pi), 30)
    with mp.workdps(400):  # the recurrence loses hundreds of digits at t = 30
        known = [mp.erfc(mp.mpf(t) / mp.sqrt(2)) / 2]
        known.append(mp.npdf(t) - t * known[0])
        for n in range(2, 30):
            known.append((known[n - 2] - t * known[n - 1]) / n)
    for n in range(3):
        assert found[n].item() == pytest.approx(float(known[n]), rel=1e-13)
    grown = tail_moments(-at.abs(), torch.exp(-at * at / 2) / math.sqrt(2 * math.pi), 30)
    for n in range(3, 30):  # the error of the upward recurrence grows with its other solution, J_n(-t)
        assert abs(found[n].item() - float(known[n])) <= 1e-13 * float(known[n]) + 1e-16 * (t <= 2) * grown[n].item()


@pytest.mark.parametrize(
    ("a", "b"),
    [(-0.01, 0.01), (-3.0, 0.5), (0.2, 0.7), (0.2, 5.0), (1.5, 1.6), (4.0, 9.0), (12.0, 12.5), (-40.0, 40.0)],
)
def test_interval_moments(a, b):
    mp = pytest.importorskip("mpmath")
    ends = torch.tensor([a, b], dtype=torch.float64)
    density = torch.exp(-ends * ends / 2) / math.sqrt(2 * math.pi)
    found = interval_moments(ends[0], ends[1], density[0], density[1])
    with mp.workdps(30):
        anchor = max(a, 0.0)
        cuts = [a, *(k for k in (-6, -2, 0, 2, 6, 15) if a < k < b), b]
        for n in range(3):
            # mpmath's tolerance is absolute: 1 at the largest place
            known = mp.quad(lambda z, n=n: (z - anchor) ** n * mp.npdf(z) / mp.npdf(anchor), cuts) * mp.npdf(anchor)
            size = mp.quad(lambda z, n=n: abs(z - anchor) ** n * mp.npdf(z), cuts)
            # the density above is exp of a rounded number: up to 72 epsilon at 12
            assert abs(found[n].item() - known) <= (1e-14 + 1e-16 * anchor**2) * size
