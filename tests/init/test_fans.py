"""Two proofs of the fans that share nothing: real operations on ones, and random signals through real layers."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.init import (
    Fans,
    blocks,
    draw,
    effective_fans,
    fan,
    fans,
    propagate_profile,
    propagate_profile_backward,
)
from mpelu.init.fans import ADAPTIVE_AVERAGES, AVERAGES, CONVOLUTIONS, TRANSPOSED
from tests.cases import normal

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # sums of fewer than 1000 float64 numbers around 1


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
def test_nominal_fans_are_the_connections_of_the_layer(name):
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
    assert [Fans(2.0, 5.0).of(mode) for mode in ("fan_in", "fan_out", "average")] == [2.0, 5.0, 3.5]


# Operations on ones: an output is then the number of its products, and so is the gradient at an input.


def random_convolution(op: str, seed: int) -> tuple[Tensor, Tensor, dict[str, Any], dict[str, Any]]:
    """Return an input and a weight of ones, the arguments of the operation and the options to describe them."""
    choose = random.Random(f"{op}/{seed}")
    count = (CONVOLUTIONS | TRANSPOSED)[op]
    groups, rows, columns = choose.choice([1, 1, 2, 3]), choose.randint(1, 3), choose.randint(1, 3)
    kernel = [choose.randint(1, 4) for _ in range(count)]
    dilation = tuple(choose.randint(1, 2) for _ in range(count))
    stride = tuple(choose.randint(1, 3) for _ in range(count))
    positions = [choose.randint(3, 8) + step * (taps - 1) for taps, step in zip(kernel, dilation, strict=True)]
    arguments = {"stride": stride, "dilation": dilation, "groups": groups, "padding": 0}
    arguments["padding"] = tuple(
        choose.randint(0, step * (taps - 1)) for taps, step in zip(kernel, dilation, strict=True)
    )
    if op in TRANSPOSED:
        arguments["output_padding"] = tuple(
            choose.randint(0, max(pair) - 1) for pair in zip(stride, dilation, strict=True)
        )
    elif seed % 4 == 0:
        arguments |= {"padding": "same", "stride": 1}
    elif seed % 4 == 1:
        arguments |= {"padding": "valid", "stride": choose.randint(1, 3)}
    channels = rows * groups if op in TRANSPOSED else columns * groups
    x = torch.ones(1, channels, *positions, dtype=torch.float64)
    return x, torch.ones(rows * groups, columns, *kernel, dtype=torch.float64), arguments


# torch tells once in a process that it pads by itself where one side needs more than the other
same_with_even_kernels = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


@same_with_even_kernels
@pytest.mark.parametrize("taps", ["all", "centre"])
@pytest.mark.parametrize("op", CONVOLUTIONS | TRANSPOSED)
def test_convolutions_count_the_products_of_the_real_operation(op, taps):
    """Forward and backward; for uniform signals (the fans) and for signals that differ from position to position."""
    for seed in range(40):
        x, weight, arguments = random_convolution(op, seed)
        if taps == "centre":
            middle = tuple((side - 1) // 2 for side in weight.shape[2:])
            weight = torch.zeros_like(weight)
            weight[(..., *middle)] = math.prod(weight.shape[2:])
        x.requires_grad_()
        z = getattr(F, op)(x, weight, **arguments)
        call = {"weight_shape": weight.shape, "options": arguments, "taps": taps}
        counted = effective_fans(op, input_shape=x.shape, output_shape=z.shape, **call)
        (of_ones,) = torch.autograd.grad(z.sum(), x, retain_graph=True)
        assert counted.fan_in == pytest.approx(z.mean().item(), rel=1e-12), arguments
        assert counted.fan_out == pytest.approx(of_ones.mean().item(), rel=1e-12), arguments

        before, behind = normal(*x.shape[2:], seed=seed).square(), normal(*z.shape[2:], seed=seed).square()
        wanted = getattr(F, op)(before.expand_as(x), weight, **arguments)[0, 0]
        torch.testing.assert_close(propagate_profile(before, op, output_shape=z.shape, **call), wanted, **EXACT)
        (wanted,) = torch.autograd.grad(z, x, behind.expand_as(z))
        got = propagate_profile_backward(behind, op, input_shape=x.shape, **call)
        torch.testing.assert_close(got, wanted[0, 0], **EXACT)


def test_output_size_of_a_transposed_convolution():
    layer = nn.ConvTranspose2d(2, 3, 3, stride=3, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = torch.ones(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    z = layer(x, output_size=(14, 16))
    counted = effective_fans(
        "conv_transpose2d", layer.weight.shape, options={"stride": 3}, input_shape=x.shape, output_shape=z.shape
    )
    assert counted.fan_in == pytest.approx(z.mean().item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert counted.fan_out == pytest.approx(gradient.mean().item(), rel=1e-12)


PADS = [
    ("constant", (2, 1)),
    ("constant", (1, 2, 0, 3)),
    ("constant", (-1, 2, 1, -1)),
    ("reflect", (2, 1, 1, 3)),
    ("replicate", (3, 1, 0, 4)),
    ("circular", (2, 2, 3, 1)),
]


@pytest.mark.parametrize(("mode", "pad"), PADS, ids=str)
def test_pads_copy_the_signal_and_add_the_gradients_of_the_copies(mode, pad):
    before = normal(5, 6, seed=1).square()[None, None].requires_grad_()
    options = {"pad": pad, "mode": mode}
    wanted = F.pad(before, pad, mode=mode)
    got = propagate_profile(before[0, 0], "pad", options=options, output_shape=wanted.shape)
    torch.testing.assert_close(got, wanted[0, 0].detach(), **EXACT)
    behind = normal(*got.shape, seed=2).square()
    (wanted_gradient,) = torch.autograd.grad(wanted, before, behind[None, None])
    got = propagate_profile_backward(behind, "pad", options=options, input_shape=before.shape)
    torch.testing.assert_close(got, wanted_gradient[0, 0], **EXACT)


def test_a_constant_pad_has_the_square_of_its_constant():
    options = {"pad": (1, 2), "mode": "constant", "value": -3.0}
    got = propagate_profile(torch.ones(2), "pad", options=options, output_shape=(5,))
    assert got.tolist() == [9.0, 1.0, 1.0, 9.0, 9.0]


POOLS = [
    ("avg_pool1d", (9,), {"kernel_size": 2}),
    ("avg_pool2d", (7, 9), {"kernel_size": (3, 2), "stride": (2, 3), "padding": 1}),
    ("avg_pool2d", (7, 9), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    ("avg_pool2d", (6, 8), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("avg_pool2d", (6, 8), {"kernel_size": 3, "stride": 2, "ceil_mode": True, "divisor_override": 5}),
    ("avg_pool3d", (4, 5, 6), {"kernel_size": 2, "stride": 1}),
    ("adaptive_avg_pool1d", (10,), {"output_size": 3}),
    ("adaptive_avg_pool2d", (7, 5), {"output_size": (3, 5)}),
    ("adaptive_avg_pool3d", (4, 5, 3), {"output_size": (2, 2, 2)}),
]


@pytest.mark.parametrize(("op", "positions", "options"), POOLS, ids=str)
def test_averages(op, positions, options):
    """The factors of an average are its derivatives; the law is that of a quadratic form with them."""
    x = torch.ones(1, 1, *positions, dtype=torch.float64)
    behind = getattr(F, op)(x, **options).shape[2:]
    factors = torch.autograd.functional.jacobian(lambda x: getattr(F, op)(x, **options).flatten(), x)
    factors = factors.reshape(-1, math.prod(positions))
    q = normal(*positions, seed=3).square()
    for correlation in (0.0, 0.3, 1.0):
        together = torch.outer(q.flatten(), q.flatten()).sqrt()
        covariance = correlation * together + (1 - correlation) * torch.diag(q.flatten())
        wanted = torch.einsum("oi,ij,oj->o", factors, covariance, factors).view(behind)
        got = propagate_profile(q, op, options=options, output_shape=behind, correlation=correlation)
        torch.testing.assert_close(got, wanted, **EXACT)
    gradients = normal(*behind, seed=4).square()
    got = propagate_profile_backward(gradients, op, options=options, input_shape=positions)
    torch.testing.assert_close(got, (factors.square().T @ gradients.flatten()).view(positions), **EXACT)


def test_every_operation_that_moves_along_positions_is_tested():
    assert {op for op, *_ in POOLS} == set(AVERAGES | ADAPTIVE_AVERAGES)


# Signals through real layers.

Run = Callable[[nn.Module, Tensor, int], Tensor]
"""Called with the layer, an input and a seed; returns the product of one weight with the input."""


@dataclass(frozen=True)
class Layer:
    """A layer, and how to see one multiplication with one of its weights."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Of its input."""
    counted: Callable[[nn.Module, Tensor, Tensor], Fans]
    """Called with the layer, its input and its output."""
    run: Run = lambda layer, x, seed: layer(x)
    weight: str = "weight"
    repeats: int = 120
    square: bool = False
    """True where fan_in is fan_out by definition; elsewhere exchanging them must show."""

    def __repr__(self) -> str:
        return self.name


def of_convolution(layer: nn.Module, x: Tensor, z: Tensor) -> Fans:
    """Describe the calls of a convolution's forward: padding that is not zeros is a pad before it."""
    op = f"conv{'_transpose' * layer.transposed}{layer.weight.dim() - 2}d"
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    if layer.padding_mode == "zeros":
        return effective_fans(op, layer.weight.shape, options=options, input_shape=x.shape, output_shape=z.shape)
    options["padding"] = 0
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    behind = effective_fans(op, layer.weight.shape, options=options, input_shape=padded.shape, output_shape=z.shape)
    return Fans(behind.fan_in, behind.fan_out * padded.numel() / x.numel())


def convolution(name: str, build: Callable[[], nn.Module], *shape: int, repeats: int = 120) -> Layer:
    return Layer(name, build, shape, of_convolution, repeats=repeats)


CONVOLVED = [
    convolution("Conv1d stride", lambda: nn.Conv1d(32, 24, 5, stride=2, padding=2, bias=False), 16, 32, 21),
    convolution("Conv2d", lambda: nn.Conv2d(16, 48, 3, padding=1, bias=False), 4, 16, 6, 6),
    convolution("Conv2d valid", lambda: nn.Conv2d(16, 48, (3, 2), padding="valid", bias=False), 4, 16, 7, 7),
    convolution("Conv2d same, even", lambda: nn.Conv2d(16, 48, (4, 2), padding="same", bias=False), 4, 16, 6, 6),
    convolution("Conv2d stride, dilation", lambda: nn.Conv2d(24, 24, 3, 2, 2, 2, bias=False), 8, 24, 9, 9),
    convolution("Conv2d groups", lambda: nn.Conv2d(32, 64, 3, padding=1, groups=4, bias=False), 4, 32, 6, 6),
    convolution("depthwise", lambda: nn.Conv2d(128, 256, 3, 2, 1, groups=128, bias=False), 1, 128, 8, 8),
    convolution("Conv2d patches left out", lambda: nn.Conv2d(16, 32, 2, stride=3, bias=False), 8, 16, 9, 9),
    *(
        convolution(
            f"Conv2d {mode}",
            lambda mode=mode: nn.Conv2d(16, 32, 5, padding=2, padding_mode=mode, bias=False),
            *(4, 16, 6, 6),
        )
        for mode in ("reflect", "replicate", "circular")
    ),
    convolution("Conv3d", lambda: nn.Conv3d(8, 24, 3, padding=1, bias=False), 4, 8, 4, 4, 4),
    convolution("Conv3d groups", lambda: nn.Conv3d(16, 32, 3, 2, 1, groups=2, bias=False), 4, 16, 5, 5, 5),
    convolution("ConvT1d", lambda: nn.ConvTranspose1d(32, 48, 5, 2, 1, output_padding=1, bias=False), 16, 32, 9),
    convolution("ConvT2d", lambda: nn.ConvTranspose2d(24, 48, 4, 2, 1, bias=False), 4, 24, 5, 5),
    convolution("ConvT2d groups", lambda: nn.ConvTranspose2d(32, 96, 3, 2, groups=2, bias=False), 4, 32, 5, 5),
    convolution("ConvT2d gaps", lambda: nn.ConvTranspose2d(48, 16, 2, 3, bias=False), 8, 48, 5, 5),
    convolution(
        "ConvT3d", lambda: nn.ConvTranspose3d(16, 8, 3, 2, 1, output_padding=1, dilation=2, bias=False), 8, 16, 3, 3, 3
    ),
]


def with_other(position: int, features: int) -> Run:
    """Give a bilinear layer the input at one position and normal numbers at the other."""

    def run(layer: nn.Module, x: Tensor, seed: int) -> Tensor:
        inputs = [x, normal(len(x), features, seed=100 + seed)]
        return layer(*inputs[:: 1 - 2 * position])

    return run


def projections(layer: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Return what the forward of an attention layer computes with ``torch.nn.functional.linear``."""
    seen: list[Tensor] = []
    linear = F.linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", lambda *arguments: seen.append(linear(*arguments)) or seen[-1])
        layer(*inputs)
    return seen


def packed(index: int) -> Run:
    return lambda layer, x, seed: projections(layer, x, x, x)[0].chunk(3, dim=-1)[index]


def separate(index: int) -> Run:
    def run(layer: nn.Module, x: Tensor, seed: int) -> Tensor:
        sizes = (layer.embed_dim, layer.kdim, layer.vdim)
        inputs = [torch.zeros(*x.shape[:2], size, dtype=x.dtype) for size in sizes]
        inputs[index] = x
        return projections(layer, *inputs)[index]

    return run


def stacked(op: str, weight: str) -> Callable[[nn.Module, Tensor, Tensor], Fans]:
    return lambda layer, x, z: effective_fans(op, layer.get_parameter(weight).shape, role=weight)


FEATURES, HIDDEN, OPEN, SHUT = 24, 48, 50.0, -50.0  # sigmoid(50) is 1 in float64, sigmoid(-50) 2e-22


def gate(index: int, biases: dict[str, float], invert: Callable[[Tensor], Tensor], *, cell: float = 0.0) -> Run:
    """Set the other gates so that the hidden state is a function of one gate alone, and undo that function.

    ``biases`` has a name for each bias that is not 0, with the gate's number: ``{"bias_ih_l0/2": 1.0}``.
    """

    def run(layer: nn.Module, x: Tensor, seed: int) -> Tensor:
        state = torch.zeros(1, len(x), HIDDEN, dtype=x.dtype)
        weights = {name: value for name, value in layer.named_parameters() if "weight" in name}
        with torch.no_grad():
            for name, value in layer.named_parameters():
                for number, rows in enumerate(value.split(HIDDEN)):
                    if "bias" in name:
                        rows.fill_(biases.get(f"{name}/{number}", 0.0))
                    elif number != index:
                        rows.zero_()
        (read,) = [name for name, value in weights.items() if value.any()]
        hidden = x[None] if read == "weight_hh_l0" else state
        given = torch.zeros(1, len(x), FEATURES, dtype=x.dtype) if read == "weight_hh_l0" else x[None]
        output, _ = layer(given, (hidden, state + cell) if isinstance(layer, nn.LSTM) else hidden)
        return invert(output[0])

    return run


def twice_atanh(h: Tensor) -> Tensor:
    return torch.atanh(torch.atanh(h))


def logit_of_atanh(h: Tensor) -> Tensor:
    return torch.logit(torch.atanh(h))


# the stacked gates are i, f, g, o of an LSTM and r, z, n of a GRU, as the documentation of torch.nn writes them
I, O, G = "bias_ih_l0/0", "bias_ih_l0/3", "bias_ih_l0/2"  # noqa: E741
GATES = {
    "LSTM i": (nn.LSTM, "weight_ih_l0", gate(0, {G: OPEN, O: OPEN}, logit_of_atanh)),
    "LSTM f": (nn.LSTM, "weight_ih_l0", gate(1, {I: SHUT, O: OPEN}, logit_of_atanh, cell=1.0)),
    "LSTM g": (nn.LSTM, "weight_ih_l0", gate(2, {I: OPEN, O: OPEN}, twice_atanh)),
    "LSTM o": (nn.LSTM, "weight_ih_l0", gate(3, {I: OPEN, G: OPEN}, lambda h: torch.logit(h / math.tanh(1)))),
    "LSTM g of h": (nn.LSTM, "weight_hh_l0", gate(2, {I: OPEN, O: OPEN}, twice_atanh)),
    "GRU r": (nn.GRU, "weight_ih_l0", gate(0, {"bias_ih_l0/1": SHUT, "bias_hh_l0/2": 1.0}, logit_of_atanh)),
    "GRU z": (nn.GRU, "weight_ih_l0", gate(1, {"bias_ih_l0/2": OPEN}, lambda h: torch.logit(1 - h))),
    "GRU n": (nn.GRU, "weight_ih_l0", gate(2, {"bias_ih_l0/1": SHUT}, torch.atanh)),
    "GRU n of h": (
        nn.GRU,
        "weight_hh_l0",
        gate(2, {"bias_ih_l0/1": SHUT, "bias_ih_l0/0": OPEN}, torch.atanh),
    ),
    "RNN": (nn.RNN, "weight_ih_l0", gate(0, {}, torch.atanh)),
}

OTHERS = [
    Layer(
        "Linear",
        lambda: nn.Linear(48, 96, bias=False),
        (128, 48),
        lambda layer, x, z: effective_fans("linear", (96, 48)),
    ),
    *(
        Layer(
            f"Bilinear {position}",
            lambda: nn.Bilinear(12, 20, 30, bias=False),
            (512, (12, 20)[position]),
            lambda layer, x, z: effective_fans("bilinear", layer.weight.shape, input_shape=x.shape),
            with_other(position, (20, 12)[position]),
        )
        for position in (0, 1)
    ),
    *(
        Layer(
            f"packed attention {name}",
            lambda: nn.MultiheadAttention(64, 4, bias=False, batch_first=True),
            (16, 8, 64),
            stacked("multi_head_attention_forward", "in_proj_weight"),
            packed(index),
            "in_proj_weight",
            square=True,
        )
        for index, name in enumerate("qkv")
    ),
    *(
        Layer(
            f"separate attention {name}",
            lambda: nn.MultiheadAttention(64, 4, bias=False, batch_first=True, kdim=32, vdim=128),
            (16, 8, (64, 32, 128)[index]),
            stacked("multi_head_attention_forward", f"{name}_proj_weight"),
            separate(index),
            f"{name}_proj_weight",
            square=name == "q",
        )
        for index, name in enumerate("qkv")
    ),
    *(
        Layer(
            name,
            lambda kind=kind: kind(FEATURES, HIDDEN),
            (128, FEATURES if weight == "weight_ih_l0" else HIDDEN),
            stacked(kind.__name__.lower(), weight),
            run,
            weight,
            square=weight == "weight_hh_l0",
        )
        for name, (kind, weight, run) in GATES.items()
    ),
]


STD = 0.08  # small enough for the gates: where sigmoid and tanh are flat, they cannot be undone


@same_with_even_kernels
@pytest.mark.parametrize("case", CONVOLVED + OTHERS, ids=repr)
def test_signal_and_gradient_through_a_real_layer(case):
    """The mean squares are fan_in and fan_out times those before and behind, as measured with random weights."""
    forward, backward = [], []
    for seed in range(case.repeats):
        layer = case.build().double().requires_grad_(False)
        for parameter in layer.parameters():
            parameter.zero_()
        weight = layer.get_parameter(case.weight)
        weight.copy_(draw(weight.shape, STD, generator=torch.Generator().manual_seed(seed)))
        x = normal(*case.shape, seed=1000 + seed).requires_grad_()
        z = case.run(layer, x, seed)
        wanted = case.counted(layer, x, z)
        (gradient,) = torch.autograd.grad(z, x, normal(*z.shape, seed=2000 + seed))
        forward.append(z.square().mean().item() / (wanted.fan_in * STD**2))
        backward.append(gradient.square().mean().item() / (wanted.fan_out * STD**2))
        assert case.square == (abs(wanted.fan_in / wanted.fan_out - 1) < 0.2)
    for measured in (forward, backward):
        values = torch.tensor(measured)
        assert values.std() / math.sqrt(case.repeats) < 0.005  # then 2 % is four standard errors
        assert abs(values.mean() - 1) < 0.02


def test_matmul_reads_the_side_of_the_weight_from_the_shapes():
    assert effective_fans("matmul", (4, 7), input_shape=(2, 5, 4), output_shape=(2, 5, 7)) == Fans(4.0, 7.0)
    assert effective_fans("matmul", (7, 4), input_shape=(2, 4, 5), output_shape=(2, 7, 5)) == Fans(4.0, 7.0)
    assert effective_fans("matmul", (4, 7), input_shape=(4,), output_shape=(7,)) == Fans(4.0, 7.0)


BLOCKS = [
    ("lstm", "weight_hh_l0", nn.LSTM(3, 5), 4),
    ("lstm", "weight_ih_l0_reverse", nn.LSTM(3, 5, bidirectional=True), 4),
    ("lstm", "weight_hr_l0", nn.LSTM(3, 5, proj_size=2), 1),
    ("gru_cell", "weight_ih", nn.GRUCell(3, 5), 3),
    ("rnn_tanh", "weight_hh_l0", nn.RNN(3, 5), 1),
    ("multi_head_attention_forward", "in_proj_weight", nn.MultiheadAttention(6, 2), 3),
    ("multi_head_attention_forward", "out_proj.weight", nn.MultiheadAttention(6, 2), 1),
    ("linear", "weight", nn.Linear(6, 8), 1),
]


@pytest.mark.parametrize(("op", "role", "layer", "count"), BLOCKS, ids=str)
def test_blocks(op, role, layer, count):
    shape = layer.get_parameter(role).shape
    edges = [index * shape[0] // count for index in range(count + 1)]
    assert blocks(op, shape, role=role) == tuple(itertools.pairwise(edges))
    assert effective_fans(op, shape, role=role) == Fans(shape[1], shape[0] / count)


# Stacks of layers with zero padding.


def test_the_first_layer_keeps_more_or_less_than_the_deep_ones():
    """The border alone in the first layer; the largest eigenvalue of the map, a known one, in deep ones."""
    for side in (8, 16, 56):
        layer = {"weight_shape": (1, 1, 3, 3), "options": {"padding": 1}, "output_shape": (side, side)}
        profiles = [torch.ones(side, side)]
        for _ in range(20 * side):
            profiles.append(propagate_profile(profiles[-1], "conv2d", **layer) / profiles[-1].mean() / 9)
        assert profiles[1].mean().item() == pytest.approx(((3 * side - 2) / (3 * side)) ** 2, rel=1e-12)
        eigenvalue = (1 + 2 * math.cos(math.pi / (side + 1))) / 3
        assert profiles[-1].mean().item() == pytest.approx(eigenvalue**2, rel=1e-6)
        if side == 16:
            assert profiles[1].mean().item() == pytest.approx(0.918, abs=5e-4)
            assert profiles[-1].mean().item() == pytest.approx(0.9774, abs=5e-5)


def mean_squares(activation: Callable[[Tensor], Tensor], gain: float, channels: int, seed: int) -> Tensor:
    """Return what 20 convolutions with zero padding keep of the signal, over what they keep on a circle.

    The same random weights are in both, so that most of what is random in them cancels. Shape (20,).
    """
    stream = torch.Generator().manual_seed(seed)
    padded = circular = torch.randn(4, channels, 16, 16, generator=stream)
    kept = []
    for depth in range(20):
        std = (1.0 if depth == 0 else gain) / math.sqrt(9 * channels)
        weight = draw((channels, channels, 3, 3), std, generator=stream)
        if depth:
            padded, circular = activation(padded), activation(circular)
        padded = F.conv2d(padded, weight, padding=1)
        circular = F.conv2d(F.pad(circular, (1, 1, 1, 1), mode="circular"), weight)
        kept.append(padded.square().mean() / circular.square().mean())
    return torch.stack(kept)


# behind ReLU the outputs share a mean, so that fewer of them are independent: it needs wider layers
STACKS = {"linear": (lambda x: x, 1.0, 32, 24), "ReLU": (torch.relu, math.sqrt(2), 128, 8)}


@pytest.mark.parametrize("name", STACKS)
def test_every_layer_of_a_real_stack_with_zero_padding(name):
    activation, gain, channels, seeds = STACKS[name]
    profile, wanted = torch.ones(16, 16), []
    layer = {"weight_shape": (channels, channels, 3, 3), "options": {"padding": 1}, "output_shape": (16, 16)}
    for _ in range(20):
        profile = propagate_profile(profile, "conv2d", **layer) / (9 * channels)
        wanted.append(profile.mean())
    ratios = torch.stack([mean_squares(activation, gain, channels, seed) for seed in range(seeds)])
    ratios = ratios / torch.stack(wanted)
    standard_error = ratios.std(0) / math.sqrt(seeds)
    assert wanted[-1] < 0.6
    assert standard_error.max() < (0.01 if name == "linear" else 0.04)
    assert ((ratios.mean(0) - 1).abs() < 4 * standard_error).all()


ERRORS = [
    (lambda: fans(torch.empty(3)), r"2 or more dimensions to have fans, got shape \(3,\)"),
    (lambda: fan(torch.empty(3, 3), "fan_avg"), "mode must be one of fan_in, fan_out, average, got 'fan_avg'"),
    (lambda: Fans(1.0, 2.0).of("fan_avg"), "mode must be one of fan_in, fan_out, average, got 'fan_avg'"),
    (lambda: fans(torch.empty(12, 2), 0), "groups must divide the 12 output channels, got 0"),
    (lambda: fans(torch.empty(12, 2), 5), "groups must divide the 12 output channels, got 5"),
    (lambda: effective_fans("embedding", (10, 4)), "no fans are known for 'embedding' with a weight of shape"),
    (lambda: effective_fans("conv2d", (8, 4, 3)), "weight of conv2d must have 4 dimensions, got shape"),
    (lambda: effective_fans("conv1d", (8, 4, 3)), r"conv1d needs the shapes of its input and output, .* got \(\)"),
    (
        lambda: effective_fans("conv1d", (8, 4, 3), options={"groups": 3}, input_shape=(9,), output_shape=(7,)),
        r"groups of conv1d must divide the first of \(8, 4, 3\), got 3",
    ),
    (lambda: effective_fans("matmul", (4, 7), input_shape=(5, 5), output_shape=(5, 7)), "has no output of shape"),
    (lambda: effective_fans("bilinear", (3, 4, 5), input_shape=(2, 6)), "must have 4 or 5 features"),
    (lambda: blocks("lstm", (10, 4), role="weight_ih_l0"), "must stack 4 matrices of one size"),
    (
        lambda: propagate_profile(torch.ones(4, 4), "max_pool2d", output_shape=(2, 2)),
        "through 'max_pool2d'.*measure what it does",
    ),
    (
        lambda: propagate_profile(torch.ones(4), "conv2d", weight_shape=(1, 1, 3, 3), output_shape=(2, 2)),
        "conv2d needs a profile of 2 dimensions, got 1",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_errors(call, message):
    with pytest.raises(UsageError, match=message):
        call()
