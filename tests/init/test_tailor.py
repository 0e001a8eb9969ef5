import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import mpelu
from mpelu.errors import UsageError
from mpelu.graph import read
from mpelu.init import Transformed, nonlinear_depth, tailor
from mpelu.init.shape import tailored_shape, tailored_slope
from mpelu.init.tailor import HEAD_GAIN
from mpelu.models import create_model
from mpelu.nn import MPELU
from tests.cases import normal

WIDTH = 64


def stack(depth: int, unit: nn.Module | type[nn.Module], width: int = WIDTH) -> nn.Sequential:
    """So many linear layers with an activation between any two; a module is shared, a type is not."""
    layers: list[nn.Module] = [nn.Linear(width, width)]
    for _ in range(depth - 1):
        layers += [unit() if isinstance(unit, type) else unit, nn.Linear(width, width)]
    return nn.Sequential(*layers)


def mpelus(depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH)]
    for _ in range(depth - 1):
        layers += [MPELU(WIDTH), nn.Linear(WIDTH, WIDTH)]
    return nn.Sequential(*layers)


def correlation_behind(model: nn.Module, count: int = 32) -> float:
    """Mean cosine of the outputs for unrelated inputs."""
    x = normal(count, WIDTH, seed=7, dtype=torch.float32)
    with torch.no_grad():
        y = F.normalize(model(x), dim=1)
    gram = y @ y.T
    return ((gram.sum() - gram.trace()) / (count * (count - 1))).item()


@pytest.mark.parametrize("unit", [nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.PReLU, "mpelu"])
def test_a_deep_stack_keeps_its_inputs_apart_and_both_signals(unit):
    """Without tailoring the cosine behind 60 layers is above 0.99 for each of these but tanh (0.9)."""
    depth = 60
    model = mpelus(depth) if unit == "mpelu" else stack(depth, unit)
    tailor(model, torch.zeros(2, WIDTH), seed=0, head_gain=1.0)  # the last layer stands for one of many
    # leaky units are tailored to a cosine of 0.7, MPELU to tau / (2 + tau) = 0.6, the others to 0.13
    assert correlation_behind(model) < 0.8
    first = model[0](normal(64, WIDTH, seed=1, dtype=torch.float32)).detach().requires_grad_()
    last = model[1:](first)
    growth = math.log10(last.detach().square().mean() / first.detach().square().mean())
    assert abs(growth) <= 0.1
    cotangent = normal(64, WIDTH, seed=2, dtype=torch.float32)
    (last * cotangent).sum().backward()
    assert 0.1 <= first.grad.norm() / cotangent.norm() <= 10


def test_mpelu_is_tailored_through_its_own_parameters():
    model = mpelus(50)
    names = list(model.state_dict())
    init_plan = tailor(model, torch.zeros(2, WIDTH), seed=0)
    shape = tailored_shape(49)
    assert list(model.state_dict()) == names
    for unit in model[1::2]:
        assert torch.allclose(unit.alpha, torch.tensor(shape.alpha))
        assert torch.allclose(unit.beta, torch.tensor(shape.beta))
    assert {row.layer for row in init_plan.rows if row.parameter.endswith("alpha")} == {"MPELU"}
    assert {row.std for row in init_plan.rows if row.parameter.endswith("beta")} == {shape.beta}


def test_the_plan_carries_the_learning_rates_of_the_shape():
    model = mpelus(50)
    init_plan = tailor(model, torch.zeros(2, WIDTH), seed=0)
    shape = tailored_shape(49)
    assert shape.beta_lr < 1
    groups = {group["name"]: group for group in mpelu.param_groups(model, lr=1.0, weight_decay=0.0, plan=init_plan)}
    beta = groups[f"beta*{shape.beta_lr:.6g}"]
    assert beta["lr"] == pytest.approx(5 * shape.beta_lr)
    assert len(beta["params"]) == 49
    assert "beta" not in groups


def test_leaky_units():
    relu, prelu = stack(40, nn.ReLU), stack(40, nn.PReLU)
    slope = tailored_slope(39).negative_slope
    tailor(relu, torch.zeros(2, WIDTH), seed=0)
    assert [type(unit) for unit in relu[1::2]] == [nn.LeakyReLU] * 39
    assert {unit.negative_slope for unit in relu[1::2]} == {slope}
    tailor(prelu, torch.zeros(2, WIDTH), seed=0)
    assert all(unit.weight.item() == pytest.approx(slope) for unit in prelu[1::2])


def test_smooth_activations_are_wrapped_once():
    model = stack(20, nn.GELU)
    first = tailor(model, torch.zeros(2, WIDTH), seed=0)
    assert all(isinstance(unit, Transformed) and type(unit.activation) is nn.GELU for unit in model[1::2])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    second = tailor(model, torch.zeros(2, WIDTH), seed=0)
    assert all(type(unit.activation) is nn.GELU for unit in model[1::2])  # not wrapped again
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert first == second


def test_a_shared_activation_is_replaced_at_all_its_places():
    model = stack(10, nn.Tanh())
    tailor(model, torch.zeros(2, WIDTH), seed=0)
    assert len({id(unit) for unit in model[1::2]}) == 1
    assert isinstance(model[1], Transformed)


def test_mpelu_without_a_kink_can_be_wrapped_instead():
    layers: list[nn.Module] = [nn.Linear(8, 8)]
    for _ in range(5):
        layers += [MPELU(8, 2.0, 0.5), nn.Linear(8, 8)]
    model = nn.Sequential(*layers)
    tailor(model, torch.zeros(2, 8), seed=0, wrap=True)
    assert isinstance(model[1], Transformed)
    assert isinstance(model[1].activation, MPELU)
    assert model[1].activation.alpha.mean().item() == 2.0


class Residual(nn.Module):
    """Blocks x + branch(x), with so many activations in each branch."""

    def __init__(self, blocks: int, units: int) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.branches = nn.ModuleList(
            nn.Sequential(*[part for _ in range(units) for part in (nn.GELU(), nn.Linear(WIDTH, WIDTH))])
            for _ in range(blocks)
        )
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        out: Tensor = self.head(x)
        return out


def test_depth_of_a_stack_and_of_a_residual_net():
    x = torch.zeros(2, WIDTH)
    assert nonlinear_depth(read(stack(30, nn.GELU), x)) == 29
    # eight branches of share 1 / 9 with two units each; the last branch alone, before its sum, counts its units in full
    trunk = [2 * k / 9 for k in range(8)]
    assert nonlinear_depth(read(Residual(8, 2), x)) == pytest.approx(trunk[7] + 2)
    assert nonlinear_depth(read(nn.Sequential(nn.Linear(WIDTH, 3)), x)) == 1.0


def test_a_residual_net_keeps_its_inputs_apart():
    model = Residual(24, 3)
    tailor(model, torch.zeros(2, WIDTH), seed=0)
    x = normal(32, WIDTH, seed=3, dtype=torch.float32)
    with torch.no_grad():
        values = model.stem(x)
        before = values.square().mean()
        for branch in model.branches:
            values = values + branch(values)
        cosine = F.normalize(values, dim=1)
    gram = cosine @ cosine.T
    assert (values.square().mean() / before).item() == pytest.approx(2.0, rel=0.15)  # 24 branches of 1 / 24 each
    assert ((gram.sum() - gram.trace()) / (32 * 31)).item() < 0.5


def test_a_tailored_net_of_a_hundred_layers_learns_and_eq22_does_not():
    """The reason for all of this, on a small task: three directions to tell apart, full batch."""
    torch.manual_seed(0)
    x = normal(96, 16, dtype=torch.float32)
    labels = (x @ normal(16, 3, seed=1, dtype=torch.float32)).argmax(1)

    def loss_after(method: str) -> float:
        layers: list[nn.Module] = [nn.Linear(16, 32)]
        for _ in range(98):
            layers += [MPELU(32, 1.0, 1.0), nn.Linear(32, 32)]
        model = nn.Sequential(*layers, MPELU(32, 1.0, 1.0), nn.Linear(32, 3))
        init_plan = (
            tailor(model, x, seed=0) if method == "tailored" else mpelu.initialize(model, x, method=method, seed=0)
        )
        groups = mpelu.param_groups(model, lr=0.003, weight_decay=0.0, plan=init_plan)
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_after("tailored") < 0.2
    assert loss_after("eq22") > 0.6


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(F.gelu(self.one(x)))
        return out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Functional(), r"function calls that it cannot reach: gelu.* \(gelu\)\. Write them as modules"),
        (nn.Sequential(nn.Linear(8, 8), nn.SELU(), nn.Linear(8, 2)), r"^1: SELU has a kink or jump at 0"),
        (
            nn.Sequential(nn.Linear(8, 8), nn.SELU(), nn.Linear(8, 8), nn.Hardswish(), nn.Linear(8, 2)),
            r"and 1 more: 3\)",
        ),
        (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), "there is no activation to tailor"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "there is no activation to tailor"),
    ],
)
def test_what_cannot_be_tailored_is_refused_and_left_alone(model, message):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(UsageError, match=message):
        tailor(model, torch.zeros(2, 8), seed=0)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_convolutional_net_of_the_catalog():
    model = create_model("plain30")
    init_plan = tailor(model, torch.zeros(1, 1, 16, 16), seed=0)
    rows = {row.parameter: row for row in init_plan.rows}
    assert rows["act1.alpha"].std == pytest.approx(tailored_shape(29).alpha)
    *inner, head = init_plan.weights
    assert all(row.second_moment == pytest.approx(1.0, rel=0.01) for row in inner)
    assert head.second_moment == pytest.approx(HEAD_GAIN**2, rel=0.01)
    assert model.training


class TwoHeads(nn.Module):
    """Two outputs behind one stack; the first one ends in a sigmoid, which makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.one, self.two = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 48, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return torch.sigmoid(self.one(x)), self.two(x)


@pytest.mark.parametrize("head_gain", [0.25, 1.0, 3.0])
def test_heads_start_with_the_size_that_was_asked_for_and_nothing_else_changes(head_gain):
    model, other = TwoHeads(), TwoHeads()
    init_plan = tailor(model, torch.zeros(1, WIDTH), seed=0, head_gain=head_gain)
    tailor(other, torch.zeros(1, WIDTH), seed=0)
    with torch.no_grad():
        one, two = model(normal(2048, WIDTH, seed=5, dtype=torch.float32))
    for output in (torch.logit(one.double()), two):
        assert output.square().mean().sqrt().item() == pytest.approx(
            head_gain, rel=0.03
        )  # 2048 rows, and those of the plan
    assert torch.equal(model.stem[2].weight, other.stem[2].weight)
    heads = {row.parameter: row for row in init_plan.weights[-2:]}
    assert set(heads) == {"one.weight", "two.weight"}
    for row in heads.values():
        assert row.second_moment == pytest.approx(head_gain**2, rel=1e-6)
        assert row.gain == pytest.approx(row.std * math.sqrt(row.fan))
        assert (f"head times {head_gain:g}" in row.equation) == (head_gain != 1.0)


def test_a_head_of_zero_stays_zero():
    model = stack(4, nn.Tanh)
    tailor(model, torch.zeros(1, WIDTH), seed=0, heads="zero")
    assert not model[-1].weight.any()


@pytest.mark.parametrize("head_gain", [0.0, -1.0, math.inf, math.nan])
def test_a_head_gain_that_is_none_is_refused(head_gain):
    model = stack(4, nn.Tanh)
    with pytest.raises(UsageError, match="head_gain must be a number > 0"):
        tailor(model, torch.zeros(1, WIDTH), seed=0, head_gain=head_gain)
    assert isinstance(model[1], nn.Tanh)


def test_units_whose_parameters_are_computed_are_refused_by_name():
    class Exponential(nn.Module):
        def forward(self, original: Tensor) -> Tensor:
            return original.exp()

        def right_inverse(self, value: Tensor) -> Tensor:
            return value.log()

    model = mpelus(3)
    parametrize.register_parametrization(model[1], "beta", Exponential())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=r"1: a parametrization computes its parameters; tailor before"):
        tailor(model, torch.zeros(1, WIDTH))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
