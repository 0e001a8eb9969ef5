import torch
from torch import nn

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
