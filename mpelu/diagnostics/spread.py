r"""How far a net of finite width strays from mean field: the independent sources of deviation, and how they add up.

A second moment that is measured is an average over m units, N examples and P positions of what is random: the weights.
To first order in 1 / m its relative deviation is a sum of independent normal sources, one or two for each layer,
each passed on by the derivative of the maps behind it. So a deviation is a vector with an entry for each source, the
standard error is its length, and branches that share sources add up as they should.

With x fixed, the outputs z_i of a matrix W with k inputs and m outputs have sum z_i^2 = x^T A x, A = W^T W. Over
directions of x,

.. math:: \frac{\operatorname{Var} x^T A x}{(E x^T A x)^2} = \frac{2}{k + 2} (k t - 1), \qquad
    t = \frac{\operatorname{tr} A^2}{(\operatorname{tr} A)^2}:

2 / m for independent entries, 0 for orthogonal columns, 2 (1 / m - 1 / k) for orthogonal rows. An average over examples
whose pre-activations have the correlation c has (1 + (N - 1) c^2) / N of that, and the same holds for positions.

Behind an activation, E f^2 moves with the variance v of what it reads by dE f^2 / dv; what is left is the sampling of m
units. In normalized Hermite polynomials f(m + sqrt(v) t)^2 = sum a_k h_k(t), the term with k = 2 is the part that moves
with v, and the others have the variance sum a_k^2 (1 + (N - 1) c^k) / N over m.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpelu.moments.elementwise import Elementwise

DEGREES = 17
ROWS = 64
"""Rows of a matrix whose inner products are looked at for its spread."""

Vector = NDArray[np.float64]


def _grid() -> tuple[Tensor, Tensor]:
    points = torch.linspace(-8, 8, 401, dtype=torch.float64, device="cpu")
    rows = [torch.ones_like(points), points]
    for degree in range(2, DEGREES):
        rows.append((points * rows[-1] - math.sqrt(degree - 1) * rows[-2]) / math.sqrt(degree))
    density = torch.exp(-points.square() / 2)
    return points, torch.stack(rows) * (density / density.sum())


POINTS, HERMITE = _grid()


@dataclass(frozen=True)
class Expansion:
    """Normalized Hermite coefficients of f, f^2 and f'^2 of m + sqrt(v) t, averaged over channels.

    Attributes:
        value: Coefficients of f, shape ``(k,)``.
        square: Of f^2.
        slope: Of f'^2.
        own: Of f: mean over channels of the squared coefficients; the last entry is what lies above.
        residual: Of f^2: the same.
        cross: Mean over channels of the products of the coefficients of f and f^2.
        slope_kurtosis: E f'^4 / (E f'^2)^2; 1 where f' is 0.
        steep: f'^2 at POINTS.
    """

    value: Vector
    square: Vector
    slope: Vector
    own: Vector
    residual: Vector
    cross: Vector
    slope_kurtosis: float
    steep: Vector

    def slope_of_largest(self, count: int) -> float:
        """Return E f'^2 at the largest of so many independent variables, whose density is n P^(n - 1) p."""
        density = HERMITE[0].numpy()
        of_largest = count * (density.cumsum() - density / 2) ** (count - 1) * density
        return float((self.steep * of_largest).sum())


def expansion(function: Elementwise, *, mean: float, variance: float) -> Expansion:
    """Expand an activation of N(mean, variance); to about 1e-3, on a grid."""
    values, slopes = function.values_and_slopes(mean + math.sqrt(variance) * POINTS)
    steep = slopes.square()
    of_value, of_square, of_slope = HERMITE @ values, HERMITE @ values.square(), HERMITE @ steep
    fourth = (HERMITE[0] @ steep.square()).mean().item()
    size = of_slope[0].mean().item()
    return Expansion(
        value=of_value.mean(1).numpy(),
        square=of_square.mean(1).numpy(),
        slope=of_slope.mean(1).numpy(),
        own=_squares(of_value, HERMITE[0] @ values.square()),
        residual=_squares(of_square, HERMITE[0] @ values.square().square()),
        cross=(of_value * of_square).mean(1).numpy(),
        slope_kurtosis=fourth / size**2 if size > 0 else 1.0,
        steep=steep.mean(1).numpy(),
    )


def _squares(coefficients: Tensor, total: Tensor) -> Vector:
    squares = coefficients.square().mean(1)
    rest = (total.mean() - squares.sum()).clamp_min(0.0)
    found: Vector = torch.cat([squares, rest[None]]).numpy()
    return found


def sampled(squares: Vector, *, alike: float, examples: int) -> float:
    """Return the variance of an average over examples, without the terms 0 and 2, of one unit.

    Args:
        squares: Squared coefficients, or products of two.
        alike: Correlation of what two examples give to a unit, in [0, 1].
        examples: How many.
    """
    degrees = np.arange(len(squares))
    weights = 1 / examples + (1 - 1 / examples) * alike**degrees
    weights[[0, 2]] = 0.0
    return float((squares * weights).sum())


@dataclass(frozen=True)
class Matrix:
    """What a weight does on average, from its values.

    Attributes:
        square: Mean square of its entries.
        row_mean: Mean over rows of their sums.
        row_square: Mean over rows of their squared sums, over what independent entries of mean 0 have: 1 for these.
        with_bias: Mean over rows of sum times bias.
        bias_mean: Mean of the biases.
        bias_square: Mean square of the biases.
        forward: Relative variance of the mean square of its outputs, over directions of what it reads.
        backward: The same for gradients.
        units: Rows.
    """

    square: float
    row_mean: float
    row_square: float
    with_bias: float
    bias_mean: float
    bias_square: float
    forward: float
    backward: float
    units: int


def matrix(weight: Tensor, bias: Tensor | None, *, groups: int = 1) -> Matrix:
    """Look at a weight of shape ``(out, in / groups, *kernel)``."""
    rows = weight.detach().flatten(1)
    count, width = rows.shape
    square = torch.linalg.vector_norm(rows).item() ** 2 / rows.numel()
    together = rows.sum(1).double().cpu()
    shifts = None if bias is None else bias.detach().double().cpu()
    some = rows[:: -(-count // ROWS)].double().cpu()
    trace = _trace(some, count) if groups == 1 else 1 / width + groups / count
    outputs, inputs = count, width * groups
    return Matrix(
        square=square,
        row_mean=together.mean().item(),
        row_square=together.square().mean().item() / (width * square) if square else 1.0,
        with_bias=0.0 if shifts is None else (together * shifts).mean().item(),
        bias_mean=0.0 if shifts is None else shifts.mean().item(),
        bias_square=0.0 if shifts is None else shifts.square().mean().item(),
        forward=2 / (inputs + 2) * max(0.0, inputs * trace - 1),
        backward=2 / (outputs + 2) * max(0.0, outputs * trace - 1),
        units=count,
    )


def _trace(some: Tensor, count: int) -> float:
    """Return tr A^2 / (tr A)^2 of a matrix with so many rows, from some of them."""
    inner = (some @ some.T).square()
    own = inner.diagonal()
    sizes = own.sqrt().mean().item()
    if not sizes > 0:
        return 1.0
    others = (inner.sum() - own.sum()).item() / (len(some) * (len(some) - 1)) if len(some) > 1 else 0.0
    return (own.mean().item() + (count - 1) * others) / (count * sizes**2)


class Sources:
    """Numbers the sources, and makes their vectors."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0

    def none(self) -> Vector:
        """Return a deviation of 0."""
        return np.zeros(self._most)

    def one(self, size: float) -> Vector:
        """Return a deviation by a new source, of this standard error."""
        found = self.none()
        if self._used < self._most:
            found[self._used] = size
            self._used += 1
        return found


def length(vector: Vector) -> float:
    """Return the standard error of a relative deviation, of a value whose logarithm has this one."""
    square = float(vector @ vector)
    return math.sqrt(math.expm1(min(square, 50.0)))
