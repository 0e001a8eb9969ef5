"""Residual nets for 32-pixel images: the blocks of Figures 4 and 5 of the paper, each as the line that it is.

A block is a branch of steps from top to bottom, and what follows its addition to the shortcut. ``conv1`` and ``conv3``
are convolutions with 1x1 and 3x3 kernels and no bias, ``norm`` is batch normalization and ``act`` the activation.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise, takewhile

from torch import Tensor, nn
from torch.nn import functional as F

from mpelu.errors import UsageError
from mpelu.models.activations import ActivationFactory
from mpelu.nn import MPELU

WIDTHS = (16, 32, 64)  # inner width of the three stages
STEM = 16


@dataclass(frozen=True)
class Design:
    """A residual net, up to its depth.

    Attributes:
        branch: Steps of the branch. The stride of a stage's first block is that of the first convolution.
        after: Steps after the addition.
        stem: Steps between the first convolution and the first block.
        end: Steps behind the last block.
        expansion: Width of a block's output over the width inside.
        shortcut: "A" subsamples and adds channels of zeros, "B" is a 1x1 convolution; where shape and size stay, both
            are the identity.
        shortcut_norm: Whether a normalization follows the convolution of type B.
        figure: Where the paper draws or names it.
    """

    branch: str
    figure: str
    after: str = ""
    stem: str = "norm act"
    end: str = ""
    expansion: int = 1
    shortcut: str = "A"
    shortcut_norm: bool = False

    @cached_property
    def steps(self) -> list[str]:
        return self.branch.split()

    @cached_property
    def leading(self) -> list[str]:
        """The steps before the first convolution: where the shortcut is not the identity, it reads them too."""
        return list(takewhile(lambda step: not step.startswith("conv"), self.steps))

    @property
    def layers_of_a_block(self) -> int:
        return self.branch.count("conv")


_bottleneck = partial(Design, end="norm act", expansion=4, shortcut="B")
DESIGNS = {
    "resnet": Design("conv3 norm act conv3 norm", "Fig. 4a", after="act", shortcut_norm=True),
    "nonbottleneck": Design("conv3 norm act conv3 norm", "Fig. 4b", shortcut_norm=True),
    "preact": _bottleneck("norm act conv1 norm act conv3 norm act conv1", "Fig. 4c, 4d", stem=""),
    "fig5a": _bottleneck("act conv1 norm act conv3 norm act conv1 norm", "Fig. 5a"),
    "fig5b": _bottleneck("act conv1 norm act conv3 norm act conv1", "Fig. 5b"),
    "fig5c": _bottleneck("conv1 norm act conv3 norm act conv1 norm", "Fig. 5c"),
    "nopre": _bottleneck("conv1 norm act conv3 norm act conv1", "Fig. 5d"),
    "fig5e": _bottleneck("conv1 act conv3 act conv1", "Fig. 5e"),
}
"""The designs by family name. Not stated in the paper, and chosen here: nothing stands behind the last block of Fig. 4b
and its shortcuts are of type A; 5a, 5b and 5e begin and end as 5d does."""


class Block(nn.Module):
    """One residual block of a design: ``after(branch(leading(x)) + shortcut(x))``.

    Where the shortcut changes the shape, it reads what the leading steps give, as in pre-activation nets.
    """

    def __init__(
        self,
        design: Design,
        channels: int,
        width: int,
        stride: int,
        *,
        activation: ActivationFactory,
        after: ActivationFactory | None = None,
        shortcut: str | None = None,
    ) -> None:
        super().__init__()
        out_channels = design.expansion * width
        steps = _steps(design.steps, channels, width, out_channels, stride, activation=activation)
        lead = len(design.leading)
        self.leading = nn.Sequential(OrderedDict(steps[:lead]))
        self.branch = nn.Sequential(OrderedDict(steps[lead:]))
        self.shortcut = _shortcut(design, channels, out_channels, stride, shortcut or design.shortcut)
        self.shares = not isinstance(self.shortcut, nn.Identity)
        behind = _steps(design.after.split(), out_channels, width, out_channels, 1, activation=after or activation)
        self.after = nn.Sequential(OrderedDict(behind))

    def forward(self, x: Tensor) -> Tensor:
        ready = self.leading(x)
        result: Tensor = self.after(self.branch(ready) + self.shortcut(ready if self.shares else x))
        return result


class Subsample(nn.Module):
    """Shortcut of type A: every ``stride``-th pixel, and channels of zeros at the end."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, new_channels={self.new_channels}"


def residual(
    design: Design,
    depth: int,
    *,
    activation: ActivationFactory,
    num_classes: int = 10,
    in_channels: int = 3,
    shortcut: str | None = None,
    after: tuple[float, float] | None = None,
    first_norm: bool = True,
    end_norm: bool = True,
) -> nn.Sequential:
    """Build a residual net of three stages: the authors' released Torch model is ``nopre``.

    Depth 164 of ``nopre`` has 1,696,250 parameters with MPELU and 10 classes, depth 1001 has 10,279,034.

    Args:
        design: One of :data:`DESIGNS`.
        depth: 3 n k + 2, with n blocks of k convolutions in each stage; shortcuts are not counted.
        activation: Called with the number of channels for each activation.
        num_classes: Size of the output.
        in_channels: Channels of the images.
        shortcut: "A" or "B"; None is that of the design.
        after: Start values (alpha, beta) of the MPELUs that follow the additions, in the place of ``activation``; the
            paper's variant B has (98, 0.01).
        first_norm: False leaves out the normalization behind the first convolution (BN1).
        end_norm: False leaves out the normalization behind the last block (BNend).

    Raises:
        UsageError: If there is no net of this depth, or the design has not what an option is about.
    """
    blocks = _blocks(design, depth)
    _check(design, shortcut=shortcut, after=after, first_norm=first_norm, end_norm=end_norm)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
    layers.update(_around(design.stem, "first", STEM, activation=activation, norm=first_norm))
    outputs = (STEM, *(design.expansion * width for width in WIDTHS))
    for stage, ((channels, out_channels), width) in enumerate(zip(pairwise(outputs), WIDTHS, strict=True), start=1):
        for block in range(1, blocks + 1):
            first = block == 1
            layers[f"stage{stage}_block{block}"] = Block(
                design,
                channels if first else out_channels,
                width,
                stride=2 if first and stage > 1 else 1,
                activation=activation,
                after=None if after is None else lambda channels: MPELU(channels, *after),
                shortcut=shortcut,
            )
    layers.update(_around(design.end, "end", outputs[-1], activation=activation, norm=end_norm))
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(outputs[-1], num_classes)
    return nn.Sequential(layers)


def _steps(
    steps: list[str], channels: int, width: int, out_channels: int, stride: int, *, activation: ActivationFactory
) -> list[tuple[str, nn.Module]]:
    """Return the modules of some steps, each named by its kind and number: conv1, norm1, act1, conv2, ..."""
    modules: list[tuple[str, nn.Module]] = []
    count: Counter[str] = Counter()
    convolutions = sum(step.startswith("conv") for step in steps)
    for step in steps:
        kind = step.rstrip("0123456789")
        count[kind] += 1
        module: nn.Module
        if kind == "norm":
            module = nn.BatchNorm2d(channels)
        elif kind == "act":
            module = activation(channels)
        else:
            kernel = int(step.removeprefix(kind))
            wide = out_channels if count[kind] == convolutions else width
            first = stride if count[kind] == 1 else 1
            module = nn.Conv2d(channels, wide, kernel, first, padding=kernel // 2, bias=False)
            channels = wide
        modules.append((f"{kind}{count[kind]}", module))
    return modules


def _shortcut(design: Design, channels: int, out_channels: int, stride: int, kind: str) -> nn.Module:
    if channels == out_channels and stride == 1:
        return nn.Identity()
    if kind == "A":
        return Subsample(stride, out_channels - channels)
    projection = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels)) if design.shortcut_norm else projection


def _around(
    steps: str, place: str, channels: int, *, activation: ActivationFactory, norm: bool
) -> dict[str, nn.Module]:
    """Return the modules before the first block or behind the last one, by name."""
    build = {"norm": nn.BatchNorm2d, "act": activation}
    return {f"{step}_{place}": build[step](channels) for step in steps.split() if norm or step != "norm"}


def _blocks(design: Design, depth: int) -> int:
    """Return the number of blocks in a stage."""
    step = 3 * design.layers_of_a_block
    blocks, rest = divmod(depth - 2, step)
    if rest or blocks < 1:
        lower = max(blocks, 1) * step + 2
        raise UsageError(
            f"the depth of a net of {design.figure} is {step}n + 2 "
            f"({', '.join(str(step * n + 2) for n in (1, 2, 3, 12, 18))}, ...), got {depth}; "
            f"the nearest are {lower} and {lower + step}"
        )
    return blocks


def _check(
    design: Design, *, shortcut: str | None, after: tuple[float, float] | None, first_norm: bool, end_norm: bool
) -> None:
    if shortcut not in (None, "A", "B"):
        raise UsageError(f"shortcut must be A or B, got {shortcut!r}")
    if after is not None and not design.after:
        raise UsageError(f"nothing follows the additions of {design.figure}, so that after={after} has no place")
    for name, wanted, steps in (("first_norm", first_norm, design.stem), ("end_norm", end_norm, design.end)):
        if not wanted and "norm" not in steps:
            raise UsageError(f"{design.figure} has no such normalization to leave out: {name} must be True")
