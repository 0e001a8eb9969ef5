"""The gain of an activation: what the standard deviation of the weights that read it is multiplied by."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.init.fill import taylor_gain
from mpelu.moments import Activation, moments

__all__ = ["GAINS", "Critical", "centered_critical", "gain", "negative_slope"]


def negative_slope(activation: Activation, channels: int | None = None) -> float:
    """Return the slope just below 0 as Eq. 22 wants it: the root mean square over channels.

    For MPELU it is alpha * beta, for ELU alpha, for the rectified units their slope.

    Raises:
        UsageError: If the activation is not the identity above 0 with f(0) = 0, as the derivation assumes.

    Example:
        >>> negative_slope(nn.LeakyReLU(0.25))
        0.25
    """
    from mpelu.moments.elementwise import elementwise

    wrapped = elementwise(activation, channels)
    above = torch.tensor([0.0, 0.125, 1.0, 8.0], dtype=torch.float64)
    if not torch.equal(wrapped.values(above), above[:, None].expand(-1, wrapped.channels)):
        raise UsageError(
            f"Eq. 22 covers units with f(x) = x for x >= 0 (MPELU, SPELU, ReLU, LeakyReLU, PReLU, ELU), got "
            f"{wrapped.name}; use method='second_moment', 'critical' or 'auto', which cover every activation"
        )
    _, slopes = wrapped.values_and_slopes(torch.tensor([-1e-300], dtype=torch.float64))
    return slopes.square().mean().sqrt().item()


def gain(
    activation: Activation, method: str = "second_moment", *, second_moment: float = 1.0, channels: int | None = None
) -> float:
    r"""Return the gain for the weights that read an activation: std = gain / sqrt(fan).

    - ``second_moment``: sqrt(q / E[f(x)^2]) with x ~ N(0, q): the next pre-activation has the same second moment q.
      Exact for every activation.
    - ``critical``: 1 / sqrt(E[f'(x)^2]): the gradient keeps its norm. The second moment needs random biases then:
      see :func:`centered_critical`.
    - ``taylor``: sqrt(2 / (1 + slope^2)), Eq. 22 of arXiv:1606.00305; exact for rectified units only.
    - ``kaiming``: sqrt(2), whatever the activation, as MSRA initialization is used in the paper.
    - ``xavier``: 1.

    Args:
        activation: An elementwise module or function.
        method: One of the above.
        second_moment: q of the pre-activations.
        channels: Number of channels of a function whose parameters differ between them.

    Raises:
        UsageError: If the method is unknown, or does not cover the activation.

    Example:
        >>> round(gain(nn.ELU()), 4), round(gain(nn.ELU(), "taylor"), 4)
        (1.2452, 1.0)
    """
    if method not in GAINS:
        raise UsageError(f"unknown gain {method!r}; known: {', '.join(GAINS)}")
    if not (math.isfinite(second_moment) and second_moment > 0):
        raise UsageError(f"second_moment must be a number > 0, got {second_moment}")
    return GAINS[method](activation, second_moment, channels)


def _second_moment(activation: Activation, q: float, channels: int | None) -> float:
    kept = moments(activation, variance=q, channels=channels).second_moment
    if not kept > 0:
        raise UsageError(f"{_name(activation)} maps inputs of second moment {q:g} to 0: no gain can restore them")
    return math.sqrt(q / kept)


def _critical(activation: Activation, q: float, channels: int | None) -> float:
    slope = moments(activation, variance=q, channels=channels).slope_second_moment
    if not slope > 0:
        raise UsageError(f"{_name(activation)} has the derivative 0: no gain lets a gradient through")
    return 1.0 / math.sqrt(slope)


def _taylor(activation: Activation, q: float, channels: int | None) -> float:  # noqa: ARG001
    return taylor_gain(negative_slope(activation, channels))


GAINS: dict[str, Callable[[Activation, float, int | None], float]] = {
    "second_moment": _second_moment,
    "critical": _critical,
    "taylor": _taylor,
    "kaiming": lambda activation, q, channels: math.sqrt(2.0),  # noqa: ARG005
    "xavier": lambda activation, q, channels: 1.0,  # noqa: ARG005
}


@dataclass(frozen=True)
class Critical:
    """Gain and bias variance that keep second moment and gradient together, with rows of weights that sum to 0."""

    gain: float
    bias_variance: float


def centered_critical(activation: Activation, second_moment: float = 1.0, channels: int | None = None) -> Critical:
    r"""Return the point where both signals stay as they are, for weights whose rows sum to 0.

    .. math:: \sigma_w^2 = \frac{1}{E[f'^2]}, \qquad \sigma_b^2 = q - \sigma_w^2 \operatorname{Var} f

    A row that sums to 0 does not see the mean of what it reads, so that Var f stands where the edge of chaos has
    E[f^2]. By the Gaussian Poincare inequality Var f <= q E[f'^2], the bias variance is never negative: every
    activation has such a point, at every q.

    Raises:
        UsageError: If the activation lets no gradient through.

    Example:
        >>> point = centered_critical(nn.ReLU())
        >>> round(point.gain**2, 4), round(point.bias_variance, 4)
        (2.0, 0.3183)
    """
    of = moments(activation, variance=second_moment, channels=channels)
    if not of.slope_second_moment > 0:
        raise UsageError(f"{_name(activation)} has the derivative 0: no gain lets a gradient through")
    weight_variance = 1.0 / of.slope_second_moment
    return Critical(math.sqrt(weight_variance), max(0.0, second_moment - weight_variance * of.variance))


def _name(activation: Activation) -> str:
    if isinstance(activation, nn.Module):
        return type(activation).__name__
    return getattr(activation, "__name__", repr(activation))
