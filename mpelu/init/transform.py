r"""Tailored activations: an affine change round a smooth activation that makes a deep stack of it start nearly linear.

.. math:: \hat f(x) = s \, (f(a x + b) + d)

The four numbers are chosen so that the second moment stays at 1, a deviation from that does not grow to first order,
the gradient keeps its norm, and two inputs approach one another only as fast as the depth allows. Source: G. Zhang,
A. Botev and J. Martens (2022), Tailored Activation Transformations, arXiv:2203.08120; J. Martens et al. (2021), Deep
Kernel Shaping, arXiv:2110.01765. How the four equations become two is told at ``_point``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from mpelu.errors import MpeluError, UsageError
from mpelu.graph.calls import replaced
from mpelu.graph.capture import Example
from mpelu.moments import Activation
from mpelu.moments.elementwise import Elementwise, elementwise
from mpelu.moments.quadrature import integrate
from mpelu.nn import MPELU

TAU = 0.3
"""Curvature of the whole stack: the value that Zhang et al. use for smooth activations."""
HALF = (torch.float16, torch.bfloat16)
TOLERANCE = 1e-8
"""Of the four conditions, the last one relative to its target."""


@dataclass(frozen=True)
class Affine:
    """The numbers of s (f(a x + b) + d).

    Attributes:
        input_scale: a > 0.
        input_shift: b.
        output_scale: s > 0.
        output_shift: d.
        error: The largest deviation from the four conditions, the last one relative to its target.
    """

    input_scale: float
    input_shift: float
    output_scale: float
    output_shift: float
    error: float


class Transformed(nn.Module):
    r"""An activation with a fixed affine change before and behind it.

    .. math:: y = s \, (f(a x + b) + d)

    The four numbers are no parameters: training leaves them as they are. They are saved in the state dict, as one
    float64 tensor, and stay exact when the model is converted to a half type; half inputs are computed in float32,
    because d cancels most of f.

    Args:
        activation: f; a module keeps its parameters and its name.
        input_scale: a.
        input_shift: b.
        output_scale: s.
        output_shift: d.

    Attributes:
        example_shapes: What the model takes that it was put into, as :func:`shapes_of` tells it, or
            None. :func:`mpelu.tailor` leaves it there for :func:`mpelu.fold`; it is copied and pickled with the module,
            and no part of the state dict.

    Shape:
        Those of the activation; dtype of the input.

    Example:
        >>> unit = Transformed(nn.Tanh(), input_scale=0.5, output_scale=2.0)
        >>> unit(torch.tensor([0.0, 2.0]))
        tensor([0.0000, 1.5232])
    """

    def __init__(
        self,
        activation: Activation,
        input_scale: float = 1.0,
        input_shift: float = 0.0,
        output_scale: float = 1.0,
        output_shift: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.input_scale = float(input_scale)
        self.input_shift = float(input_shift)
        self.output_scale = float(output_scale)
        self.output_shift = float(output_shift)
        self.example_shapes: object = None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in HALF else x
        # one pass over the memory each: constant + factor * tensor
        inner = torch.add(torch.scalar_tensor(self.input_shift, dtype=wide.dtype), wide, alpha=self.input_scale)
        value: Tensor = self.activation(inner)
        shift = torch.scalar_tensor(self.output_scale * self.output_shift, dtype=wide.dtype)
        return torch.add(shift, value, alpha=self.output_scale).to(x.dtype)

    def get_extra_state(self) -> Tensor:
        """Return a, b, s, d."""
        numbers = [self.input_scale, self.input_shift, self.output_scale, self.output_shift]
        return torch.tensor(numbers, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take a, b, s, d."""
        self.input_scale, self.input_shift, self.output_scale, self.output_shift = state.tolist()

    def extra_repr(self) -> str:
        return (
            f"input_scale={self.input_scale:.6g}, input_shift={self.input_shift:.6g}, "
            f"output_scale={self.output_scale:.6g}, output_shift={self.output_shift:.6g}"
        )


@dataclass(frozen=True)
class TensorShape:
    """What is kept of a tensor of an example."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def shapes_of(example: Example) -> object:
    """Return an example with a :class:`TensorShape` in the place of each tensor, so that it holds no data."""
    structure = dict(example) if isinstance(example, Mapping) else example
    shapes: object = replaced(structure, Tensor, lambda tensor: TensorShape(tuple(tensor.shape), tensor.dtype))
    return shapes


def tailored(activation: Activation, depth: float, *, tau: float = TAU) -> Transformed:
    r"""Wrap a smooth activation so that a stack of ``depth`` of them neither collapses nor explodes.

    With the weights orthogonal or of variance 1 / fan_in, biases 0 and inputs of second moment 1, the pre-activations
    of a wide net have second moment q = 1 in every layer, and the affine change is chosen so that

    .. math:: Q(1) = 1, \quad Q'(1) = 1, \quad C'(1) = 1, \quad C''(1) = \tau / depth

    where Q(q) is the map of the second moment and C that of the correlation. Then the gradient keeps its norm, and two
    inputs of correlation 0 come out of a deep stack with a correlation of about tau / (2 + tau).

    Source: Zhang et al. (2022), arXiv:2203.08120.

    Args:
        activation: Module or function, differentiable everywhere (MPELU only where alpha * beta = 1) and itself not
            scaled or shifted. A module is put into the wrapper, not copied.
        depth: Number of these activations in a row; for other nets see :func:`mpelu.init.shape.effective_depth`.
        tau: Curvature of the whole stack, > 0; see :func:`tau_for`.

    Returns:
        The wrapper; apply it to each of the activations.

    Raises:
        UsageError: If depth < 1, tau <= 0, or the activation has a kink (ReLU, LeakyReLU, PReLU, SELU).
        MpeluError: If no such affine change was found.

    Example:
        >>> tailored(nn.GELU(), depth=50)
        Transformed(
          input_scale=0.0817401, input_shift=0.326833, output_scale=16.2605, output_shift=-0.204303
          (activation): GELU(approximate='none')
        )
    """
    if not depth >= 1:
        raise UsageError(f"depth must be at least 1, got {depth}")
    if not tau > 0:
        raise UsageError(f"tau must be > 0 (0 would be a linear net), got {tau}")
    found = affine_for(activation, tau / depth)
    return Transformed(activation, found.input_scale, found.input_shift, found.output_scale, found.output_shift)


def tau_for(correlation: float) -> float:
    r"""Return the tau with which two inputs of correlation 0 leave a deep stack with this correlation.

    .. math:: \tau = 2 \eta / (1 - \eta)

    It is the limit of many layers, dC/dl = (tau / 2 depth) (1 - C)^2.

    Raises:
        UsageError: If the correlation does not lie in (0, 1).

    Example:
        >>> round(tau_for(0.9), 12)
        18.0
    """
    if not 0 < correlation < 1:
        raise UsageError(f"the correlation behind the stack must lie in (0, 1), got {correlation}")
    return 2 * correlation / (1 - correlation)


def affine_for(activation: Activation, curvature: float) -> Affine:
    """Solve for the affine change with Q(1) = Q'(1) = C'(1) = 1 and C''(1) = ``curvature``.

    There are usually several solutions. Those are left out whose curvature sits in rare values (the kurtosis of f'' is
    more than 1.5 times the smallest one); of the others, the one with the smallest s |d| is taken. d cancels most of
    f, and s |d| is by how much that magnifies errors: those of rounding, and what training changes. At a curvature of
    3 / 51, plain nets of 52 layers learned the digits in 45 and 85 steps from the two solutions of ELU (s |d| 1.2 and
    2.5), and in 38 steps, in 43 and never from three of GELU (1.0, 2.3 and 3.5).

    The result is remembered, so that the activations of a net are solved once.

    Args:
        activation: Module or function without kinks.
        curvature: Of one layer, > 0.

    Raises:
        UsageError: If the activation has a kink or jump, or is linear.
        MpeluError: If no solution was found to 1e-8.
    """
    f = elementwise(activation)
    return _solved(
        _Known(f.values(torch.linspace(-12.0, 12.0, 1025, dtype=torch.float64)).numpy().tobytes(), f), curvature
    )


@dataclass(frozen=True)
class _Known:
    """An activation that is the same as another if its values are: a net has many of one kind."""

    values: bytes
    f: Elementwise = field(compare=False)


@lru_cache(maxsize=128)
def _solved(known: _Known, curvature: float) -> Affine:
    smooth = _smooth(known.f)
    best = next(filter(None, (_polish(smooth, start, curvature) for start in _starts(smooth.f, curvature))), None)
    if best is None:
        raise MpeluError(
            f"found no affine change that makes {smooth.f.name} keep second moment and gradient at a curvature of "
            f"{curvature:g}; take a smaller tau or another activation (GELU, SiLU, ELU, tanh and softplus have one)"
        )
    error = _deviation(smooth, best, curvature)
    if not error <= TOLERANCE + smooth.jump:
        raise MpeluError(f"the affine change of {smooth.f.name} misses its conditions by {error:.1e}")
    return Affine(best.a, best.b, best.s, best.d, error)


def _jets(f: Elementwise, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, f' and f'' at points of shape (n,), each of shape (n, channels)."""
    with torch.inference_mode(False), torch.enable_grad():
        x = points.detach()[:, None].repeat(1, f.channels).requires_grad_()
        values = f.function(x.clone())
        slopes = _derivative(values, x)
        return values.detach(), slopes.detach(), _derivative(slopes, x).detach()


def _derivative(values: Tensor, x: Tensor) -> Tensor:
    if not values.requires_grad:
        return torch.zeros_like(x)
    (derivative,) = torch.autograd.grad(values.sum(), x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if derivative is None else derivative


SPREAD = 1.5
"""How far above the smallest one the kurtosis of f'' may lie."""
WIDE = 9.0
"""Variance of the Gaussian under which kinks are looked for."""
STEP = 1e-6
"""On both sides of a suspected kink."""
JUMP = 1e-4
"""Of f or f', relative to the mean of abs(f'), that counts as none: MPELU(98, 1 / 98) has one of 1e-8 in float32."""


@dataclass(frozen=True)
class _Smooth:
    """An activation without kinks, the places where f'' jumps, and the largest jump of f or f' that was let pass."""

    f: Elementwise
    kinks: Tensor
    jump: float


def _smooth(f: Elementwise) -> _Smooth:
    """Look for kinks.

    Raises:
        UsageError: If f or f' jumps, or f'' is 0 everywhere else.
    """
    if isinstance(f.function, MPELU):  # a copy; the form that keeps its output cannot be differentiated twice
        f.function.save, f.function.inplace = "input", False

    def rows(x: Tensor, _: Tensor, root: Tensor) -> Tensor:
        values, slopes, curvatures = (part.mean(1) for part in _jets(f, x))
        return torch.stack([values, slopes, curvatures]) * root * root

    found = integrate(rows, mean=0.0, variance=WIDE)
    scale = float(found.size[1])
    if found.size[2] <= 1e-12 * scale:
        raise UsageError(
            f"{f.name} is made of straight lines, or autograd finds no second derivative of it: its curvature sits in "
            f"its kinks. Tailor its negative slope instead (mpelu.init.shape.tailored_slope)"
        )
    # a kink at 0 or at another end of a panel does not show inside of one
    places = torch.cat([found.kinks, found.edges]) * math.sqrt(WIDE)
    places = places[places.abs() < 4 * math.sqrt(WIDE)]
    below, above = (_jets(f, places + side * STEP) for side in (-1, 1))
    changes = [(after - before) / scale for before, after in zip(below, above, strict=True)]
    rises = [(after + before) * (STEP / scale) for before, after in zip(below, above, strict=True)]
    worst = torch.maximum((changes[0] - rises[1]).abs(), (changes[1] - rises[2]).abs()).amax(1)
    if worst.max() > JUMP:
        raise UsageError(
            f"{f.name} has a kink or jump at {places[worst.argmax()]:.3g}, where its second derivative is infinite, so "
            f"that it cannot be tailored by an affine change. Take a smooth activation (MPELU with alpha * beta = 1, "
            f"ELU with alpha = 1, GELU), or a leaky unit with a tailored slope (mpelu.init.shape.tailored_slope)"
        )
    return _Smooth(f, places[changes[2].abs().amax(1) > JUMP], float(worst.max()))


@dataclass(frozen=True)
class _Point:
    """A candidate: a and b, and the s and d that follow from them; ``residual`` are the two equations left."""

    a: float
    b: float
    s: float
    d: float
    residual: tuple[float, float]

    @property
    def size(self) -> float:
        return max(abs(part) for part in self.residual)


@dataclass(frozen=True)
class _Start:
    a: float
    b: float
    sign: float
    kurtosis: float
    cancelled: float


def _rows(f: Elementwise, x: Tensor, origin: float) -> Tensor:
    """Return, for points x of shape (n,), what is averaged: shape (6, n). ``origin`` is f at the mean of x."""
    values, slopes, curvatures = _jets(f, x)
    offset = values - origin
    rows = [offset, offset * offset, slopes * slopes, curvatures * curvatures, curvatures, offset * curvatures]
    return torch.stack([row.mean(1) for row in rows])


def _within_reach(kinks: Tensor, a: float, b: float) -> Tensor:
    """Return the kinks in standard deviations of N(b, a^2), without those that matter to no average."""
    standardized = (kinks - b) / a
    return standardized[standardized.abs() < 30.0]


def _point(smooth: _Smooth, a: float, b: float, sign: float, curvature: float) -> _Point:
    """Return s and d from C'(1) = 1 and Q(1) = 1, and by how much C''(1) and Q'(1) miss what they should be.

    Q(1) = C'(1) needs (E f + d)^2 = E g'^2 - Var g for g(z) = f(a z + b); ``sign`` is that of E f + d. By Stein's
    lemma, Q'(1) - C'(1) = s^2 E[(g + d) g'']. It is of the size of the curvature, and so is divided by it.
    """
    origin = float(smooth.f.values(torch.tensor([b], dtype=torch.float64)).mean())
    found = integrate(
        lambda x, _, root: _rows(smooth.f, x, origin) * root * root,
        mean=b,
        variance=a * a,
        kinks=_within_reach(smooth.kinks, a, b),
    )
    mean, square, slope, bend, bend_mean, cross = found.value.tolist()
    slope, bend, bend_mean = slope * a**2, bend * a**4, bend_mean * a**2
    shift = sign * math.sqrt(max(slope - (square - mean * mean), 0.0))
    covariance = cross * a**2 - mean * bend_mean
    return _Point(
        a=a,
        b=b,
        s=1 / math.sqrt(slope),
        d=shift - mean - origin,
        residual=(math.log(bend / slope / curvature), (covariance + shift * bend_mean) / slope / curvature),
    )


def _polish(smooth: _Smooth, start: _Start, curvature: float) -> _Point | None:
    """Solve both equations by Newton's method in log a and b, halving steps that do not help; None where it fails."""
    sign = start.sign
    point = _point(smooth, start.a, start.b, sign, curvature)
    for _ in range(40):
        if point.size < 1e-11:
            break
        step = 1e-5
        nearby = [
            _point(smooth, point.a * math.exp(step), point.b, sign, curvature).residual,
            _point(smooth, point.a, point.b + step * point.a, sign, curvature).residual,
        ]
        jacobian = (np.array(nearby).T - np.array(point.residual)[:, None]) / step
        if not np.isfinite(jacobian).all() or abs(np.linalg.det(jacobian)) < 1e-12:
            return None
        by_log_a, by_b = (-np.linalg.solve(jacobian, np.array(point.residual))).tolist()
        part = min(1.0, 0.7 / abs(by_log_a), 5.0 / abs(by_b))
        better = _shorter(smooth, point, (part * by_log_a, part * by_b), sign, curvature)
        if better is None:
            break
        point = better
    return point if point.size < 1e-7 else None


def _shorter(smooth: _Smooth, point: _Point, move: tuple[float, float], sign: float, curvature: float) -> _Point | None:
    for halvings in range(8):
        part = 0.5**halvings
        a, b = point.a * math.exp(part * move[0]), point.b + part * move[1] * point.a
        candidate = _point(smooth, a, b, sign, curvature)
        if candidate.size < point.size:
            return candidate
    return None


def _starts(f: Elementwise, curvature: float) -> list[_Start]:
    """Return where both equations seem to change sign on a grid of a and b; the most promising ones first.

    The averages on the grid are Gauss-Hermite sums, which see a jump of f'' only roughly and bumps narrower than the
    grid not at all; as starts they need not be better. The latter show as a large kurtosis.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    log_a = torch.linspace(math.log(1e-4), math.log(1e3), 81, dtype=torch.float64)
    b = 0.01 * torch.sinh(torch.linspace(-9.2, 9.2, 161, dtype=torch.float64))
    points = (log_a.exp()[:, None, None] * z + b[:, None]).reshape(-1)
    values, slopes, bends = (part.mean(1).reshape(len(log_a), len(b), len(z)) for part in _jets(f, points))
    a = log_a.exp()[:, None]
    mean = values @ w
    offset = values - mean[..., None]
    slope, bend, bend_mean = a**2 * (slopes**2 @ w), a**4 * (bends**2 @ w), a**2 * (bends @ w)
    size = (slope - offset**2 @ w).clamp(min=0).sqrt()
    excess = torch.log(bend / slope / curvature)
    kurtosis = a**8 * (bends**4 @ w) / bend**2
    starts = []
    for sign in (1.0, -1.0):
        other = ((a**2 * (offset * bends @ w)) + sign * size * bend_mean) / slope / curvature
        cancelled = (sign * size - mean).abs() / slope.sqrt()
        table = torch.stack([other, kurtosis, cancelled, log_a[:, None].expand_as(other), b.expand_as(other)])
        crossings = [_crossings(excess[:, column], table[:, :, column]) for column in range(len(b))]
        for left, right in pairwise(crossings):
            for one in left:
                for two in right:
                    if abs(one[3] - two[3]) < 0.5 and one[0] * two[0] <= 0 and one[0] != two[0]:
                        at = torch.lerp(one, two, one[0] / (one[0] - two[0])).tolist()
                        if all(map(math.isfinite, at)):  # where f'' is 0 in float64 they are not
                            starts.append(_Start(math.exp(at[3]), at[4], sign, at[1], at[2]))
    calmest = min((start.kurtosis for start in starts), default=0.0)
    calm = [start for start in starts if start.kurtosis <= SPREAD * calmest]
    return sorted(calm, key=lambda start: (round(start.cancelled, 6), -start.b))  # tanh has mirror images: b > 0


def _crossings(excess: Tensor, table: Tensor) -> list[Tensor]:
    """Return the rows of a table, shape (rows, n), where ``excess``, shape (n,), crosses 0; linear between points."""
    places = torch.nonzero(excess[:-1] * excess[1:] < 0).flatten()
    part = excess[places] / (excess[places] - excess[places + 1])
    return list(torch.lerp(table[:, places], table[:, places + 1], part).T)


def _deviation(smooth: _Smooth, point: _Point, curvature: float) -> float:
    """Return how far the finished function is from its conditions, from its own averages under N(0, 1).

    Q'(1) = E[f^2 (z^2 - 1)] / 2 needs no derivative here, unlike in the equations that were solved.
    """

    def rows(z: Tensor, _: Tensor, root: Tensor) -> Tensor:
        values, slopes, bends = _jets(smooth.f, point.a * z + point.b)
        values, slopes, bends = point.s * (values + point.d), point.s * point.a * slopes, point.s * point.a**2 * bends
        square = values * values
        rows = [square, slopes * slopes, bends * bends, square * (z * z - 1)[:, None] / 2]
        return torch.stack([row.mean(1) for row in rows]) * root * root

    kinks = _within_reach(smooth.kinks, point.a, point.b)
    second, slope, bend, growth = map(float, integrate(rows, mean=0.0, variance=1.0, kinks=kinks).value)
    return max(abs(second - 1), abs(slope - 1), abs(growth - 1), abs(bend / curvature - 1))
