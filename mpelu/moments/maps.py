"""What a layer of infinite width does to second moments and correlations, and where that settles.

Symbols: q is the second moment of a pre-activation z ~ N(0, q), c the correlation of two of them, sigma_w^2 = fan_in
Var(w) the ``weight_variance``, sigma_b^2 = Var(b) the ``bias_variance``. Sources: Poole et al., arXiv:1606.05340, and
Schoenholz et al., arXiv:1611.01232 (maps, depth scales, edge of chaos). Nothing here knows of a finite width: there,
the logarithm of q takes a random walk on top.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from mpelu.errors import MpeluError, UsageError
from mpelu.moments.covariance import covariance, slope_covariance
from mpelu.moments.elementwise import Activation
from mpelu.moments.gaussian import moments

SMALLEST, LARGEST = 1e-12, 1e12
"""Second moments that are looked at; a fixed point outside counts as 0 or as infinity."""
MARGIN = 1e-12
"""By how much a slope may exceed 1 and still count as 1; it is for rounding."""


def variance_map(
    activation: Activation, second_moment: float, *, weight_variance: float, bias_variance: float = 0.0
) -> float:
    r"""Return the second moment of the next layer's pre-activation.

    .. math:: V(q) = \sigma_w^2 \, E f(\sqrt q z)^2 + \sigma_b^2

    Example:
        >>> from torch import nn
        >>> round(variance_map(nn.ReLU(), 3.0, weight_variance=2.0, bias_variance=0.5), 12)
        3.5
    """
    _check_variances(weight_variance, bias_variance)
    return weight_variance * moments(activation, variance=second_moment).second_moment + bias_variance


def slope(activation: Activation, *, second_moment: float, weight_variance: float) -> float:
    r"""Return the mean squared derivative of a layer: the factor of the squared gradient, layer by layer.

    .. math:: \chi = \sigma_w^2 \, E f'(\sqrt q z)^2

    At a fixed point of the variance map it is also the derivative of the correlation map at 1.

    Example:
        >>> from torch import nn
        >>> round(slope(nn.ELU(), second_moment=1.0, weight_variance=1.5505), 4)
        1.0359
    """
    _check_variances(weight_variance)
    return weight_variance * moments(activation, variance=second_moment).slope_second_moment


def variance_slope(activation: Activation, *, second_moment: float, weight_variance: float) -> float:
    r"""Return the derivative of the variance map: by how much a deviation of q grows in one layer.

    .. math:: V'(q) = \sigma_w^2 \, E[z \, f(z) \, f'(z)] / q, \quad z \sim N(0, q)

    Example:
        >>> from torch import nn
        >>> round(variance_slope(nn.GELU(), second_moment=1.0, weight_variance=2.3517), 3)
        1.144
    """
    _check_variances(weight_variance)
    return weight_variance * moments(activation, variance=second_moment).growth


def correlation_map(
    activation: Activation,
    correlation: float,
    *,
    second_moment: float,
    weight_variance: float,
    bias_variance: float = 0.0,
) -> float:
    r"""Return the correlation of the next layer's pre-activations for two inputs of equal second moment.

    .. math:: C(c) = \frac{\sigma_w^2 E[f(u) f(v)] + \sigma_b^2}{V(q)}

    where u and v are Gaussian of variance q and correlation c.

    Example:
        >>> from torch import nn
        >>> round(correlation_map(nn.ReLU(), 0.0, second_moment=1.0, weight_variance=2.0), 6)
        0.31831
    """
    _check_variances(weight_variance, bias_variance)
    joint = covariance(activation, variance=second_moment, correlation=correlation)
    single = moments(activation, variance=second_moment).second_moment
    total = weight_variance * single + bias_variance
    if total == 0:
        raise UsageError("the next layer's pre-activation is 0: it has no correlation")
    return (weight_variance * joint + bias_variance) / total


@dataclass(frozen=True)
class FixedPoint:
    """Where the second moment settles.

    Attributes:
        second_moment: q with V(q) = q; 0 or infinity where it vanishes or diverges.
        variance_slope: V'(q): deviations of q shrink by it in each layer; at 0 and infinity its limit.
        slope: chi, the factor of the squared gradient in each layer.
        stable: V'(q) <= 1. It is False for infinity.
    """

    second_moment: float
    variance_slope: float
    slope: float
    stable: bool


def fixed_point(
    activation: Activation, *, weight_variance: float, bias_variance: float = 0.0, start: float = 1.0
) -> FixedPoint:
    """Find the fixed point of the variance map that iterating it from ``start`` leads to.

    The direction is that of the first step; the first crossing that shows on a grid of factors of 2 is taken. That is
    where the iteration ends if the map is increasing on the way.

    Raises:
        UsageError: If a variance is negative, or a moment cannot be computed.

    Example:
        >>> from torch import nn
        >>> point = fixed_point(nn.Tanh(), weight_variance=2.1533, bias_variance=0.1510)
        >>> round(point.second_moment, 3), point.stable
        (1.0, True)
    """
    _check_variances(weight_variance, bias_variance)

    def excess(q: float) -> float:
        return weight_variance * moments(activation, variance=q).second_moment + bias_variance - q

    first = excess(start)
    if abs(first) <= 1e-12 * start:
        return _settled(activation, start, start, weight_variance)
    factor, inner = (2.0 if first > 0 else 0.5), start
    outer = inner * factor
    while excess(outer) * first > 0:
        inner, outer = outer, outer * factor
        if outer > LARGEST:
            return _settled(activation, math.inf, LARGEST, weight_variance)
        if outer < SMALLEST:
            return _settled(activation, 0.0, SMALLEST, weight_variance)
    q = _root(excess, inner, outer)
    return _settled(activation, q, q, weight_variance)


def _settled(activation: Activation, second_moment: float, near: float, weight_variance: float) -> FixedPoint:
    found = moments(activation, variance=near)
    growth, chi = weight_variance * found.growth, weight_variance * found.slope_second_moment
    return FixedPoint(second_moment, growth, chi, growth <= 1 + MARGIN and second_moment < math.inf)


@dataclass(frozen=True)
class DepthScale:
    """In how many layers deviations shrink by a factor of e; infinity where they do not.

    Attributes:
        second_moment: Of q from its fixed point, -1 / log V'(q).
        correlation: Of c from its fixed point, -1 / log C'(c).
        fixed_correlation: That fixed point: 1 where chi <= 1 (inputs become alike), else the one below 1.
    """

    second_moment: float
    correlation: float
    fixed_correlation: float


def depth_scale(activation: Activation, *, weight_variance: float, bias_variance: float = 0.0) -> DepthScale:
    r"""Return the depth scales at the fixed point of the variance map.

    .. math:: \xi_q = -1 / \log V'(q^*), \quad \xi_c = -1 / \log(\sigma_w^2 E[f'(u) f'(v)])

    Source: Schoenholz et al., arXiv:1611.01232.

    Raises:
        UsageError: If the second moment diverges.

    Example:
        >>> from torch import nn
        >>> scale = depth_scale(nn.Tanh(), weight_variance=1.5, bias_variance=0.05)
        >>> round(scale.second_moment, 2), round(scale.correlation, 1), scale.fixed_correlation
        (1.68, 15.8, 1.0)
    """
    point = fixed_point(activation, weight_variance=weight_variance, bias_variance=bias_variance)
    if point.second_moment == math.inf:
        raise UsageError(f"no depth scale: with weight_variance {weight_variance:g} the second moment diverges")
    of_second_moment = _layers(point.variance_slope)
    if point.slope <= 1 + MARGIN:
        return DepthScale(of_second_moment, _layers(point.slope), 1.0)
    q = max(point.second_moment, SMALLEST)
    total = variance_map(activation, q, weight_variance=weight_variance, bias_variance=bias_variance)

    def excess(c: float) -> float:
        joint = covariance(activation, variance=q, correlation=c)
        return (weight_variance * joint + bias_variance) / total - c

    # on [0, 1] the map is convex, with C(0) >= 0, C(1) = 1 and slope chi > 1 at 1
    near_one = 1.0 - 1e-9
    if excess(near_one) > 0:
        fixed = 1.0
    elif excess(0.0) > 0:
        fixed = _root(excess, 0.0, near_one)
    else:
        fixed = 0.0
    chi = weight_variance * slope_covariance(activation, variance=q, correlation=fixed)
    return DepthScale(of_second_moment, _layers(chi), fixed)


def _layers(factor: float) -> float:
    if abs(factor) >= 1 - MARGIN:
        return math.inf
    return -1 / math.log(abs(factor)) if factor else 0.0


@dataclass(frozen=True)
class CriticalPoint:
    """Edge of chaos: q is a fixed point, and chi = 1 there.

    Attributes:
        second_moment: q.
        weight_variance: sigma_w^2 = 1 / E f'^2.
        bias_variance: sigma_b^2 = q - sigma_w^2 E f^2.
        variance_slope: V'(q).
        stable: V'(q) <= 1, so that q comes back after a deviation; for V'(q) = 1, not exponentially.
    """

    second_moment: float
    weight_variance: float
    bias_variance: float
    variance_slope: float
    stable: bool


def critical_point(activation: Activation, *, second_moment: float | None = None) -> CriticalPoint:
    r"""Return the variances of weights and biases that keep the second moment *and* the gradient.

    .. math:: \sigma_w^2 = 1 / E f'^2, \quad \sigma_b^2 = q - \sigma_w^2 E f^2

    For a scale-invariant activation (ReLU, LeakyReLU) any q will do and sigma_b = 0. For some activations, GELU and
    SiLU among them, q = 1 is unstable; at the smallest stable q, V'(q) is 1, so that q returns slowly there, and from
    one side only. A larger q is safer.

    Args:
        activation: Module or function.
        second_moment: q; None takes 1 where that is stable, else the smallest stable q above 1, else the largest below.

    Raises:
        UsageError: If f' is 0, or q is given and would need a negative bias variance.
        MpeluError: If q is None and no stable one exists between 1e-12 and 1e12.

    Example:
        >>> from torch import nn
        >>> point = critical_point(nn.ELU())
        >>> round(point.weight_variance, 4), round(point.bias_variance, 4), round(point.variance_slope, 3)
        (1.4968, 0.0347, 0.86)
        >>> round(critical_point(nn.GELU()).second_moment, 2)
        3.56
    """
    if second_moment is not None:
        point = _critical(activation, second_moment)
        if point.bias_variance < 0:
            raise UsageError(
                f"no critical point at second_moment {second_moment:g}: it would need the bias variance "
                f"{point.bias_variance:g}, since the mean of the activation is too large; take another second_moment"
            )
        return point

    def usable(q: float) -> bool:
        try:
            point = _critical(activation, q)
        except UsageError:  # far out, the moments of fast functions are infinite
            return False
        return point.stable and point.bias_variance >= 0

    point = _critical(activation, 1.0)
    if point.stable and point.bias_variance >= 0:
        return point
    for factor in (2.0**0.25, 2.0**-0.25):
        last, q = 1.0, factor
        while SMALLEST < q < LARGEST:
            if usable(q):
                return _critical(activation, _bisect(usable, q, last))
            last, q = q, q * factor
    raise MpeluError(f"no stable critical point between second moments {SMALLEST:g} and {LARGEST:g}")


def _critical(activation: Activation, second_moment: float) -> CriticalPoint:
    found = moments(activation, variance=second_moment)
    if found.slope_second_moment == 0:
        raise UsageError("no critical point: the derivative of the activation is 0 almost everywhere")
    weight_variance = 1 / found.slope_second_moment
    bias_variance = second_moment - weight_variance * found.second_moment
    if abs(bias_variance) <= 1e-12 * second_moment:
        bias_variance = 0.0  # scale-invariant: what is left is rounding
    growth = weight_variance * found.growth
    return CriticalPoint(second_moment, weight_variance, bias_variance, growth, growth <= 1 + MARGIN)


def _bisect(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the last place where ``holds`` is true on the way from ``inside`` to ``outside``, to 1e-12 relative."""
    while abs(inside - outside) > 1e-12 * max(inside, outside):
        middle = (inside + outside) / 2
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside


def _root(function: Callable[[float], float], a: float, b: float) -> float:
    """Return where a function changes its sign between a and b, to 1e-13 of the larger: regula falsi (Illinois)."""
    at_a, at_b = function(a), function(b)
    tolerance = 1e-13 * max(a, b)
    for _ in range(100):
        middle = (a * at_b - b * at_a) / (at_b - at_a)
        at_middle = function(middle)
        if at_middle == 0 or abs(middle - b) <= tolerance:
            return middle
        if at_middle * at_b < 0:
            a, at_a = b, at_b
        else:
            at_a /= 2
        b, at_b = middle, at_middle
    return b


def _check_variances(weight_variance: float, bias_variance: float = 0.0) -> None:
    for name, value in (("weight_variance", weight_variance), ("bias_variance", bias_variance)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} must be a finite number >= 0, got {value}")
