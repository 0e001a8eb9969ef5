"""Covariance of an activation of two correlated Gaussian variables."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.moments.closed import PiecewiseLinear, closed_form, error_function
from mpelu.moments.elementwise import Activation, Elementwise, elementwise
from mpelu.moments.gaussian import moments_integrand
from mpelu.moments.quadrature import check_gaussian, integrate
from mpelu.moments.tails import legendre

REACH = 9.0
"""Standard deviations of the second variable, given the first: the rest is 1e-19 of the whole."""
NODES = 10
"""Gauss-Legendre nodes on a panel on which the activation is a polynomial of degree 16 to 1e-13."""
POINTS = 400_000
"""How many evaluations are held in memory at once."""


def covariance(
    activation: Activation,
    *,
    variance: float,
    correlation: float,
    mean: float = 0.0,
    channels: int | None = None,
) -> float:
    r"""Return E[f(u) f(v)] for Gaussian u, v of the same mean and variance and the given correlation.

    For rectified units (any slope on either side) at mean 0 it is, with q the variance and theta = arccos(c),

    .. math:: E[\mathrm{relu}(u)\,\mathrm{relu}(v)] = \frac{q}{2\pi} (\sin\theta + (\pi - \theta) \cos\theta)

    (arc-cosine kernel of degree 1; source: Cho & Saul, 2009), and for erf at mean 0 an arcsine (Williams, 1997).
    Activations with closed moments need one integral over u, of f(u) times the closed E[f(v) | u]; the others need two,
    cut at the kinks of f in both directions. All are within 1e-12 of sqrt(E f(u)^2 E f(v)^2), 1e-10 with jumps.

    Args:
        activation: As for :func:`moments`.
        variance: Of u and of v, > 0.
        correlation: Of u and v, in [-1, 1].
        mean: Of u and of v.
        channels: As for :func:`moments`; the result is the average over the channels.

    Raises:
        UsageError: As :func:`moments`, or if the correlation is outside [-1, 1].

    Example:
        >>> round(covariance(torch.nn.ReLU(), variance=1.0, correlation=0.5), 6)
        0.304499
    """
    _check(mean, variance, correlation)
    f = elementwise(activation, channels)
    closed = closed_form(f)
    if closed is error_function and mean == 0:
        return 2 / math.pi * math.asin(2 * variance * correlation / (1 + 2 * variance))
    if isinstance(closed, PiecewiseLinear) and mean == 0 and closed.is_rectifier():
        return _rectifier_covariance(*closed.slopes, variance=variance, correlation=correlation)
    spread = _spread(correlation)
    if closed is None or spread == 0:
        return _twice_integrated(f, mean=mean, variance=variance, correlation=correlation)

    def given(z: Tensor) -> Tensor:
        return closed((mean + math.sqrt(variance) * correlation * z)[:, None], variance * spread**2)[0]

    scale = closed(torch.tensor([[mean]], dtype=torch.float64, device="cpu"), variance)[1].mean().item()
    return _integrated(f, given, mean=mean, variance=variance, scale=scale)


def slope_covariance(
    activation: Activation,
    *,
    variance: float,
    correlation: float,
    mean: float = 0.0,
    channels: int | None = None,
) -> float:
    """Return E[f'(u) f'(v)], the derivative of :func:`covariance` by the covariance of u and v (Price's theorem).

    The arguments and errors are those of :func:`covariance`. Of a function with jumps it is not that derivative: f' is
    taken between the jumps.

    Example:
        >>> round(slope_covariance(torch.nn.ReLU(), variance=1.0, correlation=0.5), 6)
        0.333333
    """
    _check(mean, variance, correlation)
    f = elementwise(activation, channels)
    slopes = Elementwise(lambda points: f.values_and_slopes(points[:, 0])[1], f.channels, f"the derivative of {f.name}")
    return _twice_integrated(slopes, mean=mean, variance=variance, correlation=correlation)


def _check(mean: float, variance: float, correlation: float) -> None:
    check_gaussian(mean, variance)
    if not -1.0 <= correlation <= 1.0:
        raise UsageError(f"correlation must lie in [-1, 1], got {correlation}")


def _spread(correlation: float) -> float:
    """Return sqrt(1 - c^2): the standard deviation of v given u, in units of that of v."""
    return math.sqrt((1.0 - correlation) * (1.0 + correlation))


def _rectifier_covariance(left: Tensor, right: Tensor, *, variance: float, correlation: float) -> float:
    """With slopes a and b, f(x) = a x + (b - a) relu(x)."""
    sine = _spread(correlation)
    arc = math.atan2(sine, -correlation)  # pi - theta
    relu = variance / (2 * math.pi) * (sine + arc * correlation)
    return (left * right * variance * correlation + (right - left) ** 2 * relu).mean().item()


def _integrated(
    f: Elementwise,
    given: Callable[[Tensor], Tensor],
    *,
    mean: float,
    variance: float,
    scale: float,
    kinks: Tensor | None = None,
) -> float:
    """Integrate f(u) E[f(v) | u]; ``given`` is the latter as a function of the standardized u, shape (n, C)."""

    def weighted(x: Tensor, z: Tensor, root: Tensor) -> Tensor:
        return ((f.values(x) * given(z)).mean(1) * root * root)[None]

    return integrate(weighted, mean=mean, variance=variance, kinks=kinks, scale=scale).value.item()


def _twice_integrated(f: Elementwise, *, mean: float, variance: float, correlation: float) -> float:
    std = math.sqrt(variance)
    once = integrate(moments_integrand(f), mean=mean, variance=variance)
    if _spread(correlation) == 0:
        given = partial(_shifted, f, mean=mean, std=std * correlation)
    else:
        given = partial(_conditional_mean, f, once.edges, mean=mean, std=std, correlation=correlation)
    scale = once.value[1].item()
    return _integrated(f, given, mean=mean, variance=variance, scale=scale, kinks=once.kinks)


def _shifted(f: Elementwise, z: Tensor, *, mean: float, std: float) -> Tensor:
    return f.values(mean + std * z)


def _conditional_mean(
    f: Elementwise, edges: Tensor, z: Tensor, *, mean: float, std: float, correlation: float
) -> Tensor:
    """Return E[f(v) | u] at standardized u, shape (n, C), by panels in y, v = mean + std (c z + sqrt(1 - c^2) y).

    The panels end at the given edges in v, and where the density of y asks for it.
    """
    spread = _spread(correlation)
    nodes, weights = legendre(NODES)
    density_edges = torch.tensor([-REACH, -6, -4, -2, 0, 2, 4, 6, REACH], dtype=torch.float64, device="cpu")
    center = correlation * z
    first = torch.searchsorted(edges, center - REACH * spread)
    most = int((torch.searchsorted(edges, center + REACH * spread) - first).max())
    chosen = (first[:, None] + torch.arange(most, device="cpu")).clamp(max=len(edges) - 1)
    cuts = ((edges[chosen] - center[:, None]) / spread).clamp(-REACH, REACH)
    cuts = torch.cat([cuts, density_edges.expand(len(z), -1)], 1).sort(1).values
    parts = []
    rows = max(1, POINTS // (cuts.shape[1] * NODES * f.channels))
    for start in range(0, len(z), rows):
        some_cuts, some_center = cuts[start : start + rows], center[start : start + rows]
        width = some_cuts.diff(dim=1)[..., None]
        y = some_cuts[:, :-1, None] + width * nodes
        v = mean + std * (some_center[:, None, None] + spread * y)
        mass = torch.exp(-y * y / 2) * (width * weights) / math.sqrt(2 * math.pi)
        values = f.values(v.reshape(-1)).reshape(len(y), -1, f.channels)
        parts.append(torch.einsum("npc,np->nc", values, mass.flatten(1)))
    return torch.cat(parts)
