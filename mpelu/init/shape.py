r"""How nonlinear a unit with a shape of its own should start, from the depth of the stack it stands in.

A deep stack of strongly bent units makes all inputs alike; the deeper it is, the straighter each unit has to start.
Leaky units have their negative slope for that, MPELU has alpha and beta. Source of the idea, for leaky units: G. Zhang,
A. Botev and J. Martens (2022), Tailored Activation Transformations, arXiv:2203.08120. Smooth activations without
parameters are tailored by :func:`mpelu.init.transform.tailored`.

Symbols: c is the correlation of a unit's inputs for two images, C(c) that of its outputs, E f(u) f(v) / E f^2, when the
inputs are Gaussian with second moment 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mpelu.errors import UsageError
from mpelu.moments import expectation, moments
from mpelu.nn import MPELU

Map = Callable[[float], float]
Network = Callable[[Map], float]
"""Takes the map C of one activation; returns the correlation with which two inputs of correlation 0 leave the network.

For networks that are no plain stack it composes the maps as the network composes its layers, with
:func:`sum_correlation` where branches meet, and returns the largest value at any place from which a weight reads.
"""

ETA = 0.7
"""Correlation behind a stack of leaky units. Zhang et al. take 0.9; with 0.7, 52 and 100 layers learned the digits in
45 steps instead of 103 (``benchmarks/bench_tailor.py``)."""
TAU = 3.0
"""Curvature of a stack of MPELU: depth 100 learned the digits in fewer steps than with 0.3, 1 or 10."""
TINY = 1e-6


@dataclass(frozen=True)
class TailoredSlope:
    """A leaky unit for a given depth.

    Attributes:
        negative_slope: In [0, 1].
        gain: sqrt(2 / (1 + negative_slope^2)), for weights of variance gain^2 / fan_in behind the unit.
        correlation: With which two inputs of correlation 0 leave the network.
    """

    negative_slope: float
    gain: float
    correlation: float


@dataclass(frozen=True)
class TailoredShape:
    """A start of MPELU for a given depth.

    Attributes:
        alpha: 1 / beta, so that the unit has no kink.
        beta: About sqrt(2 tau / depth) in deep stacks.
        gain: 1 / sqrt(E f^2), for weights of variance gain^2 / fan_in behind the unit.
        slope: gain^2 E f'^2, the factor of the squared gradient in each layer.
        alpha_lr: Learning rate of alpha relative to that of the weights, see :func:`shape_rates`.
        beta_lr: The same for beta.
    """

    alpha: float
    beta: float
    gain: float
    slope: float
    alpha_lr: float
    beta_lr: float


def leaky_correlation(correlation: float, negative_slope: float) -> float:
    r"""Return the correlation behind a leaky unit of slope a.

    .. math:: C(c) = c + \frac{(1 - a)^2}{\pi (1 + a^2)} \left( \sqrt{1 - c^2} - c \arccos c \right)

    It holds for every second moment. Source: Cho and Saul (2009), Kernel Methods for Deep Learning, for a = 0; the rest
    follows from f(x) = ((1 + a) x + (1 - a) |x|) / 2.

    Example:
        >>> round(leaky_correlation(0.0, 0.0) * math.pi, 12)
        1.0
    """
    c = min(max(correlation, -1.0), 1.0)
    bend = (1 - negative_slope) ** 2 / (math.pi * (1 + negative_slope**2))
    return c + bend * (math.sqrt((1 - c) * (1 + c)) - c * math.acos(c))


def sum_correlation(weights: Sequence[float], correlations: Sequence[float]) -> float:
    r"""Return the correlation of a weighted sum of independent signals of equal second moment.

    .. math:: c = \sum_i w_i^2 c_i / \sum_i w_i^2

    A residual block has the weights of its skip and of its branch; it keeps the second moment if their squares add up
    to 1.

    Raises:
        UsageError: If the numbers of weights and correlations differ, or all weights are 0.

    Example:
        >>> round(sum_correlation([0.8, 0.6], [0.5, 1.0]), 12)
        0.68
    """
    squares = [weight * weight for weight in weights]
    if len(weights) != len(correlations) or not sum(squares) > 0:
        raise UsageError(
            f"a sum needs a weight for each correlation, not all 0; got weights {list(weights)} and correlations "
            f"{list(correlations)}"
        )
    return sum(square * c for square, c in zip(squares, correlations, strict=True)) / sum(squares)


def stack(depth: float) -> Network:
    """Return the network of ``depth`` activations in a row; of a fraction of one, C(c) - c is taken to that fraction.

    Raises:
        UsageError: If depth < 1.
    """
    if not depth >= 1:
        raise UsageError(f"depth must be at least 1, got {depth}")

    def correlation(layer: Map) -> float:
        c = 0.0
        for _ in range(int(depth)):
            c = layer(c)
        return c + (depth - int(depth)) * (layer(c) - c)

    return correlation


def effective_depth(network: Network) -> float:
    r"""Return the depth of the plain stack in which a slightly bent activation does as much as in this network.

    Depths add along a path; where branches meet, they are averaged with the squares of the weights of the sum. It is
    what :func:`mpelu.init.transform.tailored` and :func:`tailored_shape` want for networks that are no plain stack.

    Example:
        A plain stack, and a normalized sum of a skip and a branch with 8 activations:

        >>> round(effective_depth(stack(12)), 3)
        12.0
        >>> round(effective_depth(lambda layer: sum_correlation([0.8, 0.6], [0.0, stack(8)(layer)])), 3)
        2.88
    """
    return 2 * network(lambda c: c + TINY / 2 * (1 - c) ** 2) / TINY


def tailored_slope(network: float | Network, *, eta: float = ETA) -> TailoredSlope:
    """Return the negative slope with which unrelated inputs leave a network of leaky units with correlation ``eta``.

    Source: Zhang et al. (2022), arXiv:2203.08120, section on leaky ReLU. Use it for LeakyReLU and PReLU, and for a
    LeakyReLU in the place of ReLU.

    Args:
        network: Number of activations in a row, or how their maps are composed.
        eta: Correlation behind the network, in (0, 1). Smaller is straighter.

    Returns:
        The slope; 0 (ReLU) where even that makes inputs no more alike than eta.

    Raises:
        UsageError: If eta does not lie in (0, 1), or a depth is < 1.

    Example:
        >>> round(tailored_slope(100).negative_slope, 4)
        0.717
        >>> tailored_slope(3).negative_slope
        0.0
    """
    if not 0 < eta < 1:
        raise UsageError(f"eta, the correlation behind the network, must lie in (0, 1), got {eta}")
    correlation_of = network if callable(network) else stack(network)

    def correlation(slope: float) -> float:
        return correlation_of(lambda c: leaky_correlation(c, slope))

    low, high = 0.0, 1.0
    if correlation(0.0) > eta:
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (middle, high) if correlation(middle) > eta else (low, middle)
    return TailoredSlope(low, math.sqrt(2 / (1 + low * low)), correlation(low))


def tailored_shape(depth: float, *, tau: float = TAU) -> TailoredShape:
    r"""Return the alpha and beta with which a stack of MPELU starts nearly linear, with no change to the architecture.

    .. math:: \alpha = 1 / \beta, \quad E f''^2 / E f^2 = \tau / depth

    alpha * beta = 1 takes the kink away, and the smaller beta is, the straighter the unit. For a kink as in a leaky
    unit of slope a, take a small beta and alpha = a / beta with a from :func:`tailored_slope`; deep stacks of these
    learn more slowly.

    Args:
        depth: Number of activations in a row, or the :func:`effective_depth` of another network.
        tau: Curvature of the whole stack, > 0.

    Returns:
        The shape, the gain of the weights behind it, and learning rates for alpha and beta.

    Raises:
        UsageError: If depth < 1 or tau <= 0.

    Example:
        >>> shape = tailored_shape(100)
        >>> round(shape.alpha, 2), round(shape.beta, 3), round(shape.gain, 3)
        (3.69, 0.271, 1.094)
    """
    if not depth >= 1:
        raise UsageError(f"depth must be at least 1, got {depth}")
    if not tau > 0:
        raise UsageError(f"tau must be > 0 (0 would be a linear net), got {tau}")
    low, high = 0.0, 1.0
    while _curvature(high) < tau / depth:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _curvature(middle) < tau / depth else (low, middle)
    found = moments(_smooth(high))
    alpha_lr, beta_lr = shape_rates(1 / high, high)
    return TailoredShape(
        alpha=1 / high,
        beta=high,
        gain=1 / math.sqrt(found.second_moment),
        slope=found.slope_second_moment / found.second_moment,
        alpha_lr=alpha_lr,
        beta_lr=beta_lr,
    )


def shape_rates(alpha: float, beta: float) -> tuple[float, float]:
    r"""Return learning rates for alpha and beta relative to that of the weights.

    .. math:: \min(1, E f^2 / E (\partial f / \partial p)^2), \quad p = \alpha, \beta

    A step of SGD along the gradient of a parameter changes the output in proportion to the learning rate times the
    square of the derivative by it. For a weight, that derivative is the activation that it multiplies. With this rate,
    a step of alpha or beta changes the output no more than a step of one weight. For large alpha it matters for beta:
    df/dbeta = alpha x exp(beta x) is as large as alpha.

    Example:
        >>> alpha_lr, beta_lr = shape_rates(28.0, 0.02)
        >>> alpha_lr, round(beta_lr, 4)
        (1.0, 0.0018)
    """
    second_moment = moments(MPELU(1, alpha, beta, dtype=torch.float64)).second_moment
    by_alpha, _ = expectation(lambda x: torch.expm1(beta * x.clamp(max=0)).square())
    by_beta, _ = expectation(lambda x: (alpha * x.clamp(max=0) * torch.exp(beta * x.clamp(max=0))).square())
    return min(1.0, second_moment / by_alpha), min(1.0, second_moment / by_beta)


def _smooth(beta: float) -> MPELU:
    return MPELU(1, 1 / beta, beta, dtype=torch.float64)


def _curvature(beta: float) -> float:
    """Return E f''^2 / E f^2 for alpha = 1 / beta, where f'' = beta exp(beta x) below 0 and 0 above."""
    half_line = float(torch.special.erfcx(torch.tensor(math.sqrt(2) * beta, dtype=torch.float64))) / 2
    return beta * beta * half_line / moments(_smooth(beta)).second_moment
