"""Initialization of one tensor, named as in ``torch.nn.init``: fans, Eq. 22, and the seeded normal fill."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mpelu.errors import UsageError


def fans(weight: Tensor, groups: int = 1) -> tuple[int, int]:
    """Return fan_in and fan_out of a weight of shape ``(out, in / groups, *kernel)``.

    Raises:
        UsageError: If the weight has fewer than 2 dimensions, or out is no multiple of groups.

    Example:
        >>> fans(torch.empty(16, 3, 5, 5))
        (75, 400)
    """
    if weight.dim() < 2:
        raise UsageError(f"a weight must have 2 or more dimensions to have fans, got shape {tuple(weight.shape)}")
    if groups < 1 or weight.shape[0] % groups:
        raise UsageError(f"groups must divide the {weight.shape[0]} output channels, got {groups}")
    kernel = math.prod(weight.shape[2:])
    return weight.shape[1] * kernel, weight.shape[0] // groups * kernel


FANS: dict[str, Callable[[int, int], float]] = {
    "fan_in": lambda fan_in, fan_out: fan_in,  # noqa: ARG005
    "fan_out": lambda fan_in, fan_out: fan_out,  # noqa: ARG005
    "average": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
}


def fan(weight: Tensor, mode: str = "fan_in", groups: int = 1) -> float:
    """Return the fan that the variance of a weight is divided by; ``mode`` is fan_in, fan_out or average."""
    if mode not in FANS:
        raise UsageError(f"mode must be one of {', '.join(FANS)}, got {mode!r}")
    return FANS[mode](*fans(weight, groups))


def taylor_gain(slope: float) -> float:
    """Return sqrt(2 / (1 + slope^2)), where slope = alpha * beta is the slope of the negative side at 0.

    Source: Eq. 22 of the paper. It keeps the second moment exactly where the negative side is linear (ReLU,
    LeakyReLU, PReLU), and to first order around 0 where it is exponential: there the signal shrinks with depth.
    """
    return math.sqrt(2.0 / (1.0 + slope**2))


def fill_normal_(weight: Tensor, std: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill with N(0, std), drawn in float32 on the CPU so that a seed means the same weights on every device."""
    with torch.no_grad():
        drawn = torch.empty(weight.shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
        return weight.copy_(drawn)


def taylor_normal_(
    tensor: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    mode: str = "fan_in",
    *,
    groups: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill a weight with N(0, std), std = sqrt(2 / (fan (1 + alpha^2 beta^2))).

    Source: Li et al., arXiv:1606.00305, Eq. 22; the modes are those of the authors' Caffe filler "taylor".
    With alpha = 0 it is :func:`torch.nn.init.kaiming_normal_` for ReLU (MSRA), with alpha = beta = 1 it is the
    initialization for ELU; MSRA for a leaky unit of slope a is alpha = a, beta = 1.

    Args:
        tensor: Weight of shape ``(out, in / groups, *kernel)``, filled in place.
        alpha: Of the activation that *feeds* this weight.
        beta: Of the activation that feeds this weight.
        mode: ``fan_in`` keeps the forward signal, ``fan_out`` the gradient, ``average`` is between.
        groups: Groups of the convolution.
        generator: A CPU generator, None for the default one.

    Returns:
        The tensor.

    Raises:
        UsageError: If the mode is unknown or the tensor has fewer than 2 dimensions.

    Example:
        >>> round(taylor_normal_(torch.empty(256, 64, 3, 3), alpha=1, beta=1).std().item(), 3)
        0.042
    """
    std = taylor_gain(alpha * beta) / math.sqrt(fan(tensor, mode, groups))
    return fill_normal_(tensor, std, generator=generator)
