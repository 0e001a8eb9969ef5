import pytest
import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.models import create_model
from mpelu.nn import MPELU


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_of_the_paper():
    """966,986 weights and biases; 1,418 channels with an activation."""
    assert count(create_model("nin", activation="relu")) == 966_986
    assert count(create_model("nin", activation="prelu")) == 966_986 + 1_418
    assert count(create_model("nin")) == 966_986 + 2 * 1_418


def test_nine_convolutions_each_with_an_activation_and_maps_of_28_14_7():
    model = create_model("nin", num_classes=100).eval()
    assert sum(isinstance(module, nn.Conv2d) for module in model) == 9
    assert sum(isinstance(module, MPELU) for module in model) == 9
    shapes = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 100)
    assert shapes["conv1_act"] == (192, 28, 28)
    assert shapes["pool1"] == (96, 14, 14)
    assert shapes["pool2"] == (192, 7, 7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_width_is_that_of_the_widest_and_the_others_keep_their_ratio():
    narrow = [module.out_channels for module in create_model("nin", width=24) if isinstance(module, nn.Conv2d)]
    assert narrow == [24, 20, 12, 24, 24, 24, 24, 24, 10]
    assert count(create_model("nin", width=192)) == count(create_model("nin"))
    assert create_model("nin", width=24, in_channels=1)(torch.zeros(2, 1, 14, 14)).shape == (2, 10)
    with pytest.raises(UsageError, match="width must be at least 2 for nin, got 1"):
        create_model("nin", width=1)
