r"""Closed forms of the moments, for the activations that have them.

Each is written so that nothing cancels at small or large variances; the derivations are in ``docs/moments.md``. None
is known for tanh, sigmoid, SiLU, Mish, softplus, softsign and the tanh form of GELU.

Throughout, s is the standard deviation, phi and Phi are density and distribution of z ~ N(0, 1), and
J_n(t) = E (z - t)_+^n / n!.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.moments.elementwise import Elementwise
from mpelu.moments.tails import ROOT_2, ROOT_2_PI, density_at, interval_moments, legendre, tail_moments
from mpelu.nn import MPELU, SPELU, SReLU

ClosedForm = Callable[[Tensor, float], Tensor]
"""Called with means of shape (n, 1) and a variance; returns shape (6, n, C), rows as in :class:`Moments`: E f, E f^2,
E f', E f'^2, E f f' and dE f^2 / d variance."""

SERIES = 30
"""Terms of the sums for small beta s; the last one is below 1e-17 of the first."""


def closed_form(f: Elementwise) -> ClosedForm | None:
    """Return the closed form of an activation, None where none is known. Subclasses are not taken for their parents."""
    if isinstance(f.function, nn.Module):
        build = MODULES.get(type(f.function))
        return None if build is None else build(f.function)
    return FUNCTIONS[f.function]() if isinstance(f.function, Hashable) and f.function in FUNCTIONS else None


def _line(lower: Tensor, upper: Tensor, slope: Tensor, intercept: Tensor, mean: Tensor, variance: float) -> Tensor:
    """Return the six moments of f(x) = slope x + intercept on [lower, upper] and 0 elsewhere, without its jumps."""
    std = math.sqrt(variance)
    mirrored = upper <= mean  # the interval lies left of the mean: look at it in the mirror
    near_end = torch.where(mirrored, mean - upper, lower - mean)
    far_end = torch.where(mirrored, mean - lower, upper - mean)
    densities = (density_at(near_end, variance), density_at(far_end, variance))
    m0, m1, m2 = interval_moments(near_end / std, far_end / std, *densities)
    sign = torch.where(mirrored, -1.0, 1.0)
    anchor = torch.minimum(torch.maximum(mean, lower), upper)
    y, rise, t = slope * anchor + intercept, slope * std * sign, near_end.clamp(min=0.0) / std
    return torch.stack(
        [
            y * m0 + rise * m1,
            y * y * m0 + 2 * y * rise * m1 + rise * rise * m2,
            slope * m0,
            slope * slope * m0,
            slope * (y * m0 + rise * m1),
            slope / std * sign * (y * (m1 + t * m0) + rise * (m2 + t * m1)),
        ]
    )


@dataclass(frozen=True)
class PiecewiseLinear:
    """f(x) = slopes[i] x + intercepts[i] between knots[i - 1] and knots[i]; it may jump at the knots.

    Attributes:
        knots: Ascending, shape ``(K, C)``.
        slopes: Shape ``(K + 1, C)``.
        intercepts: Shape ``(K + 1, C)``.
    """

    knots: Tensor
    slopes: Tensor
    intercepts: Tensor

    def is_rectifier(self) -> bool:
        """Tell whether it is two straight lines that meet in (0, 0)."""
        return len(self.knots) == 1 and not self.knots.any() and not self.intercepts.any()

    def __call__(self, mean: Tensor, variance: float) -> Tensor:
        if self.is_rectifier() and not mean.any():
            return self._of_halves(variance).expand(6, len(mean), -1)
        infinity = torch.full_like(self.slopes[:1], math.inf)
        edges = torch.cat([-infinity, self.knots, infinity])
        lines = [
            _line(edges[i], edges[i + 1], self.slopes[i], self.intercepts[i], mean, variance)
            for i in range(len(self.slopes))
        ]
        total: Tensor = torch.stack(lines).sum(0)
        for i, knot in enumerate(self.knots):  # a jump of f^2 adds to its growth
            before, after = (self.slopes[j] * knot + self.intercepts[j] for j in (i, i + 1))
            distance = knot - mean
            leap = (after - before) * (after + before)
            total[5] += leap * distance * density_at(distance, variance) / (2 * math.sqrt(variance) * variance)
        return total

    def _of_halves(self, variance: float) -> Tensor:
        """Return the moments of a rectifier at mean 0, which a plan needs for every layer; shape (6, 1, C)."""
        left, right = self.slopes
        half_size, square = math.sqrt(variance) / ROOT_2_PI, (left * left + right * right) / 2
        mean, cross = half_size * (right - left), half_size * (right - left) * (right + left)
        return torch.stack([mean, variance * square, (left + right) / 2, square, cross, square])[:, None]


@dataclass(frozen=True)
class ExponentialUnit:
    """f(x) = positive x where x > 0, else alpha (exp(beta x) - 1); MPELU has positive = 1. Shapes ``(C,)``.

    With T_k = E[exp(k beta x); x < 0] the negative side is made of T_0 - T_1, T_0 - 2 T_1 + T_2 and T_1 - T_2. For
    small beta s they cancel, and there are sums of (-k beta s)^n J_n(mean / s) instead.
    """

    positive: Tensor
    alpha: Tensor
    beta: Tensor

    def __call__(self, mean: Tensor, variance: float) -> Tensor:
        zero, infinity = torch.zeros_like(self.alpha), torch.full_like(self.alpha, math.inf)
        right = _line(zero, infinity, self.positive, zero, mean, variance)
        t0, t1, t2 = (self._exponential(k, mean, variance) for k in (0, 1, 2))
        first, second, mixed = self._differences(t0, t1, t2, mean, variance)
        alpha, rate = self.alpha, self.alpha * self.beta
        left = [
            -alpha * first,
            alpha**2 * second,
            rate * t1,
            rate**2 * t2,
            -alpha * rate * mixed,
            rate**2 * (2 * t2 - t1),
        ]
        return right + torch.stack(left)

    def _exponential(self, k: int, mean: Tensor, variance: float) -> Tensor:
        """Return T_k = exp(-mean^2 / 2 s^2) erfcx(u / sqrt 2) / 2 with u = mean / s + k beta s, for u < 0 with erfc."""
        std, power = math.sqrt(variance), k * self.beta
        u = (mean / std + power * std) / ROOT_2
        scaled = 0.5 * ROOT_2_PI * density_at(mean, variance) * torch.special.erfcx(u.clamp(min=0.0))
        plain = 0.5 * torch.exp(power * (mean + power * variance / 2)) * torch.special.erfc(u.clamp(max=0.0))
        return torch.where(u > 0, scaled, plain)

    def _differences(
        self, t0: Tensor, t1: Tensor, t2: Tensor, mean: Tensor, variance: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return T_0 - T_1, T_0 - 2 T_1 + T_2 and T_1 - T_2."""
        std = math.sqrt(variance)
        b, t = self.beta * std, mean / std
        small = b.abs() * (-t).clamp(min=1.0) < 0.5
        direct = (t0 - t1, t0 - 2 * t1 + t2, t1 - t2)
        if not small.any():
            return direct
        tails = tail_moments(
            torch.where(small, t, 0.0), torch.where(small, density_at(mean, variance), 1 / ROOT_2_PI), SERIES
        )
        powers = [(-b) ** n * tail for n, tail in enumerate(tails)]
        first = -torch.stack(powers[:0:-1]).sum(0)
        second = torch.stack([(2.0**n - 2.0) * powers[n] for n in range(SERIES - 1, 1, -1)]).sum(0)
        mixed = torch.stack([(1.0 - 2.0**n) * powers[n] for n in range(SERIES - 1, 0, -1)]).sum(0)
        one, two, three = (torch.where(small, *pair) for pair in zip((first, second, mixed), direct, strict=True))
        return one, two, three


def _normal(x: Tensor) -> Tensor:
    """Return phi(x)."""
    return torch.exp(-x * x / 2) / ROOT_2_PI


def _below(x: Tensor) -> Tensor:
    """Return Phi(x)."""
    probability: Tensor = 0.5 * torch.special.erfc(-x / ROOT_2)
    return probability


def _both_below_beyond_chance(h: Tensor, correlation: float) -> Tensor:
    r"""Return P(u < h, v < h) - Phi(h)^2 for standard normal u, v.

    .. math:: \frac{1}{2\pi} \int_0^{\arcsin c} e^{-h^2 / (1 + \sin\theta)} \, d\theta

    Source: Plackett (1954), Biometrika 41. Every part of it is positive: nothing cancels.
    """
    nodes, weights = legendre(48)
    angle = math.asin(correlation)
    parts = torch.exp(-h.square()[..., None] / (1 + torch.sin(angle * nodes))) * weights
    return angle / (2 * math.pi) * parts.sum(-1)


def gelu(mean: Tensor, variance: float) -> Tensor:
    r"""Return the moments of f(x) = x Phi(x).

    f^2, f'^2 and f f' are polynomials times Phi^2, Phi phi and phi^2. phi(x)^k N(x; mean, variance) is a multiple of
    another Gaussian, and powers of x go by Stein's identity E[x g] = mean E[g] + variance E[g'].
    """
    d = 1 + variance
    h = mean / math.sqrt(d)
    weight = _normal(h) / math.sqrt(d)  # of phi(x) N(x; mean, variance) = weight N(x; m, v)
    m, v = mean / d, variance / d
    k = m / math.sqrt(1 + v)
    inner = _normal(k) / math.sqrt(1 + v)  # of phi(x) N(x; m, v) = inner N(x; mm, vv)
    mm, vv = m / (1 + v), v / (1 + v)
    # under N(m, v): E x^n Phi(x)
    p0 = _below(k)
    p1 = m * p0 + v * inner
    p2 = m * p1 + v * (p0 + inner * mm)
    p3 = m * p2 + v * (2 * p1 + inner * (mm * mm + vv))
    # under N(mean, variance): E x^n Phi(x)^2
    q0 = _below(h).square() + _both_below_beyond_chance(h, variance / d)
    q1 = mean * q0 + 2 * variance * weight * p0
    q2 = mean * q1 + variance * (q0 + 2 * weight * p1)
    return torch.stack(
        [
            mean * _below(h) + variance * weight,
            q2,
            _below(h) + weight * m,
            q0 + weight * (2 * p1 + inner * (mm * mm + vv)),
            q1 + weight * p2,
            # half the second derivative of f^2: E f'^2 + E f f'' with f'' = (2 - x^2) phi
            q0 + weight * (2 * p1 + inner * (mm * mm + vv)) + weight * (2 * p1 - p3),
        ]
    )


def error_function(mean: Tensor, variance: float) -> Tensor:
    r"""Return the moments of f = erf, which is 2 Phi(sqrt 2 x) - 1.

    .. math:: E f^2 = \mathrm{erf}(h / \sqrt 2)^2
        + \frac{2}{\pi} \int_0^{\arcsin c} e^{-h^2 / (1 + \sin\theta)} \, d\theta,
        \quad h = \frac{\sqrt 2 \, m}{\sqrt{1 + 2 s^2}}, \quad c = \frac{2 s^2}{1 + 2 s^2}
    """
    d, d2 = 1 + 2 * variance, 1 + 4 * variance
    h, correlation = mean * math.sqrt(2 / d), 2 * variance / d
    middle = torch.special.erf(h / ROOT_2)
    tilt = torch.special.erf(mean / math.sqrt(d * d2))  # erf(h sqrt((1 - c) / (1 + c)) / sqrt 2)
    slope = 2 / math.sqrt(math.pi * d) * torch.exp(-mean.square() / d)
    slope_square = 4 / (math.pi * math.sqrt(d2)) * torch.exp(-2 * mean.square() / d2)
    return torch.stack(
        [
            middle,
            middle.square() + 4 * _both_below_beyond_chance(h, correlation),
            slope,
            slope_square,
            slope * tilt,
            slope_square / d - 2 * mean / d * slope * tilt,
        ]
    )


def _tensor(*values: Any) -> Tensor:
    """Return numbers or parameters as float64, shape ``(len(values), C)``; C is 1 if all channels agree."""
    rows = [torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().reshape(-1) for value in values]
    channels = max(len(row) for row in rows)
    table = torch.stack([row.expand(channels) for row in rows])
    return table[:, :1] if (table == table[:, :1]).all() else table


def _piecewise(knots: list[Any], slopes: list[Any], intercepts: list[Any]) -> PiecewiseLinear | None:
    rows = _tensor(*knots, *slopes, *intercepts)
    first, second = len(knots), len(knots) + len(slopes)
    if (rows[:first].diff(dim=0) < 0).any():
        return None
    return PiecewiseLinear(rows[:first], rows[first:second], rows[second:])


def _rectifier(slope: Any = 0.0) -> PiecewiseLinear | None:
    return _piecewise([0.0], [slope, 1.0], [0.0, 0.0])


def _exponential(positive: Any, alpha: Any, beta: Any) -> ExponentialUnit:
    return ExponentialUnit(*_tensor(positive, alpha, beta))


SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
"""As torch has them; source: Klambauer et al., arXiv:1706.02515."""


def _selu(unit: nn.SELU | None = None) -> ExponentialUnit:  # noqa: ARG001
    return _exponential(SELU_SCALE, SELU_SCALE * SELU_ALPHA, 1.0)


def _clipped(low: float = -1.0, high: float = 1.0) -> PiecewiseLinear | None:
    return _piecewise([low, high], [0.0, 1.0, 0.0], [low, 0.0, high])


def _hard_sigmoid() -> PiecewiseLinear | None:
    return _piecewise([-3.0, 3.0], [0.0, 1 / 6, 0.0], [0.0, 0.5, 1.0])


def _soft_shrink(threshold: float = 0.5) -> PiecewiseLinear | None:
    return _piecewise([-threshold, threshold], [1.0, 0.0, 1.0], [threshold, 0.0, -threshold])


def _hard_shrink(threshold: float = 0.5) -> PiecewiseLinear | None:
    return _piecewise([-threshold, threshold], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0])


def _s_shaped(unit: SReLU) -> PiecewiseLinear | None:
    """Between the thresholds both sides act where training moved them past each other."""
    t_left, a_left, t_right, a_right = _tensor(unit.t_left, unit.a_left, unit.t_right, unit.a_right)
    crossed = t_left > t_right
    left, right = t_left * (1 - a_left), t_right * (1 - a_right)
    return _piecewise(
        [torch.minimum(t_left, t_right), torch.maximum(t_left, t_right)],
        [a_left, torch.where(crossed, a_left + a_right - 1, 1.0), a_right],
        [left, torch.where(crossed, left + right, 0.0), right],
    )


MODULES: dict[type[nn.Module], Callable[[Any], ClosedForm | None]] = {
    nn.Identity: lambda _: _rectifier(1.0),
    nn.ReLU: lambda _: _rectifier(),
    nn.LeakyReLU: lambda unit: _rectifier(unit.negative_slope),
    nn.PReLU: lambda unit: _rectifier(unit.weight),
    nn.RReLU: lambda unit: _rectifier((unit.lower + unit.upper) / 2),  # in eval mode
    nn.ReLU6: lambda _: _clipped(0.0, 6.0),
    nn.Hardtanh: lambda unit: _clipped(unit.min_val, unit.max_val),
    nn.Hardsigmoid: lambda _: _hard_sigmoid(),
    nn.Softshrink: lambda unit: _soft_shrink(unit.lambd),
    nn.Hardshrink: lambda unit: _hard_shrink(unit.lambd),
    nn.Threshold: lambda unit: _piecewise([unit.threshold], [0.0, 1.0], [unit.value, 0.0]),
    SReLU: _s_shaped,
    MPELU: lambda unit: _exponential(1.0, unit.alpha, unit.beta),
    SPELU: lambda unit: _exponential(1.0, unit.alpha, 1.0),
    nn.ELU: lambda unit: _exponential(1.0, unit.alpha, 1.0),
    nn.CELU: lambda unit: _exponential(1.0, unit.alpha, 1.0 / unit.alpha),
    nn.SELU: _selu,
    nn.GELU: lambda unit: gelu if unit.approximate == "none" else None,
}
FUNCTIONS: dict[Callable[..., Tensor], Callable[[], ClosedForm | None]] = {
    torch.relu: _rectifier,
    F.relu: _rectifier,
    F.leaky_relu: lambda: _rectifier(0.01),
    F.relu6: lambda: _clipped(0.0, 6.0),
    F.hardtanh: _clipped,
    F.hardsigmoid: _hard_sigmoid,
    F.softshrink: _soft_shrink,
    F.hardshrink: _hard_shrink,
    F.elu: lambda: _exponential(1.0, 1.0, 1.0),
    F.celu: lambda: _exponential(1.0, 1.0, 1.0),
    F.selu: _selu,
    torch.selu: _selu,
    F.gelu: lambda: gelu,
    torch.erf: lambda: error_function,
    torch.special.erf: lambda: error_function,
}
"""As they are when called with x alone."""
