"""The laws of mean field, one by one: against sampling, other code, or the known cases."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.graph import Graph, read, run
from mpelu.graph.calls import replaced
from mpelu.init import initialize, plan
from mpelu.init.calibrate import in_training
from mpelu.init.choosing import Choices, Wishes
from mpelu.init.pooling import _between, maximum
from mpelu.init.signal import Gaussian, Reach, Signal, multiplied, reach
from mpelu.moments import covariance
from mpelu.nn import MPELU
from tests.cases import normal


def unit_node(unit: nn.Module, channels: int = 4):
    graph = read(nn.Sequential(unit), torch.zeros(2, channels))
    return graph.nodes[1]


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(
    "unit", [nn.ReLU(), nn.GELU(), nn.Tanh(), MPELU(4, 0.5), nn.Hardtanh()], ids=lambda unit: type(unit).__name__
)
def test_joint_moments_agree_with_the_exact_integral(unit, correlation):
    node, gaussian = unit_node(unit), Gaussian()
    found = gaussian.joint(node, mean=0.3, variance=1.5, correlation=correlation)
    exact = covariance(unit, mean=0.3, variance=1.5, correlation=correlation)
    assert found == pytest.approx(exact, abs=2e-3 * gaussian(node, mean=0.3, variance=1.5).second_moment)


def test_equal_activations_are_integrated_once():
    units = [nn.GELU(), nn.GELU(), MPELU(4), MPELU(4), MPELU(4, 0.5)]
    graph = read(nn.Sequential(*[layer for unit in units for layer in (nn.Linear(4, 4), unit)]), torch.zeros(2, 4))
    gaussian = Gaussian()
    found = [gaussian(node, variance=2.0) for node in graph.nodes if node.kind == "activation"]
    assert found[0] is found[1]
    assert found[2] is found[3]
    assert found[4] is not found[3]


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.95])
@pytest.mark.parametrize("count", [1, 4, 9, 49])
@pytest.mark.parametrize(
    "function", [lambda x: x, torch.relu, F.gelu, torch.cos], ids=["identity", "relu", "gelu", "cos"]
)
def test_maxima_agree_with_sampling(function, count, correlation):
    own = normal(20_000, 2, count)
    shared = normal(20_000, 1, 1, seed=1)
    values = function(0.2 + 1.3 * (math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own)).amax(2)
    sampled = [values.mean(), values.square().mean(), values.prod(1).mean()]
    found = maximum(lambda points: function(points)[:, None], count, mean=0.2, variance=1.69, correlation=correlation)
    # a standard error of about 1 % of the root mean square each
    assert list(found) == pytest.approx(
        [value.item() for value in sampled], abs=0.05 * values.square().mean().item() ** 0.5
    )


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv1d(1, 1, 3, padding=1), 6),
        (nn.Conv1d(1, 1, 5, padding=3, stride=2, dilation=2), 11),
        (nn.Conv1d(1, 1, 4, padding="same"), 7),
        (nn.Conv1d(1, 1, 3), 8),
        (nn.ConvTranspose1d(1, 1, 2, stride=2), 5),
        (nn.ConvTranspose1d(1, 1, 4, stride=3, padding=2, output_padding=1), 5),
        (nn.Conv2d(1, 1, 3, padding=1), (4, 6)),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_overlap_of_taps_is_what_equal_inputs_have_in_common(layer, size):
    """All inputs 1 and weights of variance 1: E[z z'] of two positions is the number of taps that both use."""
    x = torch.ones(1, 1, *([size] if isinstance(size, int) else size))
    graph = read(nn.Sequential(layer), x)
    found = reach(graph, graph.nodes[1], layer.weight.shape, 1.0, Signal())
    taps = []
    for index in range(layer.weight.numel()):
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight.view(-1)[index] = 1.0
            layer.bias.zero_()
            taps.append(layer(x).flatten() != 0)
    used = torch.stack(taps).double()
    pairs = used.T @ used
    positions = len(pairs)
    apart = (pairs.sum() - pairs.diagonal().sum()) / (positions * (positions - 1))
    assert found.fan_in == pytest.approx(pairs.diagonal().mean().item())
    assert found.overlap == pytest.approx((apart / pairs.diagonal().mean()).item(), abs=1e-12)


def test_a_weight_with_centered_rows_does_not_see_the_mean():
    node = read(nn.Sequential(nn.Linear(4, 4)), torch.zeros(2, 4)).nodes[1]
    before = Signal(mean=2.0, second_moment=5.0, within=0.9, across=0.9)
    plain, centered = (multiplied(node, before, Reach(4.0), std=0.5, centered=flag) for flag in (False, True))
    assert (plain.second_moment, centered.second_moment) == pytest.approx((5.0, 1.0))
    assert plain.across == pytest.approx(0.9)
    assert centered.across == pytest.approx((4.5 - 4.0) / 1.0)
    biased = multiplied(node, before, Reach(4.0), std=0.5, bias_std=1.0, centered=True)
    assert biased.second_moment == pytest.approx(2.0)
    assert biased.across == pytest.approx((0.5 + 1.0) / 2.0)


# What a plan expects behind every node, against what is measured there.

UNITS = 96


def expected(model: nn.Module, example: Any) -> tuple[Graph, Choices]:
    with in_training(model):
        graph = read(model, example)
    wishes = Wishes("second_moment", "fan_in", 0.01, "orthogonal", "none", "signal", (), measured=False)
    return graph, Choices(model, graph, wishes)


def alike(values: Tensor, dim: int) -> float:
    """Return E[x x'] of two entries along a dim, over E[x^2]."""
    count = values.shape[dim]
    pairs = values.sum(dim).square() - values.square().sum(dim)
    return (pairs.mean() / (count * (count - 1)) / values.square().mean()).item()


def measured(model: nn.Module, example: Any, seeds: int) -> dict[str, list[tuple[float, ...]]]:
    """Return mean, second moment and correlations (within, across) behind every node, for so many draws."""
    found: dict[str, list[tuple[float, ...]]] = {}

    def visit(node, inputs, output):
        values = output.detach().double()
        maps = values.flatten(2) if values.dim() > 2 else values[:, :, None]
        within = alike(maps, 2) if maps.shape[2] > 1 else math.nan
        numbers = values.mean().item(), values.square().mean().item(), within, alike(maps, 0)
        found.setdefault(node.name, []).append(numbers)

    for seed in range(seeds):
        initialize(model, example, method="second_moment", distribution="orthogonal", residual="none", seed=seed)
        with in_training(model), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            x = replaced(example, Tensor, lambda item: torch.randn(32, *item.shape[1:]))
            run(model, x, read(model, example), visit)
    return found


class Joined(nn.Module):
    """Sums, differences, products and concatenations of two branches."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.join = nn.Conv2d(24, UNITS, 3), nn.Conv2d(24, UNITS, 3), join
        self.last = nn.Conv2d((1 + (join is BESIDE)) * UNITS, UNITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.join(F.relu(self.a(x)), F.elu(self.b(x))))


def BESIDE(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def behind_relu(*layers: nn.Module) -> nn.Sequential:
    """Layers behind a convolution and a ReLU, whose values share a mean: 1 / pi of their second moment."""
    return nn.Sequential(nn.Conv2d(24, UNITS, 3, padding=1), nn.ReLU(), *layers)


LAWS = {
    "relu": behind_relu,
    "second layer": lambda: behind_relu(nn.Conv2d(UNITS, UNITS, 1), nn.GELU()),
    "zero padding": lambda: behind_relu(nn.Conv2d(UNITS, UNITS, 3, padding=1)),
    "transposed": lambda: behind_relu(nn.ConvTranspose2d(UNITS, UNITS, 2, stride=2)),
    "mpelu": lambda: nn.Sequential(nn.Conv2d(24, UNITS, 3), MPELU(UNITS, 0.5, 2.0), nn.Conv2d(UNITS, UNITS, 1)),
    "batch norm": lambda: behind_relu(nn.BatchNorm2d(UNITS), nn.Conv2d(UNITS, UNITS, 1)),
    "group norm": lambda: behind_relu(nn.GroupNorm(2, UNITS), nn.Conv2d(UNITS, UNITS, 1)),
    "layer norm": lambda: behind_relu(nn.LayerNorm([UNITS, 6, 6]), nn.Conv2d(UNITS, UNITS, 1)),
    "instance norm": lambda: behind_relu(nn.InstanceNorm2d(UNITS), nn.Conv2d(UNITS, UNITS, 1)),
    "rms norm": lambda: behind_relu(nn.RMSNorm([UNITS, 6, 6]), nn.Conv2d(UNITS, UNITS, 1)),
    "dropout": lambda: behind_relu(nn.Dropout(0.4), nn.Conv2d(UNITS, UNITS, 1)),
    "dropout of channels": lambda: behind_relu(nn.Dropout2d(0.4), nn.Conv2d(UNITS, UNITS, 1)),
    "average pooling": lambda: behind_relu(nn.AvgPool2d(2), nn.Conv2d(UNITS, UNITS, 1)),
    "average pooling with padding": lambda: behind_relu(nn.AvgPool2d(3, 3, 1), nn.Conv2d(UNITS, UNITS, 1)),
    "global pooling": lambda: behind_relu(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(UNITS, UNITS)),
    "max pooling": lambda: behind_relu(nn.MaxPool2d(2), nn.Conv2d(UNITS, UNITS, 1)),
    "global max pooling": lambda: behind_relu(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(UNITS, UNITS)),
    "nearest": lambda: behind_relu(nn.Upsample(scale_factor=2), nn.Conv2d(UNITS, UNITS, 1)),
    "bilinear": lambda: behind_relu(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(UNITS, UNITS, 1)),
    "zeros around": lambda: behind_relu(nn.ZeroPad2d(1), nn.Conv2d(UNITS, UNITS, 1)),
    "reflected": lambda: behind_relu(nn.ReflectionPad2d(1), nn.Conv2d(UNITS, UNITS, 1)),
    "numbers around": lambda: behind_relu(nn.ConstantPad2d(1, -0.7), nn.Conv2d(UNITS, UNITS, 1)),
    "flattened": lambda: behind_relu(nn.Flatten(), nn.Linear(UNITS * 36, UNITS)),
    "sum": lambda: Joined(torch.add),
    "difference": lambda: Joined(lambda a, b: a - 2.0 * b),
    "product": lambda: Joined(torch.mul),
    "side by side": lambda: Joined(BESIDE),
    "affine": lambda: Joined(lambda a, b: 0.5 * a - 1.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_says_what_is_measured(name):
    model, example = LAWS[name](), torch.zeros(2, 24, 6, 6)
    graph, choices = expected(model, example)
    found = measured(model, example, seeds=4)
    for node, signal in zip(graph.nodes, choices.signals, strict=True):
        assert not signal.assumed
        numbers = torch.tensor(found[node.name], dtype=torch.float64).mean(0).tolist()
        # 4 draws of 96 units: the part that all positions share fluctuates by sqrt(2 / 384) = 7 %
        size = math.sqrt(signal.second_moment)
        assert numbers[0] == pytest.approx(signal.mean, abs=0.06 * size), node
        assert numbers[1] == pytest.approx(signal.second_moment, rel=0.15), node
        if signal.within is not None and not math.isnan(numbers[2]) and node.op not in SMOOTH:
            assert numbers[2] == pytest.approx(signal.within, abs=0.07), node
        if signal.across is not None:
            assert numbers[3] == pytest.approx(signal.across, abs=0.07), node


SMOOTH = ("interpolate",)
"""Behind these neighbours are alike, which one number for all pairs of positions does not say."""


@pytest.mark.parametrize(("apart", "alike"), [(0.1, 0.4), (0.5, 0.2), (0.8, 0.2), (0.8, 0.0), (1.0, 0.3)])
def test_maxima_of_two_examples_are_as_alike_as_simulated(apart, alike):
    """Entries share a number with all (alike), and with the same position of the other example or their own one."""
    stream = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    count, number = 200_000, 4
    low = min(apart, alike)
    of_all, of_position = draw(count, 1, 1).mul(low**0.5), draw(count, 1, number).mul(max(apart - alike, 0.0) ** 0.5)
    of_example, own = draw(count, 2, 1).mul(max(alike - apart, 0.0) ** 0.5), draw(count, 2, number)
    values = of_all + of_position + of_example + own.mul((1 - max(apart, alike)) ** 0.5)
    first, second = values.amax(2).unbind(1)
    simulated = ((first - first.mean()) * (second - second.mean())).mean().item()
    mean, second_moment, shared = maximum(
        lambda points: points[:, None], number, mean=0.0, variance=1.0, correlation=alike
    )
    found = _between(apart, alike, shared - mean**2, second_moment - mean**2)
    # lines between points that are exact; what they stand for is convex, and 0.112 of the variance below at (0.8, 0)
    assert found == pytest.approx(simulated, abs=0.12 * (second_moment - mean**2))


class Masked(nn.Module):
    """A mask and places that the model makes anew in each pass: the one is multiplied, a weight reads the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.places, self.last = nn.Linear(8, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) * torch.ones(len(x)).unsqueeze(1)
        return self.last(torch.relu(x + self.places(torch.arange(4.0).sin().repeat(len(x), 1))))


def test_constants_that_are_multiplied_are_taken_for_ones():
    rows = {row.parameter: row for row in plan(Masked(), torch.zeros(5, 8), method="second_moment").rows}
    for name, fan_in in (("first", 8), ("places", 4), ("last", 16)):  # relu halves the sum of two signals
        assert rows[f"{name}.weight"].std == pytest.approx(1 / math.sqrt(fan_in)), name


class Sorted(nn.Module):
    """Examples in the order of experts, as mixtures of experts sort them: there are integers on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.last = nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        best = self.router(x).topk(2).indices.flatten()
        return self.last(x[best.argsort() // 2])


def test_integers_on_the_way_are_no_signal():
    weights = {row.parameter for row in plan(Sorted(), torch.zeros(5, 6)).rows}
    assert {"router.weight", "last.weight"} <= weights
