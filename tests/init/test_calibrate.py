import math
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.graph import read, run
from mpelu.init import InitPlan, apply, initialize, plan
from mpelu.init.aside import aside, in_training
from mpelu.init.calibrate import MAX_PASSES
from mpelu.init.probe import noise_like
from mpelu.init.rows import AS_IS
from mpelu.nn import MPELU
from tests.cases import normal

ACTIVATIONS = {
    "relu": lambda channels: nn.ReLU(),
    "lrelu(0.25)": lambda channels: nn.LeakyReLU(0.25),
    "prelu": nn.PReLU,
    "elu": lambda channels: nn.ELU(),
    "selu": lambda channels: nn.SELU(),
    "gelu": lambda channels: nn.GELU(),
    "silu": lambda channels: nn.SiLU(),
    "mish": lambda channels: nn.Mish(),
    "tanh": lambda channels: nn.Tanh(),
    "mpelu(1,1)": lambda channels: MPELU(channels, 1.0, 1.0),
    "mpelu(0.25,1)": lambda channels: MPELU(channels, 0.25, 1.0),
}
"""Those of the benchmark, which has the depths that matter; here the same bars hold for nets a tenth as deep."""


def stack(unit, layer, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [unit()] if index else []
        layers.append(layer())
    return nn.Sequential(*layers)


def signals(model: nn.Sequential, x: Tensor, seed: int) -> tuple[list[float], list[float]]:
    """Return second moment and gradient norm of every pre-activation, for a random cotangent."""
    outputs = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            outputs.append(x)
    gradients = torch.autograd.grad(x, outputs, normal(*x.shape, seed=seed, dtype=x.dtype))
    return [out.square().mean().item() for out in outputs], [gradient.norm().item() for gradient in gradients]


@pytest.mark.parametrize("network", ["linear", "conv"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_auto_keeps_signal_and_gradient(name, network):
    """|log10(q_last / q_first)| <= 0.1 and g_first / g_last in [0.1, 10], on fresh inputs; at most 12 passes."""
    if network == "linear":
        model = stack(lambda: ACTIVATIONS[name](96), lambda: nn.Linear(96, 96), 50)
        example, fresh = torch.zeros(1, 96), normal(64, 96, seed=9, dtype=torch.float32)
    else:
        model = stack(lambda: ACTIVATIONS[name](24), lambda: nn.Conv2d(24, 24, 3, padding=1), 30)
        example, fresh = torch.zeros(1, 24, 8, 8), normal(8, 24, 8, 8, seed=9, dtype=torch.float32)
    init_plan = initialize(model, example, method="auto", seed=0)
    q, g = signals(model, fresh, seed=10)
    assert 1 <= init_plan.passes <= MAX_PASSES
    assert [row.second_moment for row in init_plan.weights] == pytest.approx([1.0] * len(init_plan.weights), rel=1e-5)
    assert abs(math.log10(q[-1] / q[0])) <= 0.1
    assert 0.1 <= g[0] / g[-1] <= 10
    assert all(abs(math.log10(value)) <= 0.15 for value in q)


def test_what_the_balance_is_for():
    """Scaled by second moments alone, the gradient of a deep tanh net leaves the bar that auto keeps."""
    grown = []
    for method in ("second_moment", "auto"):
        model = stack(nn.Tanh, lambda: nn.Linear(96, 96), 50)
        initialize(model, torch.zeros(1, 96), method=method, refine="noise", seed=0)
        _, g = signals(model, normal(64, 96, seed=9, dtype=torch.float32), seed=10)
        grown.append(g[0] / g[-1])
    assert grown[0] > 10 > grown[1]


def test_chains_without_biases_are_scaled_in_one_pass():
    model = stack(nn.GELU, lambda: nn.Linear(64, 64, bias=False), 10)
    init_plan = initialize(model, torch.zeros(1, 64), seed=0)
    assert init_plan.passes == 1
    assert [row.second_moment for row in init_plan.weights] == pytest.approx([1.0] * 10, rel=1e-5)
    assert {row.equation for row in init_plan.weights} == {"second moment, calibrated"}


def second_moments(model: nn.Module, example: Any) -> dict[str, float]:
    found: dict[str, float] = {}

    def visit(node, inputs, output):
        if node.kind == "weight":
            found.setdefault(node.parameters["weight"][0], output.double().square().mean().item())

    with in_training(model), torch.no_grad():
        run(model, example, read(model, example), visit)
    return found


@pytest.mark.parametrize("method", ["lsuv", "second_moment", "critical", "eq22"])
def test_data_is_taken_as_it_is(method):
    """Inputs that are no noise: on them each layer has its second moment, and that is what the rows say."""
    x = 3.0 + normal(32, 16, dtype=torch.float32) @ normal(16, 16, seed=1, dtype=torch.float32)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    init_plan = initialize(model, x, method=method, refine="data", seed=0)
    measured = second_moments(model, x)
    for row in init_plan.weights:
        assert row.second_moment == pytest.approx(1.0, rel=1e-5)
        assert measured[row.parameter] == pytest.approx(1.0, rel=1e-4)


def test_lsuv_is_orthonormal_and_scaled():
    x = normal(64, 16, dtype=torch.float32)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    initialize(model, x, method="lsuv", seed=0)
    for layer in (model[0], model[2]):
        product = (layer.weight @ layer.weight.T).detach()
        torch.testing.assert_close(product, product[0, 0] * torch.eye(16), rtol=1e-4, atol=1e-4)
        assert not layer.bias.any()


# Nothing about the model changes.


class Restless(nn.Module):
    """Changes all that a forward pass can change: buffers, counters, lists, tensors of its own, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))
        self.held, self.calls, self.log, self.cache = torch.zeros(2), 0, [], {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.held += 1
        self.calls += 1
        self.log.append(random.random())
        self.cache["x"] = x
        return self.dropout(self.norm(x))


def test_a_model_is_left_as_it_is():
    model = nn.Sequential(nn.Linear(8, 8), Restless(), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model.train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch_state, python_state = torch.random.get_rng_state(), random.getstate()
    parameters = dict(model.named_parameters())
    plan(model, torch.zeros(2, 8), seed=0)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters.values())
    restless = model[1]
    assert (restless.calls, restless.log, restless.cache) == (0, [], {})
    assert not restless.held.any()
    assert [module.training for module in model] == [True, True, False, True, True, True]
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert torch.is_grad_enabled()


def test_a_scripted_part_is_left_as_it_is():
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return x * 2.0

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        part = torch.jit.script(Counted())
    model = nn.Sequential(nn.Linear(8, 8), part, nn.Linear(8, 4))
    init_plan = plan(model, torch.zeros(2, 8), seed=0)
    assert part.seen.item() == 0
    assert [row.second_moment for row in init_plan.weights] == pytest.approx([1.0, 1.0], rel=1e-5)


def test_a_pass_that_fails_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    weight, training = model[0].weight, model.training
    parameters = {name: torch.zeros_like(value) for name, value in model.named_parameters()}

    def fail() -> None:
        with aside(model, parameters):
            assert not model[0].weight.any()
            model[1].running_mean.add_(1.0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert model[0].weight is weight
    assert not model[1].running_mean.any()
    assert model.training == training


def test_modules_that_stay_in_eval_mode_do():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> "Frozen":
            return super().train(False)

    model = nn.Sequential(nn.Linear(8, 64), Frozen(64), nn.Linear(64, 8))
    model[0].weight.data.mul_(0.1)
    rows = plan(model, torch.zeros(2, 8), method="second_moment", residual="none", seed=0).weights
    assert rows[1].second_moment == pytest.approx(1.0)  # running statistics start as 0 and 1: the identity
    with in_training(model):
        assert model.training
        assert not model[1].training


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_context_of_the_caller_does_not_matter(context):
    def planned(refine: str) -> InitPlan:
        model = stack(nn.Tanh, lambda: nn.Linear(32, 32), 8)
        with torch.no_grad():
            for layer in (model[4], model[8]):
                layer.bias.fill_(0.1)
        example = normal(64, 32, dtype=torch.float32) + 0.0
        return plan(model, example, refine=refine, skip=["4.bias", "8.bias"], seed=0)

    for refine in ("none", "noise", "data"):
        wanted = planned(refine)
        with context():
            assert planned(refine) == wanted


# What is calibrated, and what is not.


def rows_of(init_plan: InitPlan):
    return {row.parameter: row for row in init_plan.rows}


def test_layers_whose_output_is_nothing_are_named():
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(F.relu(-x.abs())), self.c(self.b(x) / F.relu(-x.abs()))

    rows = rows_of(plan(Sparse(), torch.zeros(2, 8), method="msra", refine="noise", seed=0))
    assert rows["a.weight"].equation.endswith("not calibrated: its output is 0")
    assert "not calibrated: its output is " in rows["c.weight"].equation  # inf or nan
    assert rows["a.weight"].second_moment is None
    assert rows["a.weight"].std == pytest.approx(0.5)
    assert rows["b.weight"].equation == "MSRA, sqrt(2 / fan), calibrated"


def test_a_bias_that_stays_is_part_of_the_output():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with torch.no_grad():
        model[0].bias.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(0))
        model[2].bias.fill_(2.0)
    bias = model[0].bias.detach().clone()
    init_plan = initialize(model, torch.zeros(1, 64), method="second_moment", refine="noise", skip=["*.bias"], seed=0)
    rows = rows_of(init_plan)
    assert rows["0.bias"].fill == AS_IS
    assert torch.equal(model[0].bias, bias)
    assert second_moments(model, normal(2000, 64, seed=5, dtype=torch.float32))["0.weight"] == pytest.approx(
        1.0, rel=0.03
    )
    assert rows["2.weight"].equation.endswith("not calibrated: its bias, which stays, has second moment 4")


def test_shared_weights_are_scaled_once_and_everywhere():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.shared(torch.relu(self.shared(x)))))

    model = Twice()
    init_plan = initialize(model, torch.zeros(2, 32), seed=0)
    measured = second_moments(model, normal(4096, 32, seed=3, dtype=torch.float32))
    assert measured["shared.weight"] == pytest.approx(1.0, rel=0.05)
    assert measured["head.weight"] == pytest.approx(1.0, rel=0.05)
    assert init_plan.weights[0].equation.startswith("second moment, calibrated; read 2 times")


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Returning(nn.Module):
    def __init__(self, pack) -> None:
        super().__init__()
        self.first, self.second, self.pack = nn.Linear(16, 32), nn.Linear(32, 8), pack

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.first(x))
        return self.pack(hidden, self.second(hidden))


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b: (a, b),
        lambda a, b: {"hidden": a, "more": [b]},
        Pair,
        lambda a, b: Result(b, (a,)),
        lambda a, b: b.sum(),
    ],
)
def test_any_output(pack):
    init_plan = initialize(Returning(pack), torch.zeros(2, 16), seed=0)
    assert [row.second_moment for row in init_plan.weights] == pytest.approx([1.0, 1.0], rel=1e-5)


def test_integers_and_masks_as_inputs():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden, self.head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            x = self.table(ids) * mask.unsqueeze(-1)
            return self.head(torch.tanh(self.hidden(x.sum(1))))

    example = {"ids": torch.arange(12).reshape(2, 6) % 10, "mask": torch.ones(2, 6, dtype=torch.bool)}
    init_plan = initialize(Words(), example, seed=0)
    assert [row.second_moment for row in init_plan.weights] == pytest.approx([1.0, 1.0], rel=1e-5)


def test_a_model_that_takes_no_other_batch():
    class Sequence(nn.Module):
        """Sequence first, with a position for each step."""

        def __init__(self) -> None:
            super().__init__()
            self.positions, self.layer = nn.Parameter(torch.zeros(5, 1, 8)), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + self.positions)

    model = Sequence()
    example = torch.zeros(5, 3, 8)
    assert noise_like(model, example, read(model, example)).shape == (5, 3, 8)
    init_plan = initialize(model, example, seed=0)
    assert init_plan.weights[0].second_moment == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    model = stack(nn.GELU, lambda: nn.Linear(64, 64), 12).to(dtype)
    init_plan = initialize(model, torch.zeros(1, 64, dtype=dtype), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    # bfloat16 has 8 bits: an error of 2^-9 in each entry
    assert [row.second_moment for row in init_plan.weights] == pytest.approx([1.0] * 12, rel=0.02)
    q, g = signals(model, normal(64, 64, seed=9).to(dtype), seed=10)
    assert abs(math.log10(q[-1] / q[0])) <= 0.1
    assert 0.1 <= g[0] / g[-1] <= 10


def test_noise_has_the_form_of_the_example():
    model = nn.Linear(8, 8)
    graph = read(model, torch.zeros(2, 8))
    found = noise_like(model, torch.zeros(2, 8), graph)
    assert found.shape[1:] == (8,)
    assert len(found) == 4096
    assert found.square().mean().item() == pytest.approx(1.0, rel=0.03)
    assert torch.equal(found, noise_like(model, torch.zeros(2, 8), graph))

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: Tensor, scale: Tensor, ids: Tensor, gain: float) -> Tensor:
            return gain * self.layer(x) * scale + ids[:, None]

    example = (torch.zeros(2, 8), torch.ones(()), torch.tensor([5, 6]), 2.0)
    x, scale, ids, gain = noise_like(Mixed(), example, read(Mixed(), example))
    assert len(x) == len(ids) > 100
    assert set(ids.tolist()) == {5, 6}
    assert scale.shape == ()
    assert gain == 2.0


def test_a_large_model_gets_few_examples():
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    example = torch.zeros(1, 3, 512, 512)
    assert len(noise_like(model, example, read(model, example))) == 4


def test_dropout_is_measured_as_it_will_be():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64)).eval()
    initialize(model, torch.zeros(1, 64), method="second_moment", refine="noise", seed=0)
    x = normal(4096, 64, seed=5, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert second_moments(model, x)["3.weight"] == pytest.approx(1.0, rel=0.05)


def test_the_share_of_a_branch_is_that_of_the_trunk_as_measured():
    """A small embedding: nothing but a run can know what the trunk begins with."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 64)
            self.branches = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(2)
            )
            nn.init.normal_(self.table.weight, std=0.02)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids)
            for branch in self.branches:
                x = x + branch(x)
            return x

    model = Words()
    rows = rows_of(plan(model, torch.arange(50)[None], seed=0))
    trunk = model.table.weight.square().mean().item()
    for name in ("branches.0.3.weight", "branches.1.3.weight"):
        assert rows[name].second_moment == pytest.approx(trunk / 2, rel=1e-4)
    analytic = rows_of(plan(model, torch.arange(50)[None], method="second_moment", seed=0))
    assert analytic["branches.0.3.weight"].second_moment == pytest.approx(0.5)


def test_zero_layers_stay_zero():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    init_plan = initialize(model, torch.zeros(2, 8), heads="zero", seed=0)
    assert not model[2].weight.any()
    assert init_plan.weights[1].equation == "zero head"


def test_a_plan_that_was_refined_is_applied_elsewhere():
    first, second = (stack(nn.Tanh, lambda: nn.Linear(16, 16), 5) for _ in range(2))
    init_plan = plan(first, torch.zeros(1, 16), seed=0)
    apply(InitPlan.from_json(init_plan.to_json()), second)
    apply(init_plan, first)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_forward_that_changes_its_path_is_an_error():
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.steps = nn.Linear(8, 8), 0

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if len(x) < 100 else self.layer(self.layer(x))

    with pytest.raises(UsageError, match="the forward pass differs from the graph"):
        plan(Fickle(), torch.zeros(2, 8), seed=0)


def test_activations_that_work_in_place_change_nothing():
    def net(*, inplace):
        layers = [layer for _ in range(4) for layer in (nn.Linear(16, 16), nn.ReLU(inplace=inplace))]
        return nn.Sequential(*layers, nn.Linear(16, 4))

    found = []
    for inplace in (False, True):
        model = net(inplace=inplace)
        initialize(model, torch.zeros(1, 16), seed=3)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
