"""The paper's residual net for 32-pixel images: bottleneck blocks without pre-activation ("nopre", Fig. 5d)."""

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.models.activations import ActivationFactory

WIDTHS = (16, 32, 64)  # inner width of the three stages
EXPANSION = 4
STEM = 16


class Bottleneck(nn.Module):
    """Residual block whose branch is conv1x1 - BN - act - conv3x3 - BN - act - conv1x1; nothing follows the addition.

    The stride sits on the first 1x1. Where the shape changes, the shortcut is a plain 1x1 convolution.
    """

    def __init__(self, channels: int, width: int, stride: int, *, activation: ActivationFactory) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.branch = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, width, 1, stride, bias=False),
                norm1=nn.BatchNorm2d(width),
                act1=activation(width),
                conv2=nn.Conv2d(width, width, 3, padding=1, bias=False),
                norm2=nn.BatchNorm2d(width),
                act2=activation(width),
                conv3=nn.Conv2d(width, out_channels, 1, bias=False),
            )
        )
        same_shape = channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.branch(x) + self.shortcut(x)
        return result


def nopre(depth: int, *, activation: ActivationFactory, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Build the nopre bottleneck ResNet (Fig. 5d of the paper; the authors' released Torch model).

    The stem is followed by BN and activation, the last block by BN, activation, global average pooling and a linear
    layer. Depth 164 has 1,696,250 parameters with MPELU and 10 classes, depth 1001 has 10,279,034.

    Args:
        depth: 9n + 2, with n blocks in each of three stages; projections are not counted.
        activation: Called with the number of channels for each activation.
        num_classes: Size of the output.
        in_channels: Channels of the images.

    Raises:
        UsageError: If depth is not 9n + 2 with n >= 1.
    """
    blocks, rest = divmod(depth - 2, 9)
    if rest or blocks < 1:
        lower = max(blocks, 1) * 9 + 2
        raise UsageError(
            f"the depth of a nopre net is 9n + 2 (11, 20, 29, ... 164, ... 1001), got {depth}; "
            f"the nearest are {lower} and {lower + 9}"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    outputs = (STEM, *(EXPANSION * width for width in WIDTHS))
    for stage, ((channels, out_channels), width) in enumerate(zip(pairwise(outputs), WIDTHS, strict=True), start=1):
        for block in range(1, blocks + 1):
            first = block == 1
            stages[f"stage{stage}_block{block}"] = Bottleneck(
                channels if first else out_channels,
                width,
                stride=2 if first and stage > 1 else 1,
                activation=activation,
            )
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False),
            norm_first=nn.BatchNorm2d(STEM),
            act_first=activation(STEM),
            **stages,
            norm_end=nn.BatchNorm2d(outputs[-1]),
            act_end=activation(outputs[-1]),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(outputs[-1], num_classes),
        )
    )
