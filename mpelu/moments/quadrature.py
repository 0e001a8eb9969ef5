"""Integrals under a Gaussian of functions whose kinks and jumps nobody told us.

The real line is cut into panels. On each, the integrand is interpolated at the Chebyshev points of degree 16
(Clenshaw and Curtis), both ends included: a kink anywhere inside lies between two points and spoils the decay of the
Chebyshev coefficients, the last of which bound the error. A panel whose bound is too large is cut into 16. So a kink or
jump is closed in to the last digit of its position within about 12 rounds, all of them in each round together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mpelu.errors import UsageError

DEGREE = 16
PARTS, FEW_PARTS, MANY_PANELS = 16, 4, 32
"""Into how many a panel is cut: 16 around a few kinks, which saves rounds; 4 where more than 32 panels are to be cut,
as for a fast oscillation, which saves points."""
REACH = 37.5
"""Standard deviations that are integrated over: beyond, the density is no normal float64."""
TOLERANCE = 1e-13
"""Of one panel, relative to the integral of the absolute value."""
MAX_POINTS = 2_000_000
"""Then the refinement ends, and the bound says what was reached."""
ROUGH = 1e-6
"""Relative bound above which a panel, after three rounds of cutting, is a kink; below, it is rounding or a bend."""
EPSILON = torch.finfo(torch.float64).eps

Integrand = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called with points x, standardized points z and the root of the density at z, each of shape (n,).

Returns K functions times the density, shape (K, n). The root is for squares: (f root)^2 cannot overflow where
f^2 density does not.
"""


@dataclass(frozen=True)
class Integral:
    """K integrals under one Gaussian.

    Attributes:
        value: The integrals, shape ``(K,)``.
        size: The integrals of the absolute values, shape ``(K,)``.
        error: Bounds of the absolute errors, shape ``(K,)``.
        edges: Where the panels of the first rounds meet, and the kinks, ascending.
        kinks: Where a panel was still rough when it had become narrow; both in standard deviations from the mean.
    """

    value: Tensor
    size: Tensor
    error: Tensor
    edges: Tensor
    kinks: Tensor


@dataclass(frozen=True)
class Rule:
    nodes: Tensor
    weights: Tensor
    tail: Tensor
    """Takes values at the nodes to the last four Chebyshev coefficients."""


@cache
def rule() -> Rule:
    """Return nodes and weights of Clenshaw-Curtis quadrature on [-1, 1], and the map to the last coefficients.

    With x_j = cos(pi j / N) the interpolant is sum a_k T_k, a_k = (2 - [k in {0, N}]) / N sum'' f(x_j) T_k(x_j), where
    '' halves the first and last term; the integral of T_k is 2 / (1 - k^2) for even k and 0 for odd k.
    """
    index = torch.arange(DEGREE + 1, dtype=torch.float64, device="cpu")
    nodes = torch.cos(math.pi * index / DEGREE)
    halved = torch.ones_like(index)
    halved[[0, -1]] = 0.5
    to_coefficients = 2.0 / DEGREE * torch.cos(math.pi / DEGREE * torch.outer(index, index)) * halved * halved[:, None]
    integrals = torch.where(index % 2 == 0, 2.0 / (1.0 - index**2), 0.0)
    return Rule(nodes.flip(0), (integrals @ to_coefficients).flip(0), to_coefficients[-4:].flip(1).T.contiguous())


def first_edges(mean: float, std: float) -> Tensor:
    """Return the edges of the first panels, in standard deviations from the mean.

    Half a standard deviation apart up to 9 and wider beyond; and, since activations have their shape around 0 whatever
    the variance is, at x = 0 and at 2^k and 1.5 * 2^k on both sides of it, from 1/4 on.
    """
    near = torch.arange(-18, 19, dtype=torch.float64, device="cpu") / 2
    far = torch.tensor([10, 11, 12, 14, 16, 18, 20, 23, 26, 29, 33, REACH], dtype=torch.float64, device="cpu")
    largest = max(1, math.ceil(math.log2(abs(mean) + REACH * std)))
    powers = 2.0 ** torch.arange(-2, largest + 1, dtype=torch.float64, device="cpu")
    places = torch.cat([powers, 1.5 * powers])
    around_zero = (torch.cat([places, -places, places.new_zeros(1)]) - mean) / std
    return _ascending(near, far, -far, around_zero[around_zero.abs() < REACH])


def _ascending(*places: Tensor) -> Tensor:
    return torch.from_numpy(np.unique(torch.cat(places).numpy()))


@dataclass(frozen=True)
class _Panels:
    """P panels and what the integrals over them are: the last four have shape ``(K, P)``."""

    left: Tensor
    right: Tensor
    value: Tensor
    size: Tensor
    error: Tensor
    rounding: Tensor


def _evaluate(integrand: Integrand, left: Tensor, right: Tensor, *, mean: float, std: float) -> _Panels:
    """Apply the rule to each panel; the points at its ends are moved inside, so that a kink there is not touched."""
    chebyshev = rule()
    half, middle = (right - left) / 2, (right + left) / 2
    z = torch.addcmul(middle[:, None], half[:, None], chebyshev.nodes)
    low, high = mean + std * left, mean + std * right
    margin = std * torch.minimum(1.5 * _rounding(left, right, mean / std) + 2.0**-100, half / 2)
    x = (mean + std * z).clamp((low + margin)[:, None], (high - margin)[:, None]).reshape(-1)
    z = z.reshape(-1)
    root = torch.exp(-0.25 * z * z) / (2.0 * math.pi) ** 0.25
    values = integrand(x, z, root)
    finite = values.isfinite().all(0)
    if not finite.all():
        raise UsageError(
            f"the moments under N({mean:g}, {std * std:g}) are not finite: the function, its derivative or a square of "
            f"them is infinite or undefined at x = {x[~finite][0].item():g}; take a smaller variance"
        )
    values = values.reshape(len(values), len(left), DEGREE + 1)
    size = (values.abs() @ chebyshev.weights) * half
    return _Panels(
        left,
        right,
        value=(values @ chebyshev.weights) * half,
        size=size,
        error=(values @ chebyshev.tail).abs().sum(-1) * half,
        rounding=size * EPSILON * (16 + 2 * middle.abs() * (middle.abs() + abs(mean) / std)),
    )


def _rounding(left: Tensor, right: Tensor, shift: float) -> Tensor:
    """Return the rounding of x = mean + std z at the ends of panels, in standard deviations."""
    return EPSILON * (torch.maximum(left.abs(), right.abs()) + abs(shift))


def _noisy(panels: _Panels, before: _Panels) -> Tensor:
    """Tell for which panels rounding is what is left, since cutting the panel they come from did not help."""
    parts = panels.error.shape[1] // before.error.shape[1]
    together = panels.error.reshape(*before.error.shape, parts).sum(2)
    noisy: Tensor = (together > 0.5 * before.error) & (before.error < 1e-6 * before.size)
    return noisy.repeat_interleave(parts, 1)


def _with_hidden_jumps(panels: _Panels, before: _Panels, narrow: Tensor) -> _Panels:
    """Widen the bound of panels whose points are neighbours in float64: a jump between them is not seen any more."""
    parts = panels.error.shape[1] // before.error.shape[1]
    hidden = 2.0 / parts * before.error.repeat_interleave(parts, 1)
    return replace(panels, error=torch.where(narrow, torch.maximum(panels.error, hidden), panels.error))


def _select(panels: _Panels, chosen: Tensor) -> _Panels:
    per_function = (part[:, chosen] for part in (panels.value, panels.size, panels.error, panels.rounding))
    return _Panels(panels.left[chosen], panels.right[chosen], *per_function)


def _cut(panels: _Panels) -> tuple[Tensor, Tensor]:
    parts = PARTS if len(panels.left) <= MANY_PANELS else FEW_PARTS
    steps = torch.arange(parts + 1, dtype=torch.float64, device="cpu") / parts
    edges = torch.lerp(panels.left[:, None], panels.right[:, None], steps)
    return edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)


def integrate(
    integrand: Integrand, *, mean: float, variance: float, kinks: Tensor | None = None, scale: float = 0.0
) -> Integral:
    """Integrate K functions under N(mean, variance).

    The bound of the error is, summed over the panels, half the width times the sum of the absolute values of the last
    four Chebyshev coefficients, and a part for rounding. It presumes that whatever is narrower than about a twentieth
    of a standard deviation, and of its distance from 0, can be noticed nearby: a spike between the points is not seen.

    Args:
        integrand: See :data:`Integrand`.
        mean: Of the Gaussian.
        variance: Of the Gaussian, > 0.
        kinks: Places that are known to be kinks, in standard deviations from the mean.
        scale: What errors are compared with, where it is larger than the integral of the absolute value.

    Raises:
        UsageError: If mean or variance is no such number, or a function is not finite somewhere.
    """
    check_gaussian(mean, variance)
    std = math.sqrt(variance)
    edges = first_edges(mean, std) if kinks is None else _ascending(first_edges(mean, std), kinks)
    rounds = _rounds(integrand, edges, mean=mean, std=std, scale=scale)
    narrow = [((part.left + part.right) / 2)[(part.error > ROUGH * part.size).any(0)] for part in rounds[3:]]
    found = torch.cat([edges.new_empty(0), *narrow]).sort().values
    return Integral(
        value=torch.cat([part.value for part in rounds], 1).sum(1),
        size=torch.cat([part.size for part in rounds], 1).sum(1),
        error=torch.cat([part.error + part.rounding for part in rounds], 1).sum(1),
        edges=torch.cat([*(part.left for part in rounds[:3]), found, edges[-1:]]).sort().values,
        kinks=found,
    )


def _rounds(integrand: Integrand, edges: Tensor, *, mean: float, std: float, scale: float) -> list[_Panels]:
    """Return the panels that were settled in each round of cutting."""
    left, right = edges[:-1], edges[1:]
    before: _Panels | None = None
    settled: list[_Panels] = []
    points = 0
    while True:
        panels = _evaluate(integrand, left, right, mean=mean, std=std)
        points += left.numel() * (DEGREE + 1)
        allowed = TOLERANCE * torch.stack([part.size.sum(1) for part in (*settled, panels)]).sum(0).clamp(min=scale)
        too_large = panels.error > allowed[:, None]
        narrow = right - left <= 4 * _rounding(left, right, mean / std) + 2.0**-98
        if before is not None:
            too_large &= ~_noisy(panels, before)
            panels = _with_hidden_jumps(panels, before, narrow)
        to_cut = too_large.any(0) & ~narrow & (points <= MAX_POINTS)
        settled.append(_select(panels, ~to_cut))
        if not to_cut.any():
            return settled
        before = _select(panels, to_cut)
        left, right = _cut(before)


def check_gaussian(mean: float, variance: float) -> None:
    """Raise UsageError unless both are finite and the variance is positive."""
    if not math.isfinite(mean):
        raise UsageError(f"mean must be a finite number, got {mean}")
    if not (math.isfinite(variance) and variance > 0):
        raise UsageError(f"variance must be a finite number > 0, got {variance}")
