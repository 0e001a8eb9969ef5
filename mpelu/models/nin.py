"""Network in Network for CIFAR (section 4.1 of the paper): nine convolutions, six of them 1x1, no linear layer."""

from collections import OrderedDict

from torch import nn

from mpelu.errors import UsageError
from mpelu.models.activations import ActivationFactory

STAGES = (  # (name, channels, kernel) of the convolutions; each stage ends with a pooling
    (("conv1", 192, 5), ("cccp1", 160, 1), ("cccp2", 96, 1)),
    (("conv2", 192, 5), ("cccp3", 192, 1), ("cccp4", 192, 1)),
    (("conv3", 192, 3), ("cccp5", 192, 1), ("cccp6", 0, 1)),
)
DROPOUT = 0.5
WIDTH = 192  # of the widest convolutions


def nin(
    *, activation: ActivationFactory, num_classes: int = 10, in_channels: int = 3, width: int = WIDTH
) -> nn.Sequential:
    """Build NIN: an activation after each convolution, the last included; 966,986 weights and biases for 10 classes.

    The paper's pooling at the end is 7x7 for its 28-pixel crops; here it is global, so that 32-pixel images fit too
    (which geometry the paper used without augmentation is not known).

    Args:
        activation: Called with the number of channels for each of the nine activations.
        num_classes: Size of the output.
        in_channels: Channels of the images.
        width: Channels of the widest convolutions; the others keep their ratio to it.

    Raises:
        UsageError: If width is too small.
    """
    if width < 2:
        raise UsageError(f"width must be at least 2 for nin, got {width}")
    pools: tuple[list[tuple[str, nn.Module]], ...] = (
        [("pool1", nn.MaxPool2d(3, 2, ceil_mode=True)), ("dropout1", nn.Dropout(DROPOUT))],
        [("pool2", nn.AvgPool2d(3, 2, ceil_mode=True)), ("dropout2", nn.Dropout(DROPOUT))],
        [("pool3", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())],
    )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for stage, pool in zip(STAGES, pools, strict=True):
        for name, full, kernel in stage:
            out_channels = round(full * width / WIDTH) or num_classes
            layers[name] = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
            layers[f"{name}_act"] = activation(out_channels)
            channels = out_channels
        layers.update(pool)
    return nn.Sequential(layers)
