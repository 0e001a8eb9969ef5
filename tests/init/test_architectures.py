"""Plans of whole networks: what they claim, measured on the networks themselves."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.graph import read, run
from mpelu.graph.calls import leaves, replaced
from mpelu.init import InitPlan, apply, initialize, plan
from mpelu.init.calibrate import in_training
from mpelu.init.rows import AS_IS, THROUGH
from mpelu.nn import MPELU
from tests.architectures import ARCHITECTURES, BY_NAME, over_architectures

METHODS = ["second_moment", "critical", "auto"]


def fresh(example: Any, rows: int, seed: int) -> Any:
    """Return N(0, 1) in the shape of an example with so many rows; integers are repeated."""
    stream = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.repeat_interleave(-(-rows // len(tensor)), 0)[:rows]
        return torch.randn(rows, *tensor.shape[1:], generator=stream)

    return replaced(example, Tensor, noise)


def name_of_weight(names: tuple[str, ...]) -> str:
    """Return the name that a plan has for the weight of a call."""
    module, parametrized, rest = names[0].partition(".parametrizations.")
    return f"{module}.{rest.partition('.')[0]}" if parametrized else names[0]


def second_moments(model: nn.Module, example: Any, *, rows: int, seed: int) -> dict[str, float]:
    """Return the mean square of the output of every weight at its first call, in training mode, on fresh noise."""
    found: dict[str, float] = {}

    def visit(node, inputs, output):
        if node.kind == "weight" and node.parameters.get("weight"):
            found.setdefault(name_of_weight(node.parameters["weight"]), output.double().square().mean().item())

    with in_training(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        run(model, fresh(example, rows, seed), read(model, example), visit)
    return found


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def build(architecture) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architecture.build()


# Every network: all parameters, and nothing else, for every method.


@pytest.mark.parametrize("method", [*METHODS, "msra"])
@over_architectures
def test_every_parameter_has_a_row_with_values_or_a_reason(architecture, method):
    model = build(architecture)
    parameters = dict(model.named_parameters())
    rows = {row.parameter: row for row in plan(model, architecture.example(), method=method, seed=1).rows}
    assert parameters.keys() <= rows.keys()
    others = rows.keys() - parameters.keys()
    assert others <= {*dict(model.named_buffers()), *(name_of_weight((name,)) for name in parameters)}
    for name, row in rows.items():
        assert (row.std is None) == (row.fill in (AS_IS, THROUGH))
        assert row.equation
        if row.fan is not None and row.std is not None:
            assert row.gain == pytest.approx(row.std * math.sqrt(row.fan), rel=1e-12)
            assert row.fed_by
        if name in parameters:
            assert row.shape == tuple(parameters[name].shape)


@over_architectures
def test_plan_then_apply_is_initialize_and_can_be_repeated(architecture):
    first, second = build(architecture), build(architecture)
    before = state(first)
    init_plan = plan(first, architecture.example(), seed=1)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    apply(init_plan, first)
    assert initialize(second, architecture.example(), seed=1) == init_plan
    once = state(first)
    assert all(torch.equal(value, once[name]) for name, value in second.state_dict().items())
    assert initialize(second, architecture.example(), seed=1) == init_plan
    assert all(torch.equal(value, once[name]) for name, value in second.state_dict().items())
    assert InitPlan.from_json(init_plan.to_json()) == init_plan
    left = {row.parameter for row in init_plan.rows if row.fill == AS_IS}
    assert all(torch.equal(once[name], before[name]) for name in left)


@over_architectures
def test_calibrated_layers_keep_their_second_moment_on_fresh_noise(architecture):
    model = build(architecture)
    init_plan = initialize(model, architecture.example(), seed=1)
    assert init_plan.passes <= 12
    # 4096 examples of 4 or more units: 1 % of sampling here, and 1 % in the calibration
    measured = second_moments(model, architecture.example(), rows=4096, seed=100)
    for row in init_plan.weights:
        if row.std is not None and row.parameter in measured:
            assert row.second_moment is not None
            assert measured[row.parameter] == pytest.approx(row.second_moment, rel=0.05), row


# What the laws of mean field say of wide networks.

WIDTH = 128


def plain(unit: Callable[[], nn.Module], **padding: Any) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, **padding)]
    for index in range(4):
        layers += [unit(), nn.Conv2d(WIDTH, WIDTH, 3, stride=1 + (index == 1 and bool(padding)), **padding)]
    return nn.Sequential(*layers)


class Dropped(nn.Sequential):
    """Each kind of dropout, and padding as a layer."""

    def __init__(self) -> None:
        units = [nn.Dropout(0.3), nn.Dropout2d(0.3), nn.AlphaDropout(0.2), nn.ZeroPad2d(2), nn.ConstantPad2d(1, 0.5)]
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1)]
        for unit in units:
            layers += [MPELU(WIDTH, 1.0, 0.5), unit, nn.Conv2d(WIDTH, WIDTH, 3)]
        super().__init__(*layers)


class Pooled(nn.Sequential):
    """Maximum, overlapping maximum, average, global average and global maximum, behind activations of both kinds."""

    def __init__(self, unit: Callable[[], nn.Module]) -> None:
        super().__init__(
            nn.Conv2d(3, WIDTH, 3, padding=1), unit(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), unit(), nn.MaxPool2d(2),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(WIDTH, WIDTH, 1), unit(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, WIDTH), unit(), nn.Linear(WIDTH, WIDTH),
        )  # fmt: skip


class Reduced(nn.Module):
    """Means and maxima over dims, of maps and of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tokens = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Linear(WIDTH, WIDTH)
        self.mean, self.largest = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.over_tokens = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, sequence: Tensor) -> Tensor:
        maps = F.silu(self.conv(x))
        return (
            self.mean(maps.mean((2, 3)))
            + self.largest(maps.amax((2, 3)))
            + self.over_tokens(F.relu(self.tokens(sequence)).mean(1))
        )


class Block(nn.Module):
    """A residual block with or without normalization, its activation before or behind the sum."""

    def __init__(self, channels: int, out: int, *, norm: bool, last: Callable[[], nn.Module]) -> None:
        super().__init__()
        make = nn.BatchNorm2d if norm else nn.Identity
        stride = 1 + (out != channels)
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1, bias=not norm), make(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=not norm), make(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 else nn.Identity()
        self.last = last()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))
        return self.last(self.shortcut(x) + branch)


def residual(*, norm: bool, last: Callable[[], nn.Module]) -> nn.Sequential:
    blocks = [Block(WIDTH, WIDTH, norm=norm, last=last) for _ in range(3)]
    blocks.append(Block(WIDTH, 2 * WIDTH, norm=norm, last=last))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * WIDTH, WIDTH))
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), *blocks, *head)


class Dense(nn.Module):
    """Concatenations, of parts of different second moment, with and without normalization."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        widths = [WIDTH, WIDTH + 32, WIDTH + 64]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if norm else nn.Identity() for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, 32, 3, padding=1) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return x


class Mobile(nn.Module):
    """Depthwise convolutions and a gate for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depthwise = nn.Conv2d(16, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.reduce, self.expand = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.narrow = nn.Conv2d(WIDTH, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.hardswish(self.depthwise(F.hardswish(self.wide(x))))
        gate = self.expand(F.relu(self.reduce(out.mean((2, 3), keepdim=True))))
        return x + self.narrow(out * torch.sigmoid(gate))


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, and concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, 2, padding=1)
        self.down3 = nn.Conv2d(WIDTH, WIDTH, 3, 2, padding=1, padding_mode="replicate")
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 3, stride=2, padding=1, output_padding=1)
        self.merge, self.head = (
            nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(WIDTH, 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        first = F.elu(self.down1(x))
        second = F.elu(self.down2(first))
        out = F.elu(self.up(F.elu(self.down3(second))))
        out = F.elu(self.merge(torch.cat([out, second], 1)))
        return self.head(F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(WIDTH, 32, 1), nn.Conv2d(WIDTH, 32, 3, padding=1)
        self.three, self.head = nn.Conv2d(WIDTH, 32, 1), nn.Conv2d(96, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.one(x), self.two(x), self.three(F.avg_pool2d(x, 3, 1, 1))
        return self.head(torch.cat([F.relu(part) for part in parts], 1))


class Transformer(nn.Module):
    """A mixer block and an attention block, as far as laws go: what attention gives is not predicted."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.over_tokens = nn.Sequential(nn.Linear(32, WIDTH), nn.GELU(), nn.Linear(WIDTH, 32))
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        query, key, value = self.qkv(self.norm2(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(query, key, value))
        return x + self.mlp(self.norm3(x))


class Cell(nn.Module):
    """A recurrent net that is written out, and what follows from its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.cell = nn.Linear(16, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.read(x[:, 0]))
        for step in range(1, 4):
            hidden = torch.tanh(self.read(x[:, step]) + self.cell(hidden))
        return self.head(hidden)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 16)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.trunk(left) - self.trunk(right)).abs())


class Gated(nn.Module):
    """Gates by halves, matrices as plain parameters, an einsum and a bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bilinear = nn.Linear(64, 2 * WIDTH), nn.Bilinear(WIDTH, 64, 64)
        self.right, self.left = nn.Parameter(torch.zeros(64, 96)), nn.Parameter(torch.zeros(WIDTH, 96))
        self.heads = nn.Parameter(torch.zeros(4, 8, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        gated = F.glu(self.first(x), -1)
        gated = self.bilinear(gated, x)
        out = self.left @ (torch.sin(gated) @ self.right).unsqueeze(-1)
        return torch.einsum("hdc,nc->nhd", self.heads, F.softplus(out.squeeze(-1)))


class Autoencoder(nn.Module):
    """A variational one: its code is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.log_variance = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 64), nn.Linear(WIDTH, 64)
        self.decoder = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.elu(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        return self.decoder(mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)), mean, log_variance


@dataclass(frozen=True)
class Wide:
    """A network, what it is called with, and the weights that the plan says nothing of."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any] = lambda: torch.zeros(2, 3, 8, 8)
    unpredicted: tuple[str, ...] = ()


def row_of(width: int) -> Callable[[], Tensor]:
    return lambda: torch.zeros(2, width)


WIDE = [
    Wide("conv gelu, zero padding", lambda: plain(nn.GELU, padding=1)),
    Wide("conv tanh, circular", lambda: plain(nn.Tanh, padding=1, padding_mode="circular")),
    Wide("conv relu, valid", lambda: plain(nn.ReLU), lambda: torch.zeros(2, 3, 12, 12)),
    Wide("conv mpelu, dropped and padded", Dropped),
    Wide("pooled relu", lambda: Pooled(nn.ReLU), lambda: torch.zeros(2, 3, 16, 16)),
    Wide("pooled gelu", lambda: Pooled(nn.GELU), lambda: torch.zeros(2, 3, 16, 16)),
    Wide("reduced", Reduced, lambda: (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, WIDTH))),
    Wide("residual", lambda: residual(norm=False, last=nn.Identity)),
    Wide("residual with norms", lambda: residual(norm=True, last=nn.Identity)),
    Wide("residual, activation last", lambda: residual(norm=True, last=nn.ReLU)),
    Wide("dense", lambda: Dense(norm=False)),
    Wide("dense with norms", lambda: Dense(norm=True)),
    Wide("mobile", Mobile, lambda: torch.zeros(2, 16, 8, 8)),
    Wide("unet", UNet),
    Wide("inception", Inception, lambda: torch.zeros(2, WIDTH, 8, 8)),
    Wide("transformer", Transformer, lambda: torch.zeros(2, 32, WIDTH), ("proj.weight",)),
    Wide("recurrent cell", Cell, lambda: torch.zeros(2, 4, 16)),
    Wide("siamese", Siamese, lambda: {"left": torch.zeros(2, 16), "right": torch.zeros(2, 16)}),
    Wide("gated", Gated, row_of(64)),
    Wide("autoencoder", Autoencoder, row_of(64)),
]  # fmt: skip


PREDICTIONS = pytest.mark.parametrize("wide", WIDE, ids=lambda wide: wide.name)


@pytest.mark.parametrize("method", ["second_moment", "critical"])
@PREDICTIONS
def test_an_analytic_plan_predicts_every_layer(wide, method):
    """The mean over seeds; every weight has a prediction but those that are named.

    Orthogonal weights, whose second moment does not fluctuate from draw to draw; what is left is the signal that all
    positions and examples have in common, a fluctuation of about sqrt(2 / width) = 12 % for each seed and layer.
    """
    example = wide.example()
    rows = 8 if leaves(example, Tensor)[0].dim() == 4 else 128
    measured: dict[str, list[float]] = {}
    for seed in range(3):
        model = wide.build()
        init_plan = initialize(model, example, method=method, seed=seed, distribution="orthogonal")
        for name, value in second_moments(model, example, rows=rows, seed=seed).items():
            measured.setdefault(name, []).append(value)
    assert {row.parameter for row in init_plan.weights if row.second_moment is None} == set(wide.unpredicted)
    for row in init_plan.weights:
        if row.second_moment is not None:
            assert 0.8 <= statistics.mean(measured[row.parameter]) / row.second_moment <= 1.25, row


UNPREDICTED = {
    "mixer": {"head.weight"},  # a mean over tokens behind transpositions
    "fused attention": {"proj.weight"},
    "lstm": {"head.weight"},
    "text": {"hidden.weight"},  # embeddings
}


@over_architectures
def test_where_a_plan_predicts_nothing(architecture):
    init_plan = plan(build(architecture), architecture.example(), method="second_moment", seed=0)
    missing = {row.parameter for row in init_plan.weights if row.second_moment is None}
    assert missing == UNPREDICTED.get(architecture.name, set())
    for row in init_plan.weights:
        assert ("is assumed" in row.equation) == (row.parameter in missing)


def test_normal_weights_are_predicted_too():
    """Those of ``second_moment`` by default: their own fluctuation averages out over seeds."""
    model, example = Inception(), torch.zeros(2, WIDTH, 8, 8)
    measured: dict[str, list[float]] = {}
    for seed in range(6):
        init_plan = initialize(model, example, method="second_moment", seed=seed)
        assert {row.fill for row in init_plan.weights} == {"normal"}
        for name, value in second_moments(model, example, rows=4, seed=seed).items():
            measured.setdefault(name, []).append(value)
    assert {name: statistics.mean(values) for name, values in measured.items()} == pytest.approx(
        dict.fromkeys(measured, 1.0), rel=0.15
    )


@pytest.mark.parametrize("method", ["eq22", "msra", "xavier", "gaussian"])
def test_methods_of_the_paper_are_predicted_as_well(method):
    example = torch.zeros(2, 3, 8, 8)
    measured: dict[str, list[float]] = {}
    for seed in range(4):
        model = plain(nn.ELU, padding=1)
        init_plan = initialize(model, example, method=method, std=0.02, seed=seed)
        for name, value in second_moments(model, example, rows=8, seed=seed).items():
            measured.setdefault(name, []).append(value)
    for row in init_plan.weights:
        assert statistics.mean(measured[row.parameter]) == pytest.approx(row.second_moment, rel=0.2)


# What is special in some of them.


def test_a_recurrent_cell_is_set_for_its_first_step():
    rows = {row.parameter: row for row in plan(BY_NAME["shared cell"].build(), torch.zeros(2, 3, 8), seed=0).rows}
    assert rows["cell.weight"].equation.startswith(
        "second moment, calibrated; read 2 times, set for the first (q up to"
    )
    assert rows["read.weight"].equation == "second moment, calibrated; read 3 times"


def test_uses_that_are_fed_by_different_activations_are_told():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(F.gelu(self.shared(torch.tanh(self.first(x)))))

    row = plan(Twice(), torch.zeros(2, 8), method="second_moment", seed=0).weights[1]
    assert row.equation == "second moment; read 2 times, fed by tanh, gelu: set for the first"
    assert row.fed_by == "tanh"


def test_a_head_that_shares_its_weight_with_an_embedding_is_left_alone():
    rows = {row.parameter: row for row in plan(build(BY_NAME["text"]), BY_NAME["text"].example(), seed=0).rows}
    assert rows["words.weight"].fill == AS_IS
    assert "embedding" in rows["words.weight"].equation


def test_reasons_of_what_is_left_as_it_is():
    found = {}
    for name in ("vit", "lstm", "siamese", "layer scale", "normalizer-free", "control flow"):
        init_plan = plan(build(BY_NAME[name]), BY_NAME[name].example(), method="second_moment", seed=0)
        found |= {row.parameter: row.equation for row in init_plan.rows if row.fill == AS_IS}
    assert found["cls_token"] == found["positions"] == "used as a value"
    assert "attention" in found["attention.in_proj_weight"]
    assert "recurrent" in found["lstm.weight_hh_l0"]
    assert found["embedding.weight"] == "rows of a table, not a product"
    assert found["trunk.1.weight"] == "parameter of an activation"
    assert found["gamma"] == found["skip_gain"] == "a factor, or an offset"
    assert found["stem.weight"] == "StandardizedConv computes the weight from gain and weight"
    assert found["stem.bias"] == "its weight is left as it is"
    assert found["negative.weight"] == "the forward does not use it"


def test_the_list_of_networks_is_long_enough_to_mean_something():
    assert len(ARCHITECTURES) + len(WIDE) >= 35
