"""Every measured number against a plain loop."""

import math

import pytest
import torch
from torch import Tensor, nn

from mpelu.diagnostics import diagnose, observed
from mpelu.diagnostics.sampling import ENTRIES, channel_means, finite_moments, pieces, sample
from mpelu.diagnostics.units import unit_dims
from mpelu.graph import read
from mpelu.nn import MPELU
from mpelu.ops import cpu
from tests.cases import normal

SMALL = [
    ("mlp", lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)), (12, 6)),
    (
        "conv",
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), MPELU(5), nn.Conv2d(5, 4, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (8, 2, 7, 7),
    ),
]  # fmt: skip
over_small = pytest.mark.parametrize(("build", "shape"), [case[1:] for case in SMALL], ids=[case[0] for case in SMALL])


def outputs_and_gradients(model: nn.Sequential, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Run a chain module by module, with the sum of squares as its loss."""
    values = [x]
    for module in model:
        values.append(module(values[-1]))
        values[-1].retain_grad()
    values[-1].square().sum().backward()
    return [value.detach() for value in values[1:]], [value.grad for value in values[1:]]


def mean_cosine(rows: Tensor) -> float:
    found = [
        torch.dot(a, b) / (a.norm() * b.norm())
        for i, a in enumerate(rows)
        for j, b in enumerate(rows)
        if i < j and a.norm() > 0 and b.norm() > 0
    ]
    return float(sum(found) / len(found))


@over_small
def test_every_number_is_that_of_a_plain_loop(build, shape):
    torch.manual_seed(0)
    model, x = build(), normal(*shape, seed=1, dtype=torch.float32)
    found = diagnose(model, x, lambda output: output.square().sum(), predict=False, jacobian=False)
    values, gradients = outputs_and_gradients(model, x)
    modules = {name: place for place, (name, _) in enumerate(model.named_children())}
    seen = 0
    for record in found.records:
        if record.name not in modules:
            continue
        seen += 1
        value, gradient = values[modules[record.name]].double(), gradients[modules[record.name]].double()
        channels = value.transpose(0, 1).flatten(1).mean(1)
        assert record.shape == tuple(value.shape)
        assert record.mean == pytest.approx(value.mean().item(), abs=1e-6)
        assert record.second_moment == pytest.approx(value.square().mean().item(), rel=1e-5)
        assert record.channel_variance == pytest.approx(channels.var(correction=0).item(), rel=1e-4, abs=1e-9)
        assert record.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-4)
        if record.kind == "weight":
            rows = gradient.flatten(1)
            noise = (rows - rows.mean(0)).square().sum().item() / (len(rows) - 1)
            assert record.correlation == pytest.approx(mean_cosine(value.flatten(1)), abs=1e-5)
            assert record.gradient_snr == pytest.approx(rows.mean(0).square().sum().item() / noise, rel=1e-3)
            weight = model[modules[record.name]].weight
            assert record.weight == f"{record.name}.weight"
            assert record.weight_norm == pytest.approx(weight.norm().item(), rel=1e-5)
            assert record.weight_gradient_norm == pytest.approx(weight.grad.norm().item(), rel=1e-4)
    assert seen >= 5
    assert found.loss == pytest.approx(values[-1].square().sum().item(), rel=1e-5)


def test_dead_and_saturated_shares():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh())
    x = normal(64, 4, seed=2, dtype=torch.float32)
    with torch.no_grad():
        model[0].bias[:2] = -1e3
        model[2].bias[:1] = 50.0
    found = diagnose(model, x)
    pre = model[0](x)
    assert found["1"].dead == 2 / 6 == (pre <= 0).all(0).double().mean().item()
    assert found["1"].saturated == pytest.approx((pre <= 0).float().mean().item(), abs=0.02)  # kinks within a secant
    slope = 1 - torch.tanh(model[2](model[1](pre))).square()
    assert found["3"].saturated == pytest.approx((slope < 0.01 * slope.max()).float().mean().item(), abs=0.01)
    assert found["3"].dead == 1 / 5


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, maximize=True),
    ],
    ids=["sgd", "nesterov", "dampening", "adam", "amsgrad", "adamw", "maximize"],
)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_update_ratio_is_that_of_the_step_that_follows(build, steps_before):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), normal(8, 6, seed=3, dtype=torch.float32)
    optimizer = build(model.parameters())

    def loss(output: Tensor) -> Tensor:
        return (output - 1).square().mean()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()

    for _ in range(steps_before):
        step()
    found = diagnose(model, x, loss, optimizer=optimizer)
    before = [model[place].weight.detach().clone() for place in (0, 2)]
    step()
    for place, old in zip((0, 2), before, strict=True):
        ratio = (model[place].weight.detach() - old).norm() / old.norm()
        assert found[str(place)].update_ratio == pytest.approx(ratio.item(), rel=1e-3)


def test_update_ratio_of_others_and_of_frozen_weights():
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    model[0].requires_grad_(False)
    found = diagnose(
        model, normal(8, 6, dtype=torch.float32), optimizer=torch.optim.RMSprop(model.parameters(), lr=0.1)
    )
    assert found["0"].update_ratio == 0.0
    assert found["0"].weight_gradient_norm is None
    assert found["2"].update_ratio == pytest.approx(0.1 * found["2"].weight_gradient_norm / found["2"].weight_norm)
    assert any("RMSprop" in note for note in found.notes)


def test_non_finite_entries_are_counted_and_left_out():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = normal(16, 4, dtype=torch.float32)
    with torch.no_grad():
        model[0].weight[3, 1] = math.nan
    found = diagnose(model, x)
    kept = model[0](x).detach()[:, [0, 1, 2, 4, 5, 6, 7]]
    assert found["input"].non_finite == 0.0
    assert found["0"].non_finite == 1 / 8
    assert found["0"].second_moment == pytest.approx(kept.square().mean().item(), rel=1e-5)
    assert found["0"].mean == pytest.approx(kept.mean().item(), rel=1e-5)
    assert found["2"].non_finite == 1.0


def test_squares_beyond_the_range_are_finite():
    values = torch.full((3, 2), 1e30)
    values[0, 0] = math.inf
    mean, square, share = finite_moments(values)
    assert (mean, square) == pytest.approx((1e30, 1e60), rel=1e-6)
    assert share == pytest.approx(1 / 6)
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.constant_(model[0].weight, 1e30)
    assert diagnose(model, torch.ones(2, 4))["0"].second_moment == pytest.approx(16e60, rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (128, 700), (64, 16, 32, 32), (2, 9000), (7, 33, 300), (40000,)])
def test_samples_are_small_views_with_all_channels(shape):
    tensor = torch.empty(shape)
    unit = 1 if len(shape) > 1 else -1
    some = sample(tensor, unit)
    assert some.dim() == tensor.dim()
    assert some.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert some.numel() <= max(2 * ENTRIES, 64 * 4096)
    if len(shape) > 1 and shape[1] <= ENTRIES:
        assert some.shape[1] == shape[1]
    assert sum(piece.numel() for piece in pieces(tensor)) == tensor.numel()


def test_means_of_large_tensors_are_good_to_a_share_of_their_error():
    values = normal(64, 8, 40, 40, dtype=torch.float32)
    exact, found = values.mean((0, 2, 3)), channel_means(values, 1)
    assert (exact - found).abs().max() < 4 / math.sqrt(values.numel() / 8 / 6)


def test_units_are_followed_through_transpositions():
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Linear(5, 4), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.tokens(x.transpose(1, 2))).transpose(1, 2)
            return self.head(x)

    graph = read(Mixing(), torch.zeros(2, 5, 8))
    units = {node.name: unit for node, unit in zip(graph.nodes, unit_dims(graph), strict=True)}
    assert units["tokens"] == 2
    assert units["relu"] == 2
    assert units["head"] == 2
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    graph = read(conv, torch.zeros(2, 3, 5, 5))
    assert unit_dims(graph) == [1, 1, 1, 1, 1, 1]


def test_observed_sees_an_ordinary_step_and_does_not_change_it():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), normal(8, 6, dtype=torch.float32)
    graph = read(model, x)
    model(x).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with observed(model, graph) as observer:
        output = model(x)
        output.square().sum().backward()
    assert all(torch.equal(own.grad, other) for own, other in zip(model.parameters(), plain, strict=True))
    assert "forward" not in vars(model)
    assert not model[0].weight._backward_hooks
    expected = diagnose(model, x, lambda out: out.square().sum(), predict=False)
    for ours, theirs in zip(observer.records(), expected.records, strict=True):
        assert ours.name == theirs.name
        assert ours.second_moment == pytest.approx(theirs.second_moment)
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm)


@over_small
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_records_are_the_same_without_the_compiled_part(build, shape, dtype, monkeypatch):
    torch.manual_seed(0)
    model, x = build().to(dtype), normal(*shape, seed=1, dtype=dtype)
    found = []
    for readable in (cpu.readable, lambda tensor: False):
        monkeypatch.setattr(cpu, "readable", readable)
        found.append(diagnose(model, x, predict=False, jacobian=False).records)
    for ours, theirs in zip(*found, strict=True):
        for name, value in vars(theirs).items():
            # sums of some hundred float32 numbers; means are differences of them
            wanted = pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value
            assert getattr(ours, name) == wanted, name


def test_half_types_and_expanded_gradients_are_measured():
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).to(torch.bfloat16)
    x = normal(8, 2, 6, 6, seed=1, dtype=torch.float32).to(torch.bfloat16)
    found = diagnose(model, x, lambda output: output.sum(), predict=False, jacobian=False)
    exact = model(x).detach().double()
    assert found["2"].second_moment == pytest.approx(exact.square().mean().item(), rel=1e-5)
    assert found["2"].gradient_norm == pytest.approx(math.sqrt(exact.numel()))  # each entry has the gradient 1
    assert found["2"].correlation == pytest.approx(mean_cosine(exact.flatten(1).float()), abs=1e-4)
    assert found["2"].gradient_snr == math.inf
