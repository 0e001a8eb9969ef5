import math

import pytest
import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.init import GAINS, centered_critical, gain, negative_slope
from mpelu.moments import moments
from mpelu.nn import MPELU, SPELU, SReLU
from tests.cases import normal, over_activations


@over_activations
def test_slope_of_an_activation(case):
    assert negative_slope(case.build(4)) == pytest.approx(abs(case.slope), rel=2e-7)  # float32 alpha and beta


def test_slope_is_the_root_mean_square_over_channels():
    module = MPELU(2)
    module.load_state_dict({"alpha": torch.tensor([3.0, -1.0]), "beta": torch.tensor([1.0, 1.0])})
    assert negative_slope(module) == pytest.approx(math.sqrt(5), rel=1e-7)
    prelu = nn.PReLU(2)
    prelu.load_state_dict({"weight": torch.tensor([0.0, 1.0])})
    assert negative_slope(prelu) == pytest.approx(math.sqrt(0.5), rel=1e-7)
    slopes = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert negative_slope(lambda x: nn.functional.prelu(x, slopes), 2) == pytest.approx(math.sqrt(0.5))


def test_slopes_of_functions_and_of_other_rectifiers():
    assert negative_slope(torch.relu) == 0.0
    assert negative_slope(lambda x: torch.where(x > 0, x, 0.3 * x)) == pytest.approx(0.3)
    assert negative_slope(SPELU(init_alpha=2.0)) == 2.0


@pytest.mark.parametrize("unit", [nn.GELU(), nn.SELU(), nn.Tanh(), SReLU(init_a_right=0.5), nn.ReLU6(), nn.Sigmoid()])
def test_slope_of_another_function_is_refused(unit):
    with pytest.raises(UsageError, match=rf"Eq\. 22 covers units with f\(x\) = x .*got {type(unit).__name__}"):
        negative_slope(unit)


UNITS = [nn.ReLU(), nn.ELU(), nn.GELU(), nn.Tanh(), nn.SELU(), nn.Softplus(), MPELU(1, 2.0, 0.5)]
over_units = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: type(unit).__name__)


@pytest.mark.parametrize("second_moment", [0.25, 1.0, 4.0])
@over_units
def test_the_second_moment_behind_a_layer(unit, second_moment):
    """Sampled; what all rows have in common, the mean, goes through 2000 units: a standard error of sqrt(2 / 2000)."""
    z = math.sqrt(second_moment) * normal(500, 200)
    weight = normal(200, 2000, seed=1) * gain(unit, second_moment=second_moment) / math.sqrt(200)
    with torch.no_grad():
        behind = unit.double()(z.clone()) @ weight
    assert behind.square().mean().item() == pytest.approx(second_moment, rel=0.1)
    unit.float()


@over_units
def test_the_gradient_behind_a_layer(unit):
    z = normal(2000, 100).requires_grad_()
    weight = normal(50, 100, seed=1) * gain(unit, "critical") / math.sqrt(50)
    behind = unit.double()(z.clone())
    (gradient,) = torch.autograd.grad(behind, z, normal(2000, 50, seed=2) @ weight)
    assert gradient.square().mean().item() == pytest.approx(1.0, rel=0.05)
    unit.float()


def test_known_gains():
    for method in ("second_moment", "critical", "taylor", "kaiming"):
        assert gain(nn.ReLU(), method) == pytest.approx(math.sqrt(2), rel=1e-12)
    assert gain(nn.LeakyReLU(0.5), "taylor") == pytest.approx(math.sqrt(2 / 1.25))
    assert gain(nn.LeakyReLU(0.5)) == pytest.approx(math.sqrt(2 / 1.25), rel=1e-12)
    assert gain(nn.Identity()) == gain(nn.Identity(), "xavier") == 1.0
    # those that SELU was designed for: mean 0 and variance 1 stay
    assert gain(nn.SELU()) == pytest.approx(1.0, abs=1e-6)
    assert set(GAINS) == {"second_moment", "critical", "taylor", "kaiming", "xavier"}


@pytest.mark.parametrize("second_moment", [0.1, 1.0, 10.0])
@over_units
def test_centered_rows_keep_both_signals_for_every_activation(unit, second_moment):
    point = centered_critical(unit, second_moment)
    of = moments(unit, variance=second_moment)
    assert point.gain**2 * of.slope_second_moment == pytest.approx(1.0, rel=1e-9)
    assert point.bias_variance >= 0
    assert point.gain**2 * of.variance + point.bias_variance == pytest.approx(second_moment, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gain(nn.ELU(), "he"), "unknown gain 'he'; known: second_moment, critical, taylor, kaiming, xavier"),
        (lambda: gain(nn.ELU(), second_moment=0.0), r"second_moment must be a number > 0, got 0\.0"),
        (lambda: gain(nn.ELU(), second_moment=math.inf), "second_moment must be a number > 0, got inf"),
        (lambda: gain(lambda x: 0 * x), "to 0: no gain can restore them"),
        (lambda: gain(torch.sign, "critical"), "has the derivative 0: no gain lets a gradient through"),
        (lambda: centered_critical(torch.sign), "has the derivative 0: no gain lets a gradient through"),
        (lambda: gain(nn.GELU(), "taylor"), r"Eq\. 22 covers"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UsageError, match=message):
        call()
