import pytest
import torch

from mpelu.data import load
from mpelu.errors import UsageError
from mpelu.optim import param_groups
from mpelu.train.network import build, check_network
from mpelu.train.recipe import Recipe, resolve


def resolved(**changes):
    return resolve(Recipe(**{"model": "plain9", "width": 8, **changes}), family="plain", image_size=16)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_single_parameters_get_a_standard_deviation_of_their_own(digits):
    given = {"fc*.weight": 0.5, "fc3.weight": 0.001}
    plain, _ = build(resolved(), digits, seed=0)
    net, plan = build(resolved(layer_std=given), digits, seed=0)
    again, _ = build(resolved(layer_std=given), digits, seed=0)
    for (name, value), (_, before), (_, same) in zip(
        net.named_parameters(), plain.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(value, same), name
        std = {"fc1.weight": 0.5, "fc2.weight": 0.5, "fc3.weight": 0.001}.get(name)
        if std is None:
            assert torch.equal(value, before), name
        else:
            assert value.std().item() == pytest.approx(std, rel=0.1)  # of 640 entries or more: 3 %
    assert {row.parameter: row.std for row in plan.rows}["fc3.weight"] == 0.001


def test_single_parameters_get_a_learning_rate_of_their_own(digits):
    recipe = resolved(layer_lr={"fc3.*": 0.1, "fc3.bias": 0.5}, bias_lr=2.0)
    net, plan = build(recipe, digits, seed=0)
    groups = param_groups(net, 1.0, 0.0, plan=plan, bias_lr=recipe.bias_lr)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in net.named_parameters()}
    assert (found["fc3.weight"], found["fc3.bias"]) == (0.1, 1.0)
    assert (found["fc2.weight"], found["fc2.bias"], found["conv1.weight"]) == (1.0, 2.0, 1.0)


@pytest.mark.parametrize("option", ["layer_std", "layer_lr"])
def test_a_pattern_that_matches_nothing_is_refused(digits, option):
    with pytest.raises(UsageError, match=rf"{option}: no parameter of the network matches 'fc4\.\*'"):
        check_network(resolved(**{option: {"fc1.*": 1.0, "fc4.*": 1.0}}), digits)
    with pytest.raises(UsageError, match="layer_std and layer_lr change the plan"):
        check_network(resolved(init="default", **{option: {"fc1.*": 1.0}}), digits)
