import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from mpelu.errors import MpeluError, UsageError
from mpelu.init.transform import Transformed, affine_for, tailored, tau_for
from mpelu.moments import correlation_map
from mpelu.nn import MPELU
from mpelu.optim import param_groups
from tests.cases import normal

SMOOTH = [
    nn.GELU(),
    nn.GELU("tanh"),
    nn.ELU(),
    nn.CELU(2.0),
    nn.SiLU(),
    nn.Mish(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.LogSigmoid(),
    nn.Softsign(),
    MPELU(1, 1.0, 1.0),
    MPELU(3, 4.0, 0.25),
    MPELU(1, 98.0, 1 / 98, save="output"),
    torch.erf,
    lambda x: x * torch.sigmoid(1.702 * x),
]
KINKED = [
    nn.ReLU(),
    nn.LeakyReLU(0.1),
    nn.PReLU(),
    nn.ReLU6(),
    nn.Hardtanh(),
    nn.Hardswish(),
    nn.Hardshrink(),
    nn.SELU(),
    nn.ELU(2.0),
    MPELU(1, 0.25, 1.0),
    nn.Threshold(0.1, 20.0),
    torch.sign,
    lambda x: torch.sin(x).abs(),
]
over_smooth = pytest.mark.parametrize("activation", SMOOTH, ids=lambda unit: str(unit).partition(" at 0x")[0])
over_depths = pytest.mark.parametrize("depth", [10, 100, 1000])


def in_float64(unit: Transformed) -> Transformed:
    return copy.deepcopy(unit).requires_grad_(False).double()


def points(unit: Transformed) -> tuple[Tensor, Tensor]:
    """Return midpoints of narrow intervals and their Gaussian mass; an interval ends where f'' may jump, at f(0)."""
    jump = min(max(-unit.input_shift / unit.input_scale, -9.0), 9.0)
    parts = [torch.linspace(low, high, 100_001, dtype=torch.float64) for low, high in ((-9.0, jump), (jump, 9.0))]
    z = torch.cat([(part[1:] + part[:-1]) / 2 for part in parts])
    width = torch.cat([part.diff() for part in parts])
    return z, width * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def over_channels(unit: Transformed, z: Tensor) -> Tensor:
    """Return the output at points of shape (n,) for 3 channels, shape (n, 3); the units of SMOOTH have 1 or 3."""
    return unit(z[:, None].repeat(1, 3))


@over_depths
@over_smooth
def test_the_four_conditions(activation, depth):
    """Second moment, its growth, gradient and curvature, by the midpoint rule and finite differences."""
    tau = 0.7
    unit = in_float64(tailored(activation, depth, tau=tau))
    z, mass = points(unit)

    def mean(values: Tensor) -> float:
        return float((values.mean(1) * mass).sum())

    # differences of step h err by h^2 f''' and rounding / h^k, with rounding 2e-16 times the s |d| of up to 100
    h = 1e-3
    low, middle, high = (over_channels(unit, z + step) for step in (-h, 0.0, h))
    slope, bend = (high - low) / (2 * h), (high - 2 * middle + low) / h**2
    growth = (
        mean(over_channels(unit, z * math.sqrt(1 + h)) ** 2) - mean(over_channels(unit, z * math.sqrt(1 - h)) ** 2)
    ) / (2 * h)
    assert mean(middle**2) == pytest.approx(1, abs=2e-7)  # the midpoint rule errs by the square of the width, 1e-8
    assert growth == pytest.approx(1, abs=1e-5)
    assert mean(slope**2) == pytest.approx(1, abs=1e-5)
    assert mean(bend**2) == pytest.approx(tau / depth, rel=5e-3)  # within h of a jump of f'' the difference is off


@over_depths
@over_smooth
def test_the_conditions_hold_to_the_last_digits_by_the_solver_s_own_account(activation, depth):
    assert affine_for(activation, 0.3 / depth).error <= 1e-8


@pytest.mark.parametrize("activation", KINKED, ids=lambda unit: str(unit).partition(" at 0x")[0])
def test_a_kink_is_refused(activation):
    with pytest.raises(UsageError, match="tailored_slope"):
        tailored(activation, 50)


@pytest.mark.parametrize("activation", [torch.square, torch.exp], ids=["square", "exp"])
def test_an_activation_that_cannot_be_tailored_is_refused(activation):
    with pytest.raises(MpeluError, match="found no affine change"):
        tailored(activation, 50)


def test_wrong_numbers_are_refused():
    with pytest.raises(UsageError, match="depth must be at least 1, got 0"):
        tailored(nn.GELU(), 0)
    with pytest.raises(UsageError, match="tau must be > 0"):
        tailored(nn.GELU(), 10, tau=0.0)
    for correlation in (0.0, 1.0, math.nan):
        with pytest.raises(UsageError, match="must lie in"):
            tau_for(correlation)


@pytest.mark.parametrize("depth", [10, 100, 1000])
def test_scaling_an_activation_changes_nothing(depth):
    """MPELU(1 / b, b) is ELU in other units, and so its tailored form is the same function."""
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)[:, None]
    elu = in_float64(tailored(nn.ELU(), depth))(x)
    for beta in (0.125, 0.5, 4.0):  # exact in binary, so that alpha * beta is 1
        assert torch.allclose(in_float64(tailored(MPELU(1, 1 / beta, beta), depth))(x), elu, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_tau_sets_the_correlation_behind_a_deep_stack(eta):
    depth = 30
    unit = tailored(nn.Tanh(), depth, tau=tau_for(eta))
    c = 0.0
    for _ in range(depth):
        c = correlation_map(unit, c, second_moment=1.0, weight_variance=1.0)
    assert c == pytest.approx(eta, abs=0.05)  # the limit of many layers; the next order is of size tau / depth


def stack(build, depth: int, width: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(width, width, dtype=torch.float64)
        nn.init.orthogonal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, build().double()]
    return nn.Sequential(*layers)


def through(net: nn.Sequential, width: int) -> tuple[float, float, float]:
    """Return second moment and cosine of two outputs whose inputs have cosine 0, and the norm of the gradient."""
    inputs = nn.init.orthogonal_(torch.empty(8, width, dtype=torch.float64), generator=torch.Generator().manual_seed(1))
    x = (inputs * math.sqrt(width)).requires_grad_()
    y = net(x)
    cotangent = normal(8, width, seed=2)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    cosines = torch.nn.functional.cosine_similarity(y[:4], y[4:]).mean().item()
    return y.square().mean().item(), cosines, (gradient.norm() / cotangent.norm()).item()


@pytest.mark.parametrize(
    "activation", [nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Softplus], ids=lambda kind: kind.__name__
)
def test_a_stack_of_100_layers_keeps_signal_and_gradient(activation):
    depth, width = 100, 128
    second_moment, cosine, gradient = through(stack(lambda: tailored(activation(), depth), depth, width), width)
    # a layer changes log q of one input by 2 h1 h2 mean(z He2(z)), of deviation sqrt(10 curvature / width) = 0.015, and
    # the mean over 8 inputs takes a random walk of 100 steps: 0.05, of which 4 are allowed
    assert abs(math.log(second_moment)) < 0.2
    assert abs(math.log(gradient)) < 0.2
    assert abs(cosine - 0.3 / 2.3) < 0.1
    # the control: a plain stack does neither keep its signal nor its gradient nor tell inputs apart
    second_moment, cosine, gradient = through(stack(activation, depth, width), width)
    assert not 0.2 < gradient < 5
    assert not 0.2 < second_moment < 5 or cosine > 0.9


def test_the_wrapper_is_its_formula():
    unit = Transformed(MPELU(4, 0.5, 0.5), 0.3, -0.2, 3.0, 0.1).double()
    x = normal(5, 4)
    expected = 3.0 * (unit.activation(0.3 * x - 0.2) + 0.1)
    assert torch.allclose(unit(x), expected, rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(unit, x.requires_grad_())
    assert Transformed(torch.sin)(x).equal(torch.sin(x))


def test_the_numbers_are_saved_and_are_no_parameters():
    unit = tailored(MPELU(4, 1.0, 1.0), 30)
    other = Transformed(MPELU(4))
    file = io.BytesIO()
    torch.save(unit.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = normal(2, 4, dtype=torch.float32)
    assert other(x).equal(unit(x))
    assert copy.deepcopy(unit)(x).equal(unit(x))
    assert {name for name, _ in unit.named_parameters()} == {"activation.alpha", "activation.beta"}
    assert {group["name"] for group in param_groups(unit, lr=1.0, weight_decay=0.0)} == {"alpha", "beta"}
    assert all(isinstance(value, Tensor) for value in unit.state_dict().values())  # what safetensors can hold


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_lose_no_more_than_the_rounding_of_input_and_output(dtype):
    unit = tailored(nn.GELU(), 1000)
    x = normal(1000).to(dtype)
    exact = in_float64(unit)(x.double())
    rounded = unit.to(dtype)(x)
    assert rounded.dtype == dtype
    epsilon = torch.finfo(dtype).eps
    assert ((rounded.double() - exact).abs() <= epsilon / 2 * exact.abs() + 1e-4).all()  # 1e-4: s |d| eps of float32


@pytest.mark.parametrize("unit", [tailored(nn.GELU(), 20), tailored(nn.ELU(inplace=True), 20)], ids=["gelu", "elu_"])
def test_the_input_is_not_written_over(unit):
    x = normal(4, 4)
    before = x.clone()
    unit(x)
    assert x.equal(before)


def test_compiles_and_exports():
    model = nn.Sequential(nn.Linear(4, 4), tailored(nn.GELU(), 5), nn.Linear(4, 4), tailored(nn.GELU(), 50))
    x = normal(3, 4, dtype=torch.float32)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), expected, rtol=1e-5, atol=1e-5)  # another order of the float32 sums, times s |d|
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), expected, rtol=1e-5, atol=1e-5)


def test_reads_as_what_it_is():
    assert repr(Transformed(nn.Tanh(), 0.5, 0.25, 2.0, -0.125)).splitlines()[1].strip() == (
        "input_scale=0.5, input_shift=0.25, output_scale=2, output_shift=-0.125"
    )
