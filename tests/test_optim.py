import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from mpelu.errors import UsageError
from mpelu.nn import MPELU
from mpelu.optim import MIN_BETA, keep_beta_positive, param_groups


def by_name(groups):
    return {group["name"]: group for group in groups}


def names_of(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=True)}
    return {group["name"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), MPELU(4), nn.Flatten(), nn.Linear(4, 2), MPELU(2))


def test_every_parameter_is_in_the_group_of_its_kind():
    model = small_model()
    assert names_of(model, param_groups(model, lr=1.0, weight_decay=1.0)) == {
        "weight": ["0.weight", "1.weight", "4.weight"],
        "bias": ["0.bias", "1.bias", "4.bias"],
        "alpha": ["2.alpha", "5.alpha"],
        "beta": ["2.beta", "5.beta"],
    }


def test_multipliers():
    groups = by_name(
        param_groups(
            small_model(),
            lr=0.1,
            weight_decay=1e-4,
            alpha_beta_lr=5.0,
            alpha_beta_weight_decay=10.0,
            bias_lr=2.0,
            bias_weight_decay=0.0,
        )
    )
    wanted = {"weight": (1.0, 1.0), "bias": (2.0, 0.0), "alpha": (5.0, 10.0), "beta": (5.0, 10.0)}
    for name, (lr_multiplier, decay_multiplier) in wanted.items():
        group = groups[name]
        assert group["lr"] == pytest.approx(0.1 * lr_multiplier, rel=1e-15)
        assert group["weight_decay"] == pytest.approx(1e-4 * decay_multiplier, rel=1e-15)
        assert group["lr_multiplier"] == lr_multiplier


def test_defaults_are_those_of_the_paper():
    groups = by_name(param_groups(small_model(), lr=0.1, weight_decay=1e-4))
    assert {name: group["lr"] for name, group in groups.items()} == {
        "weight": 0.1,
        "bias": 0.1,
        "alpha": 0.5,
        "beta": 0.5,
    }
    assert {group["weight_decay"] for group in groups.values()} == {1e-4}


def test_shared_parameters_appear_once():
    shared = MPELU(4)
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 4), MPELU(4))
    model[2].weight = model[0].weight
    model[5].beta = shared.beta
    groups = param_groups(model, lr=0.1, weight_decay=0.0)
    everything = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(everything) == len(set(everything))
    assert set(everything) == {id(parameter) for parameter in model.parameters()}
    assert len(by_name(groups)["beta"]["params"]) == 1


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = small_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name not in ("0.weight", "2.alpha", "5.alpha")
    names = names_of(model, param_groups(model, lr=0.1, weight_decay=0.0))
    assert "alpha" not in names
    assert names["weight"] == ["1.weight", "4.weight"]


def test_alpha_of_another_module_is_a_weight():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(3))

    model = nn.Sequential(Scale(), MPELU(3))
    assert names_of(model, param_groups(model, lr=1.0, weight_decay=0.0)) == {
        "weight": ["0.alpha"],
        "alpha": ["1.alpha"],
        "beta": ["1.beta"],
    }


def test_the_groups_make_an_optimizer_that_uses_each_rate():
    model = nn.Sequential(nn.Linear(1, 1), MPELU(1))
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1, weight_decay=0.0, bias_lr=2.0), momentum=0.9)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    steps = {name: (before[name] - parameter).item() for name, parameter in model.named_parameters()}
    wanted = {"0.weight": 0.1, "0.bias": 0.2, "1.alpha": 0.5, "1.beta": 0.5}
    assert steps == pytest.approx(wanted, rel=1e-6)  # float32 subtractions of numbers around 1


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.9),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.5),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_beta_is_positive_after_every_step_and_alpha_is_free(optimizer):
    model = nn.Sequential(MPELU(3), nn.Sequential(MPELU(1, init_beta=0.01)))
    step = OPTIMIZERS[optimizer](model.parameters())
    keep_beta_positive(step, model)
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 10.0)
        step.step()
        for name, parameter in model.named_parameters():
            if name.endswith("beta"):
                assert (parameter >= torch.tensor(MIN_BETA)).all()
    assert torch.equal(model[0].beta, torch.full((3,), MIN_BETA))
    assert (model[0].alpha < 0).all()


def test_only_the_entries_below_are_moved():
    module = MPELU(3)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    keep_beta_positive(optimizer, module, minimum=0.5)
    module.beta.grad = torch.tensor([0.25, 5.0, -1.0])
    optimizer.step()
    assert module.beta.tolist() == [0.75, 0.5, 2.0]


def test_beta_at_the_border_still_has_its_gradient_and_can_leave():
    module = MPELU(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    keep_beta_positive(optimizer, module)
    with torch.no_grad():
        module.beta.fill_(MIN_BETA)
    # a target below the output: more beta makes the negative side steeper and the output smaller
    x, target = torch.full((8, 1), -2.0), torch.full((8, 1), -1.0)
    (0.5 * (module(x) - target) ** 2).mean().backward()
    # d loss / d beta = (f + 1) alpha x exp(beta x), about 1 * 0.25 * -2 at beta = 0
    assert module.beta.grad.item() == pytest.approx(-0.5, rel=2e-3)
    optimizer.step()
    assert module.beta.item() == pytest.approx(0.05, rel=1e-2)


def test_remove_takes_the_projection_away():
    module = MPELU(1)
    optimizer = torch.optim.SGD([module.beta], lr=1.0)
    handle = keep_beta_positive(optimizer, module)
    handle.remove()
    module.beta.grad = torch.tensor([3.0])
    optimizer.step()
    assert module.beta.item() == -2.0


def test_model_without_mpelu_is_no_error():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    keep_beta_positive(optimizer, model)
    model.weight.grad = torch.tensor([[100.0]])
    optimizer.step()
    assert model.weight.item() < -90


def test_smallest_beta_is_a_normal_number_in_half_precision():
    assert torch.finfo(torch.float16).smallest_normal < MIN_BETA < 0.01


class Exponential(nn.Module):
    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return original.exp()

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return value.log()


def parametrized() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 3), MPELU(3, init_beta=2.0), nn.Linear(3, 1), MPELU(1))
    parametrize.register_parametrization(net[1], "beta", Exponential())
    return net


def test_what_a_parametrization_computes_beta_from_is_in_the_group_of_beta():
    net = parametrized()
    members = {group["name"]: group["params"] for group in param_groups(net, lr=0.1, weight_decay=0.0)}
    assert {id(each) for each in members["beta"]} == {id(net[1].parametrizations.beta.original), id(net[3].beta)}
    assert {id(each) for each in members["alpha"]} == {id(net[1].alpha), id(net[3].alpha)}
    assert len(members["weight"]) == len(members["bias"]) == 2


def test_further_parameters_of_a_subclass_are_weights():
    class Shifted(MPELU):
        def __init__(self) -> None:
            super().__init__(3)
            self.shift = nn.Parameter(torch.zeros(3))

    net = Shifted()
    members = {group["name"]: group["params"] for group in param_groups(net, lr=0.1, weight_decay=0.0)}
    assert members["weight"][0] is net.shift
    assert set(members) == {"weight", "alpha", "beta"}


def test_a_beta_that_is_computed_cannot_be_projected():
    net = parametrized()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="beta of 1 is computed by a parametrization"):
        keep_beta_positive(optimizer, net)
    keep_beta_positive(optimizer, net[2:])


def test_projection_follows_parameters_that_are_replaced():
    net = nn.Sequential(MPELU(2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    keep_beta_positive(optimizer, net, minimum=0.5)
    net.load_state_dict({"0.alpha": torch.ones(2), "0.beta": torch.tensor([0.1, 0.9])}, assign=True)
    optimizer.step()
    assert net[0].beta.tolist() == pytest.approx([0.5, 0.9])
