"""Moments of an activation of a Gaussian variable."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.moments.closed import ClosedForm, closed_form
from mpelu.moments.elementwise import Activation, Elementwise, elementwise
from mpelu.moments.quadrature import Integrand, check_gaussian, integrate

ROUNDING = 1e-13
"""Relative error of the closed forms: what the tests hold them to."""
LARGEST_ERROR = 1e-3
"""A bound above it means that the integral does not converge."""


@dataclass(frozen=True)
class Moments:
    """Of y = f(x), x ~ N(mean, variance); with parameters per channel, the averages over the channels.

    The derivative is that between the jumps: of a function with jumps, ``slope_mean`` is not the mean of its true
    derivative, whose square has no mean. ``growth`` does count the jumps.

    Attributes:
        mean: E f.
        second_moment: E f^2.
        slope_mean: E f'.
        slope_second_moment: E f'^2.
        cross: E f f'.
        growth: The derivative of E f^2 by the variance, E[(x - mean) f f'] / variance.
        error: Bound of the relative error of the worst of them. Where positive and negative parts cancel, it is
            relative to the mean of the absolute value: E f of tanh at mean 0 is within ``error * E|f|`` of 0.
        method: ``"closed form"`` or ``"quadrature"``.
    """

    mean: float
    second_moment: float
    slope_mean: float
    slope_second_moment: float
    cross: float
    growth: float
    error: float
    method: str

    @property
    def variance(self) -> float:
        """E f^2 - (E f)^2."""
        return self.second_moment - self.mean**2


def moments(
    activation: Activation, *, mean: float = 0.0, variance: float = 1.0, channels: int | None = None
) -> Moments:
    r"""Return the moments of an activation of a Gaussian variable.

    .. math:: E f(x), \; E f(x)^2, \; E f'(x), \; E f'(x)^2, \; E f(x) f'(x), \quad x \sim N(m, v)

    In closed form for MPELU, SPELU, ELU, CELU, SELU, for what is piecewise linear (ReLU, LeakyReLU, PReLU, SReLU,
    Hardtanh, RReLU in eval mode, ...), for GELU and erf: to 1e-13. Else by quadrature, which finds kinks and jumps by
    itself: to about 1e-12, and where the function is not that smooth or not evaluated that exactly, ``error`` says so.

    Quadrature sees the function and the derivative that torch computes in float64, modules in eval mode. Where these
    have a relative error, so have the moments, and ``error`` cannot know: the derivatives of ``hardsigmoid`` and
    ``celu`` have float32 constants in them (3e-8). By themselves these two have closed forms, which are exact.

    Args:
        activation: An elementwise module or function of a tensor. It is called with float64 tensors of shape
            ``(n, channels)``; a module is copied first and stays as it is.
        mean: Of x.
        variance: Of x, > 0.
        channels: For parameters per channel: how many. None reads it off a module, and is 1 for a function.

    Raises:
        UsageError: If the variance is not positive, the activation not elementwise, or a moment not finite, as E f'^2
            of sqrt(abs(x)).

    Example:
        >>> relu = moments(torch.nn.ReLU())
        >>> relu.second_moment, relu.slope_second_moment, relu.method
        (0.5, 0.5, 'closed form')
        >>> found = moments(lambda x: x.clamp(-1.0, 2.0), variance=2.0)
        >>> round(found.slope_mean, 10), found.error < 1e-11, found.method  # P(-1 < x < 2)
        (0.6816003354, True, 'quadrature')
    """
    check_gaussian(mean, variance)
    f = elementwise(activation, channels)
    closed = closed_form(f)
    if closed is not None:
        values = _evaluate(closed, mean, variance)
        if values.isfinite().all():
            return _moments(values, ROUNDING, "closed form")
    found = integrate(moments_integrand(f), mean=mean, variance=variance)
    values = found.value.clone()
    values[5] /= variance
    error = torch.where(found.size > 0, found.error / found.size, 0.0).max().item()
    if error > LARGEST_ERROR:
        raise UsageError(
            f"the moments under N({mean:g}, {variance:g}) were reached only to a relative error of {error:.1g}: one of "
            "them is infinite, or the function is random; expectation() integrates a function without its derivative"
        )
    return _moments(values, error, "quadrature")


def _moments(values: Tensor, error: float, method: str) -> Moments:
    mean, second_moment, slope_mean, slope_second_moment, cross, growth = values.tolist()
    return Moments(mean, second_moment, slope_mean, slope_second_moment, cross, growth, error, method)


def _evaluate(closed: ClosedForm, mean: float, variance: float) -> Tensor:
    return closed(torch.tensor([[mean]], dtype=torch.float64, device="cpu"), variance).mean(-1)[:, 0]


def moments_integrand(f: Elementwise) -> Integrand:
    """Return the integrands of f, f^2, f', f'^2, f f' and f^2 (z^2 - 1) / 2, the last one for the growth.

    Its derivative by the variance is that of the density, so that it holds for jumps too.
    """

    def weighted(x: Tensor, z: Tensor, root: Tensor) -> Tensor:
        values, slopes = f.values_and_slopes(x)
        root = root[:, None]
        value, slope = values * root, slopes * root
        square = value * value
        rows = [value * root, square, slope * root, slope * slope, value * slope, square * ((z * z - 1) / 2)[:, None]]
        return torch.stack([row.mean(1) for row in rows])

    return weighted


def expectation(
    function: Callable[[Tensor], Tensor], *, mean: float = 0.0, variance: float = 1.0
) -> tuple[float, float]:
    """Return E g(x), x ~ N(mean, variance), and a bound of its absolute error.

    Args:
        function: Called with float64 tensors of shape ``(n, 1)``. It need not be smooth: kinks and jumps are found.
        mean: Of x.
        variance: Of x, > 0.

    Raises:
        UsageError: If the variance is not positive, the function not elementwise, or its mean not finite.

    Example:
        >>> value, error = expectation(torch.cos)
        >>> round(value, 12), error < 1e-12  # exp(-1 / 2)
        (0.606530659713, True)
    """
    f = elementwise(function)
    found = integrate(lambda x, _, root: (f.values(x)[:, 0] * root * root)[None], mean=mean, variance=variance)
    return found.value.item(), found.error.item()
