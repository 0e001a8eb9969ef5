"""timm: MPELU as act_layer, and channel by channel by converting the finished model."""

import timm
import torch
from torch import nn

import mpelu


def shared(inplace: bool = False) -> nn.Module:  # noqa: ARG001  # timm says inplace=True, for activations that may
    """An act_layer is not told its channels, so that this MPELU has one alpha and one beta for all of them."""
    return mpelu.MPELU()


images = torch.randn(2, 3, 64, 64)
net = timm.create_model("resnet10t", num_classes=10, act_layer=shared)
print(net.act1, net(images).shape)

# One alpha and beta for each channel, as in the paper: build with ReLU, then convert. The model starts as the same
# function; with start=(0.25, 1.0) it starts at the paper's values.
net = timm.create_model("resnet10t", num_classes=10, act_layer=nn.ReLU)
conversion = mpelu.convert(net, nn.ReLU, example=images)
print(conversion)
assert conversion.largest_difference == 0.0
assert net.act1.num_parameters == 64
