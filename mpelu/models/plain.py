"""Plain (not residual) nets of 15, 30, 52 layers: the paper's for ImageNet, and a form of them for small images.

The family of sections 4.2 and 4.3: one larger stem convolution, 2x2 convolutions that take turns in padding, one
pooling after the fifth, spatial pyramid pooling, three fully connected layers, and an activation after every layer but
the last. The released Caffe files pad every convolution from the twelfth on, so that each makes the map one larger.

Small images change three things: the stem is 3x3 without stride and pooling, every convolution has the same width, and
the late convolutions keep the size of their map.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpelu.errors import UsageError
from mpelu.models.activations import ActivationFactory

FULLY_CONNECTED = 3
EARLY = 5  # convolutions before the second pooling, the stem included
GROWING = 12  # the first convolution of the ImageNet nets that makes its map larger
CAFFE_MOMENTUM = 1 - 0.999  # of running statistics; too slow for runs of less than some thousand steps


class PyramidPool(nn.Module):
    """Max pooling to 1x1, 2x2 and 4x4 bins, flattened side by side: shape ``(N, C, H, W)`` to ``(N, 21 C)``."""

    LEVELS: tuple[int, ...] = (1, 2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.AdaptiveMaxPool2d(level) for level in self.LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([pool(x).flatten(1) for pool in self.pools], 1)

    @classmethod
    def bins(cls) -> int:
        return sum(level * level for level in cls.LEVELS)


class CaffeMaxPool(nn.Module):
    """Max pooling to ``bins`` x ``bins`` windows as Caffe's pyramid cuts them, shape ``(N, C, H, W)``.

    Windows are ceil(side / bins) wide and do not overlap; the map is padded by half of what is missing, rounded up, at
    its beginning. That is more than torch's pooling takes as padding, so that -inf is put around the map instead.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom, height), (left, right, width) = (self._window(side) for side in x.shape[-2:])
        if top or left:
            x = F.pad(x, (left, right, top, bottom), value=-torch.inf)
        return F.max_pool2d(x, (height, width))

    def _window(self, side: int) -> tuple[int, int, int]:
        """Return the padding before and after, and the size of a window."""
        size = -(-side // self.bins)
        missing = self.bins * size - side
        before = (missing + 1) // 2
        if before >= size:
            raise UsageError(f"a map of {side} pixels is too small for {self.bins} bins; use larger images")
        return before, missing - before, size

    def extra_repr(self) -> str:
        return f"bins={self.bins}"


class CaffePyramidPool(PyramidPool):
    """Max pooling to 1x1, 2x2, 4x4 and 8x8 bins as Caffe cuts them: shape ``(N, C, H, W)`` to ``(N, 85 C)``."""

    LEVELS = (1, 2, 4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(CaffeMaxPool(level) for level in self.LEVELS)


@dataclass(frozen=True)
class _Conv:
    """A convolution, and the size and stride of the pooling behind it (0: none)."""

    channels: int
    kernel: int = 2
    stride: int = 1
    padding: int = 0
    pool: int = 0


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
    convolutions = [
        _Conv(
            width,
            kernel=3 if index == 1 else 2,
            padding=1 if index == 1 else index % 2,  # the map alternates between n - 1 and n
            pool=2 if index == EARLY else 0,
        )
        for index in range(1, depth - FULLY_CONNECTED + 1)
    ]
    return _stacked(
        convolutions,
        PyramidPool(),
        hidden=8 * width,
        activation=activation,
        num_classes=num_classes,
        in_channels=in_channels,
        batch_norm=batch_norm,
        dropout=dropout,
    )


def imagenet(
    depth: int,
    *,
    activation: ActivationFactory,
    num_classes: int = 1000,
    in_channels: int = 3,
    batch_norm: bool | None = None,
    dropout: float | None = None,
    growing: bool = True,
) -> nn.Sequential:
    """Build the paper's net of ``depth`` weight layers for images of 224 pixels, after the released Caffe files.

    Without the parameters of activations it has 111,956,456 (depth 15), 115,892,456 (30) or 121,665,256 (52).

    Args:
        depth: At least 15: 12 convolutions and 3 fully connected layers; the others are 2x2 with 256 channels.
        activation: Called with the number of channels for each activation.
        num_classes: Size of the output.
        in_channels: Channels of the images.
        batch_norm: Put a batch normalization without scale and shift before each activation. None: at depth 15, as in
            the released files.
        dropout: Dropout probability after each of the two hidden fully connected layers. None: 0.5 without batch
            normalization, else 0.
        growing: False lets the convolutions behind the twelfth take turns in padding: the map stays at 20 or 21 pixels.
            In the paper's deeper nets it grows with depth: what depth does and what size does cannot be told apart.

    Raises:
        UsageError: If depth is too small.
    """
    if depth < FULLY_CONNECTED + GROWING:
        raise UsageError(f"an ImageNet net has at least {FULLY_CONNECTED + GROWING} layers (15, 30, 52), got {depth}")
    batch_norm = depth == FULLY_CONNECTED + GROWING if batch_norm is None else batch_norm
    dropout = (0.0 if batch_norm else 0.5) if dropout is None else dropout
    convolutions = [_Conv(64, kernel=7, stride=2, pool=3)]
    for index in range(2, depth - FULLY_CONNECTED + 1):
        padded = index == GROWING or (growing and index > GROWING) or index % 2 == 1
        convolutions.append(_Conv(128 if index <= EARLY else 256, padding=int(padded), pool=2 if index == EARLY else 0))
    return _stacked(
        convolutions,
        CaffePyramidPool(),
        hidden=4096,
        activation=activation,
        num_classes=num_classes,
        in_channels=in_channels,
        batch_norm=batch_norm,
        dropout=dropout,
        momentum=CAFFE_MOMENTUM,
    )


def _stacked(
    convolutions: Sequence[_Conv],
    pyramid: PyramidPool,
    *,
    hidden: int,
    activation: ActivationFactory,
    num_classes: int,
    in_channels: int,
    batch_norm: bool,
    dropout: float,
    momentum: float = 0.1,
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, pools = in_channels, 0
    for index, conv in enumerate(convolutions, start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.padding)
        channels = conv.channels
        if batch_norm:
            layers[f"norm{index}"] = nn.BatchNorm2d(channels, affine=False, momentum=momentum)
        layers[f"act{index}"] = activation(channels)
        if conv.pool:
            pools += 1
            layers[f"pool{pools}"] = nn.MaxPool2d(conv.pool, ceil_mode=True)
    layers["pyramid"] = pyramid
    for index, features in ((1, channels * pyramid.bins()), (2, hidden)):
        layers[f"fc{index}"] = nn.Linear(features, hidden)
        if batch_norm:
            layers[f"fc_norm{index}"] = nn.BatchNorm1d(hidden, affine=False, momentum=momentum)
        layers[f"fc_act{index}"] = activation(hidden)
        if dropout:
            layers[f"dropout{index}"] = nn.Dropout(dropout)
    layers["fc3"] = nn.Linear(hidden, num_classes)
    return nn.Sequential(layers)
