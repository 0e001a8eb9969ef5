r"""The MPELU that is nearest to another activation, and how near it comes.

On the positive side MPELU is the identity, whatever its parameters are. On the negative side the squared distance to a
function g, weighted with how often each input occurs,

.. math:: \sum_j w_j \, (\alpha \, (e^{\beta x_j} - 1) - g(x_j))^2

is quadratic in alpha, so that for each beta the best alpha is known, and only beta is searched.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpelu.conversion.sites import Site
from mpelu.graph.calls import Call

BINS = 1024
LARGEST_BETA = 1e3
STEPS = 400
"""Values of beta that are tried, evenly in its logarithm; then three times around the best one."""
FAR = (1e-3, 0.1, 1.0, 10.0, 1e3)
"""Where a function has to be the identity to count as one on the positive side."""
IDENTITY = 1e-6


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an activation is given: points with weights that sum to 1, shape (K,), float64."""

    points: Tensor
    weights: Tensor
    measured: bool


@dataclass(frozen=True, eq=False)
class Fit:
    """Parameters, shape (1,) or (C,), float64, and how far the function with them is from the old one."""

    alpha: Tensor
    beta: Tensor
    error: float
    """Root mean square over the inputs."""
    largest_error: float
    """At any of the points."""


def assumed() -> Inputs:
    """Return N(0, 1) on [-4, 4]: what is used where nothing can be measured."""
    points = torch.linspace(-4.0, 4.0, BINS, dtype=torch.float64)
    weights = torch.exp(-points.square() / 2)
    return Inputs(points, weights / weights.sum(), measured=False)


def observed(entries: Tensor) -> Inputs:
    """Return the histogram of measured inputs; :func:`assumed` where they have no negative ones or do not vary."""
    entries = entries[entries.isfinite()].double()
    if not len(entries) or not bool((entries < 0).any()) or bool(entries.min() == entries.max()):
        return assumed()
    low, high = float(entries.min()), float(entries.max())
    counts = torch.histc(entries, BINS, low, high)
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    points = (edges[1:] + edges[:-1]) / 2
    points[0], points[-1] = low, high
    met = counts > 0
    return Inputs(points[met], counts[met] / counts.sum(), measured=True)


def values(site: Site, points: Tensor, channels: int) -> Tensor:
    """Return the old function at points of shape (K,): shape (K, 1), or (K, channels) where the channels differ."""
    function = site.function
    columns = 1 if function.channel_dim is None else channels
    with torch.no_grad():
        return function(points[:, None].repeat(1, columns)).detach()


def is_identity(site: Site, channels: int) -> bool:
    """True where a function is x for x > 0, as MPELU is whatever its parameters are."""
    points = torch.tensor(FAR, dtype=torch.float64)
    return bool(
        ((values(site, points, channels) - points[:, None]).abs() <= IDENTITY * points[:, None].clamp(min=1)).all()
    )


def known(site: Site) -> tuple[float, float] | None:
    """Return the alpha and beta with which MPELU is the same function, where that is known without a search."""
    if len(site.calls) != 1:
        return None
    call = site.calls[0]
    if site.op == "relu":
        return 0.0, 1.0
    if site.op not in ("elu", "celu") or len(_numbers(call)) > 1:
        return None
    alpha = float(next(iter(_numbers(call).values()), 1.0))
    if site.op == "elu":
        return alpha, 1.0
    return (alpha, 1.0 / alpha) if alpha > 0 else None


def _numbers(call: Call) -> Mapping[object, float]:
    given: dict[object, Any] = dict(enumerate(call.args))
    given.update(call.kwargs)
    return {key: item for key, item in given.items() if isinstance(item, int | float) and not isinstance(item, bool)}


def nearest(
    target: Tensor, inputs: Inputs, *, smallest_beta: float, beta: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the alpha and beta, shape (C,) each, that come nearest to a function on the negative side.

    Args:
        target: Values of the function at the points, shape (K, C), float64.
        inputs: The points and their weights.
        smallest_beta: Where the search begins. A straight line is the limit of beta to 0 with alpha = slope / beta.
        beta: None, or the value that it has.
    """
    negative = inputs.points < 0
    points, weights, target = inputs.points[negative], inputs.weights[negative], target[negative]
    size = target.abs().amax(0).clamp(min=torch.finfo(torch.float64).tiny)
    shapes, which = torch.unique((target / size).mul(1e12).round(), dim=1, return_inverse=True)
    columns = [
        _column(shapes[:, index] / 1e12, points, weights, smallest_beta, beta) for index in range(shapes.shape[1])
    ]
    alpha, found = (torch.tensor(part, dtype=torch.float64)[which] for part in zip(*columns, strict=True))
    return alpha * size * (target != 0).any(0), found


def _column(
    target: Tensor, points: Tensor, weights: Tensor, smallest_beta: float, beta: float | None
) -> tuple[float, float]:
    """Return alpha and beta for one function whose values at the points are the target, shape (K,)."""
    if not bool((target != 0).any()):
        return 0.0, 1.0 if beta is None else beta
    low, high = (smallest_beta, LARGEST_BETA) if beta is None else (beta, beta)
    while True:
        betas = torch.logspace(math.log10(low), math.log10(high), STEPS, dtype=torch.float64)
        betas = betas.clamp(low, high)
        basis = torch.expm1(betas[:, None] * points)
        alphas = (basis * (weights * target)).sum(1) / (basis * basis * weights).sum(1)
        loss = ((alphas[:, None] * basis - target).square() * weights).sum(1)
        best = int(loss.argmin())
        low, high = float(betas[max(0, best - 1)]), float(betas[min(STEPS - 1, best + 1)])
        if high - low <= 1e-9 * high:
            return float(alphas[best]), float(betas[best])


def mpelu(points: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return MPELU with each alpha and beta at each point: shape (K, C)."""
    column = points[:, None]
    return torch.where(column > 0, column, alpha * torch.expm1(beta * column.clamp(max=0)))


def errors(new: Tensor, old: Tensor, inputs: Inputs) -> tuple[float, float]:
    """Return the root mean square and the largest difference of two functions, shape (K, C) or (K, 1)."""
    gap = (new - old).abs()
    return float((gap.square().mean(1) * inputs.weights).sum().sqrt()), float(gap.max())
