import math

import pytest
import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.init import fan, fans, fill_normal_, taylor_gain, taylor_normal_
from tests.cases import normal, over_activations


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def connections(layer: nn.Module, example: Tensor) -> tuple[int, int]:
    """Count, by differentiating, the inputs that reach one output and the outputs that one input reaches."""
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = example.clone().requires_grad_()
    output = layer(x)
    middle = tuple(side // 2 for side in output.shape[2:])
    (of_output,) = torch.autograd.grad(output[(0, 0, *middle)], x, retain_graph=True)
    (of_all,) = torch.autograd.grad(output.sum(), x)
    return int((of_output != 0).sum()), int(of_all[(0, 0, *middle)].item())


LAYERS = {
    "Linear": (lambda: nn.Linear(5, 7, bias=False), (1, 5)),
    "Conv1d": (lambda: nn.Conv1d(3, 8, 5, padding=2, bias=False), (1, 3, 9)),
    "Conv2d": (lambda: nn.Conv2d(3, 8, (3, 5), padding=(1, 2), bias=False), (1, 3, 9, 9)),
    "Conv3d": (lambda: nn.Conv3d(2, 5, 3, padding=1, bias=False), (1, 2, 5, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=3, bias=False), (1, 6, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False), (1, 6, 7, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_fans_are_the_connections_of_the_layer(name):
    build, shape = LAYERS[name]
    layer = build()
    fan_in, fan_out = connections(layer, torch.ones(shape))
    assert fan_in != fan_out
    assert fans(layer.weight, getattr(layer, "groups", 1)) == (fan_in, fan_out)


def test_modes():
    weight = torch.empty(16, 3, 5, 5)
    assert [fan(weight, mode) for mode in ("fan_in", "fan_out", "average")] == [75, 400, 237.5]
    assert fan(weight) == 75
    assert fan(torch.empty(12, 2, 3, 3), "fan_out", groups=3) == 36


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_gain_of_the_limits(alpha):
    assert taylor_gain(alpha) == pytest.approx(nn.init.calculate_gain("leaky_relu", alpha), rel=1e-15)


WORKED = [  # the fan, and the std for (alpha, beta) = (0, any), (0.25, 1) and (1, 1), to the digits that are written
    ((8, 3, 7, 7), 147, (0.11664, 0.11316, 0.08248)),
    ((8, 64, 2, 2), 256, (0.08839, 0.08575, 0.06250)),
    ((8, 128, 2, 2), 512, (0.06250, 0.06063, 0.04419)),
    ((8, 256, 2, 2), 1024, (0.04419, 0.04287, 0.03125)),
    ((8, 16, 3, 3), 144, (0.11785, 0.11433, 0.08333)),
    ((8, 64, 3, 3), 576, (0.05893, 0.05717, 0.04167)),
    ((8, 64, 1, 1), 64, (0.17678, 0.17150, 0.12500)),
    ((8, 256, 1, 1), 256, (0.08839, 0.08575, 0.06250)),
]


@pytest.mark.parametrize(("shape", "fan_in", "stds"), WORKED, ids=str)
def test_worked_examples(shape, fan_in, stds):
    assert fan(torch.empty(shape)) == fan_in
    for (alpha, beta), wanted in zip([(0, 3.0), (0.25, 1.0), (1.0, 1.0)], stds, strict=True):
        assert taylor_gain(alpha * beta) / math.sqrt(fan_in) == pytest.approx(wanted, abs=5e-6)
        # the filler writes that std: every number it draws is proportional to it
        drawn = taylor_normal_(torch.empty(shape), alpha, beta, generator=generator(0))
        unit = fill_normal_(torch.empty(shape), 1.0, generator=generator(0))
        torch.testing.assert_close(drawn, unit * wanted, rtol=2e-4, atol=0)  # 5e-6 of 0.031


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_alpha_zero_is_msra(mode):
    ours = taylor_normal_(torch.empty(24, 6, 3, 3), 0.0, 1.0, mode, generator=generator(3))
    torchs = nn.init.kaiming_normal_(torch.empty(24, 6, 3, 3), mode=mode, nonlinearity="relu", generator=generator(3))
    torch.testing.assert_close(ours, torchs, rtol=4 * 1.2e-7, atol=0)  # the same draws, scaled in float32


def test_average_mode_with_slope_one_is_glorot():
    ours = taylor_normal_(torch.empty(24, 6, 3, 3), 1.0, 1.0, "average", generator=generator(3))
    torchs = nn.init.xavier_normal_(torch.empty(24, 6, 3, 3), generator=generator(3))
    torch.testing.assert_close(ours, torchs, rtol=4 * 1.2e-7, atol=0)


def test_the_slope_is_alpha_times_beta():
    one = taylor_normal_(torch.empty(24, 6, 3, 3), 0.5, 3.0, generator=generator(3))
    other = taylor_normal_(torch.empty(24, 6, 3, 3), 1.5, 1.0, generator=generator(3))
    unit = fill_normal_(torch.empty(24, 6, 3, 3), 1.0, generator=generator(3))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, unit * math.sqrt(2 / (54 * 3.25)), rtol=4 * 1.2e-7, atol=0)


def test_groups_count_in_fan_out():
    ours = taylor_normal_(torch.empty(12, 2, 3, 3), 0.0, mode="fan_out", groups=3, generator=generator(0))
    unit = fill_normal_(torch.empty(12, 2, 3, 3), 1.0, generator=generator(0))
    torch.testing.assert_close(ours, unit * math.sqrt(2 / 36), rtol=4 * 1.2e-7, atol=0)


def test_returns_and_fills_the_same_tensor_without_recording():
    weight = nn.Parameter(torch.zeros(4, 4))
    assert taylor_normal_(weight) is weight
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert (weight != 0).all()


def test_a_seed_means_the_same_weights_whatever_the_dtype_threads_and_earlier_draws():
    wanted = fill_normal_(torch.empty(40, 30), 0.1, generator=generator(5))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        got = fill_normal_(torch.empty(40, 30, dtype=dtype), 0.1, generator=generator(5))
        assert torch.equal(got, wanted.to(dtype))
    strided = torch.empty(30, 40).T
    assert torch.equal(fill_normal_(strided, 0.1, generator=generator(5)), wanted)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(fill_normal_(torch.empty(40, 30), 0.1, generator=generator(5)), wanted)
    finally:
        torch.set_num_threads(threads)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        state = torch.random.get_rng_state()
        assert torch.equal(fill_normal_(torch.empty(40, 30), 0.1, generator=generator(5)), wanted)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(fill_normal_(torch.empty(40, 30), 0.1), fill_after(123))
        assert not torch.equal(fill_normal_(torch.empty(40, 30), 0.1, generator=generator(6)), wanted)


def fill_after(seed: int) -> Tensor:
    """What the default generator draws after that seed."""
    return fill_normal_(torch.empty(40, 30), 0.1, generator=generator(seed))


def test_drawn_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        weight = fill_normal_(torch.empty(4, 4, device="cpu"), 0.1, generator=generator(5))
    assert torch.equal(weight, fill_normal_(torch.empty(4, 4), 0.1, generator=generator(5)))


def test_drawn_numbers_are_normal():
    drawn = fill_normal_(torch.empty(100_000), 0.5, generator=generator(0)).double()
    count = drawn.numel()
    assert abs(drawn.mean()) < 4 * 0.5 / math.sqrt(count)  # 4 standard errors, here and below
    assert abs(drawn.std() / 0.5 - 1) < 4 / math.sqrt(2 * count)
    assert abs((drawn.abs() < 0.5).double().mean() - 0.682689) < 4 * math.sqrt(0.2166 / count)


def test_errors():
    with pytest.raises(UsageError, match=r"2 or more dimensions to have fans, got shape \(3,\)"):
        fans(torch.empty(3))
    with pytest.raises(UsageError, match=r"mode must be one of fan_in, fan_out, average, got 'fan_avg'"):
        fan(torch.empty(3, 3), "fan_avg")
    for groups in (0, 5):
        with pytest.raises(UsageError, match=rf"groups must divide the 12 output channels, got {groups}"):
            fans(torch.empty(12, 2), groups)


def moments(formula, variance: float = 1.0) -> tuple[float, float]:
    """Return E[f(y)^2] and E[f'(y)^2] for y ~ N(0, variance), by the midpoint rule, which never meets the kink at 0."""
    width = 1e-3
    y = (torch.arange(-10_000, 10_000, dtype=torch.float64) + 0.5) * width  # +-10 standard deviations
    density = torch.exp(-(y**2) / 2) / math.sqrt(2 * math.pi) * width
    y = (y * math.sqrt(variance)).requires_grad_()
    value = formula(y)
    (derivative,) = torch.autograd.grad(value.sum(), y)
    return (value.detach() ** 2 * density).sum().item(), (derivative**2 * density).sum().item()


def mean_and_standard_error(values: list[float]) -> tuple[float, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.mean().item(), (tensor.std() / math.sqrt(len(values))).item()


REPEATS = 40
SEEDS = range(REPEATS)
# a circle instead of a border: every output has all its inputs and every input reaches all its outputs
CONNECTED = {
    "Linear": (lambda: nn.Linear(24, 72, bias=False).double(), (64, 24)),
    "Conv2d": (
        lambda: nn.Conv2d(6, 18, 3, padding=1, padding_mode="circular", bias=False).double(),
        (4, 6, 6, 6),
    ),
    "grouped": (
        lambda: nn.Conv2d(12, 36, 3, padding=1, padding_mode="circular", groups=2, bias=False).double(),
        (4, 12, 6, 6),
    ),
}


def fill(layer: nn.Module, slope: float, mode: str, seed: int) -> None:
    taylor_normal_(layer.weight, slope, 1.0, mode, groups=getattr(layer, "groups", 1), generator=generator(seed))


@pytest.mark.parametrize("layer_name", CONNECTED)
@over_activations
def test_forward_signal_through_activation_and_layer(case, layer_name):
    """Eq. 22 with fan_in multiplies the second moment by 2 E[f^2] / (1 + slope^2), which is 1 for straight lines."""
    build, shape = CONNECTED[layer_name]
    activation, layer = case.build(shape[1]).double(), build()
    measured = []
    with torch.no_grad():
        for seed in SEEDS:
            fill(layer, case.slope, "fan_in", seed)
            measured.append(layer(activation(normal(*shape, seed=1000 + seed))).square().mean().item())
    wanted = 2 * moments(case.formula)[0] / (1 + case.slope**2)
    if case.linear:
        assert wanted == pytest.approx(1.0, rel=1e-6)
    mean, standard_error = mean_and_standard_error(measured)
    assert standard_error < 0.05  # sharp enough: swapped fans would be wrong by a factor of 3
    assert abs(mean - wanted) < 4 * standard_error


@pytest.mark.parametrize("layer_name", CONNECTED)
@over_activations
def test_gradient_through_layer_and_activation(case, layer_name):
    """Eq. 22 with fan_out multiplies the gradient by 2 E[f'^2] / (1 + slope^2), which is 1 for straight lines."""
    build, shape = CONNECTED[layer_name]
    activation, layer = case.build(shape[1]).double(), build()
    measured = []
    for seed in SEEDS:
        fill(layer, case.slope, "fan_out", seed)
        y = normal(*shape, seed=1000 + seed).requires_grad_()
        output = layer(activation(y))
        (gradient,) = torch.autograd.grad(output, y, normal(*output.shape, seed=2000 + seed))
        measured.append(gradient.square().mean().item())
    wanted = 2 * moments(case.formula)[1] / (1 + case.slope**2)
    if case.linear:
        assert wanted == pytest.approx(1.0, rel=1e-6)
    mean, standard_error = mean_and_standard_error(measured)
    assert standard_error < 0.05
    assert abs(mean - wanted) < 4 * standard_error
