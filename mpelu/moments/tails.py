"""Moments of parts of the normal distribution, without cancellation.

phi and Phi are density and distribution of z ~ N(0, 1), and J_n(t) = E (z - t)_+^n / n!.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

ROOT_2 = math.sqrt(2.0)
ROOT_2_PI = math.sqrt(2.0 * math.pi)
TAIL = 2.0
"""Where it begins, in standard deviations: up to here the upward recurrence loses one digit at most."""


def density_at(distance: Tensor, variance: float) -> Tensor:
    """Return phi(distance / s); from the square of the distance, the exponent is right to one rounding."""
    return torch.exp(-distance.square() / (2.0 * variance)) / ROOT_2_PI


def tail_moments(t: Tensor, density: Tensor, count: int) -> list[Tensor]:
    r"""Return J_n(t) = E (z - t)_+^n / n! for n < count; relative errors are 1e-14 for n < 3 and all t.

    They obey n J_n = J_{n-2} - t J_{n-1}. Upward that cancels where t is large, so in the tail the ratios
    r_n = J_n / J_{n-1} are taken downward, r_n = 1 / (t + (n + 1) r_{n+1}).

    Args:
        t: Where the tail begins, any shape.
        density: phi(t), shape of t.
        count: How many, at least 2.
    """
    low, is_tail = t.clamp(max=TAIL), t > TAIL
    upward = [0.5 * torch.special.erfc(low / ROOT_2)]
    upward.append(density - low * upward[0])
    for n in range(2, count):
        upward.append((upward[n - 2] - low * upward[n - 1]) / n)
    if not is_tail.any():
        return upward
    high = torch.where(is_tail, t, math.inf)
    nearest = high.min().item()
    high = high.clamp(max=1e3)
    # what is wrong with the first ratio is multiplied by about exp(-2 t sqrt(last)) < 3e-17
    last = count + 20 + math.ceil((19.0 / nearest) ** 2)
    ratio = (torch.sqrt(high * high + 4.0 * last) - high) / (2.0 * last)
    ratios = [ratio]
    for n in range(last - 1, 0, -1):
        ratios.append(1.0 / (high + (n + 1) * ratios[-1]))
    downward = [density * math.sqrt(math.pi / 2.0) * torch.special.erfcx(high / ROOT_2)]
    for n in range(1, count):
        downward.append(downward[-1] * ratios[-n])
    return [torch.where(is_tail, tail, body) for tail, body in zip(downward, upward, strict=True)]


@cache
def legendre(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1.0) / 2.0), torch.from_numpy(weights / 2.0)


def interval_moments(a: Tensor, b: Tensor, density_a: Tensor, density_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integrals of (z - a+)^n phi(z), n = 0, 1, 2, over [a, b] with b > 0, where a+ = max(a, 0).

    Far from 0 they are differences of tails; near 0, of erf and phi; on short intervals, where both would cancel, 16
    Gauss-Legendre nodes are exact to rounding.
    """
    anchor, finite_b = a.clamp(min=0.0), b.clamp(max=1e3)
    at_a, at_b = tail_moments(a.clamp(min=0.0), density_a, 3), tail_moments(finite_b, density_b, 3)
    width = finite_b - anchor
    far = (
        at_a[0] - at_b[0],
        at_a[1] - (at_b[1] + width * at_b[0]),
        2 * at_a[2] - (2 * at_b[2] + 2 * width * at_b[1] + width * width * at_b[0]),
    )
    finite_a = a.clamp(min=-1e3)
    zeroth = 0.5 * (torch.special.erf(finite_b / ROOT_2) - torch.special.erf(finite_a / ROOT_2))
    first = density_a - density_b
    second = zeroth + finite_a * density_a - finite_b * density_b
    near = (zeroth, first - anchor * zeroth, second - 2 * anchor * first + anchor * anchor * zeroth)
    nodes, weights = legendre(16)
    z = finite_a[..., None] + (finite_b - finite_a)[..., None] * nodes
    mass = torch.exp(-z * z / 2.0) / ROOT_2_PI * weights * (finite_b - finite_a)[..., None]
    offset = z - anchor[..., None]
    short = (mass.sum(-1), (mass * offset).sum(-1), (mass * offset * offset).sum(-1))
    is_short, is_far = finite_b - finite_a <= 1.0, a > 1.0
    n0, n1, n2 = (
        torch.where(is_short, by_nodes, torch.where(is_far, by_tails, by_erf))
        for by_nodes, by_tails, by_erf in zip(short, far, near, strict=True)
    )
    return n0, n1, n2
