"""What --follow code gives single layers, against the released Caffe files."""

import pytest
import torch

from mpelu.data import load
from mpelu.models import build_model
from mpelu.optim import param_groups
from mpelu.recipes import duration, recipe
from mpelu.train.network import build
from mpelu.train.recipe import resolve

HE_IN, HE_OUT = (2 / 147) ** 0.5, (2 / 3136) ** 0.5


def test_the_last_layer_of_nin_learns_at_a_tenth():
    followed = resolve(recipe("nin-mpelu-aug", "cpu", follow="code"), family="nin", image_size=14)
    net, plan = build(followed, load("digits"), seed=0)
    groups = param_groups(net, 1.0, 1.0, plan=plan, bias_lr=followed.bias_lr, bias_weight_decay=0.0)
    found = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    of = {name: found[id(parameter)] for name, parameter in net.named_parameters()}
    assert of["cccp6.weight"] == pytest.approx((0.1, 1.0))
    assert of["cccp6.bias"] == pytest.approx((0.1, 0.0))
    assert (of["cccp5.weight"], of["cccp5.bias"]) == ((1.0, 1.0), (2.0, 0.0))


@pytest.mark.parametrize(
    ("name", "conv1", "fc3"),
    [
        ("imagenet15-prelu0-msra", HE_OUT, 0.001),
        ("imagenet15-prelu0.25-msra", HE_OUT / (1 + 0.25**2) ** 0.5, 0.001),
        ("imagenet15-mpelu0-decay-eq22", HE_IN, 0.01),
        ("imagenet15-mpelu1-eq22", HE_IN / 2**0.5, 0.01),
        ("imagenet30-prelu-fan-out", HE_OUT / (1 + 0.25**2) ** 0.5, 0.01),
        ("imagenet30-relu", None, 0.001),
    ],
)
def test_first_and_last_layer_of_the_imagenet_nets(name, conv1, fc3):
    stds = recipe(name, follow="code").layer_std
    assert stds.get("conv1.weight") == (None if conv1 is None else pytest.approx(conv1))
    assert stds["fc3.weight"] == fc3


def test_the_first_layer_is_the_one_that_the_fans_are_of():
    followed = recipe("imagenet15-prelu0-msra", follow="code")
    with torch.device("meta"):
        net = build_model(
            followed.model,
            num_classes=1000,
            in_channels=3,
            input_size=224,
            activation=followed.activation,
            options=duration.network_options(followed),
        )
    weight = net.get_parameter("conv1.weight")
    assert (weight[0].numel(), weight.numel() // weight.shape[1]) == (147, 3136)
