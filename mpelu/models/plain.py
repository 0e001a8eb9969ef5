"""Plain (not residual) nets of 15, 30 and 52 layers in a form for small images.

The family is that of the paper's ImageNet nets (sections 4.2 and 4.3): one larger stem convolution, 2x2 convolutions
that take turns in padding, one pooling after the fifth, spatial pyramid pooling, three fully connected layers, and an
activation after every layer but the last. Small images change three things: the stem is 3x3 without stride and
pooling, every convolution has the same width, and the late convolutions keep the size of their map (in the paper each
of them makes it one larger).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.models.activations import ActivationFactory

FULLY_CONNECTED = 3
EARLY = 5  # convolutions before the second pooling, the stem included


class PyramidPool(nn.Module):
    """Max pooling to 1x1, 2x2 and 4x4 bins, flattened side by side: shape ``(N, C, H, W)`` to ``(N, 21 C)``."""

    LEVELS = (1, 2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.AdaptiveMaxPool2d(level) for level in self.LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([pool(x).flatten(1) for pool in self.pools], 1)

    @classmethod
    def bins(cls) -> int:
        return sum(level * level for level in cls.LEVELS)


def plain(
    depth: int,
    *,
    activation: ActivationFactory,
    num_classes: int = 10,
    in_channels: int = 1,
    input_size: int = 16,
    width: int = 16,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build a plain net of ``depth`` weight layers: ``depth - 3`` convolutions and 3 fully connected layers.

    Args:
        depth: Number of weight layers, at least 9 (the paper's: 15, 30, 52).
        activation: Called with the number of channels for each activation.
        num_classes: Size of the output.
        in_channels: Channels of the images.
        input_size: Height and width of the images in pixels, at least 8.
        width: Channels of every convolution; the fully connected layers have 8 times as many units.
        batch_norm: Put a batch normalization without learnable scale and shift (as the paper's Caffe nets had)
            before each activation.
        dropout: Dropout probability after each of the two hidden fully connected layers (the paper's: 0.5 without
            batch normalization, else 0).

    Raises:
        UsageError: If depth, input_size or width is too small.
    """
    if depth < FULLY_CONNECTED + EARLY + 1:
        raise UsageError(f"a plain net has at least {FULLY_CONNECTED + EARLY + 1} layers (15, 30, 52), got {depth}")
    if input_size < 8:
        raise UsageError(f"a plain net needs images of at least 8 pixels, got {input_size}")
    if width < 1:
        raise UsageError(f"width must be at least 1, got {width}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(1, depth - FULLY_CONNECTED + 1):
        stem = index == 1
        layers[f"conv{index}"] = nn.Conv2d(
            in_channels if stem else width,
            width,
            kernel_size=3 if stem else 2,
            padding=1 if stem else index % 2,  # the map alternates between n - 1 and n
        )
        if batch_norm:
            layers[f"norm{index}"] = nn.BatchNorm2d(width, affine=False)
        layers[f"act{index}"] = activation(width)
        if index == EARLY:
            layers["pool"] = nn.MaxPool2d(2, ceil_mode=True)
    layers["pyramid"] = PyramidPool()
    features, hidden = width * PyramidPool.bins(), 8 * width
    for index, inputs in ((1, features), (2, hidden)):
        layers[f"fc{index}"] = nn.Linear(inputs, hidden)
        if batch_norm:
            layers[f"fc_norm{index}"] = nn.BatchNorm1d(hidden, affine=False)
        layers[f"fc_act{index}"] = activation(hidden)
        if dropout:
            layers[f"dropout{index}"] = nn.Dropout(dropout)
    layers["fc3"] = nn.Linear(hidden, num_classes)
    return nn.Sequential(layers)
