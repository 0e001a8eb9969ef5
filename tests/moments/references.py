"""Activations written a second time, in mpmath, and their Gaussian moments to 30 digits and more.

Nothing here looks at torch or at the package for a value; ``build`` only says what the formula is to be compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import mpmath as mp
import torch
from torch import nn

from mpelu.nn import MPELU, SPELU, SReLU

DIGITS = 50
Function = Callable[[mp.mpf], mp.mpf]


@dataclass(frozen=True)
class Reference:
    """An activation as torch has it (``build``), and its value and derivative between the kinks."""

    name: str
    build: Callable[[], Any]
    value: Function
    slope: Function
    kinks: tuple[float, ...] = ()
    jumps: bool = False

    def __repr__(self) -> str:
        return self.name


def pieces(kinks: Sequence[float], functions: Sequence[Function]) -> Function:
    """Return the function that is functions[i] between kinks[i - 1] and kinks[i]."""

    def piece(x: mp.mpf) -> mp.mpf:
        return functions[sum(x > kink for kink in kinks)](x)

    return piece


def constant(value: float) -> Function:
    return lambda x: mp.mpf(value)


def line(slope: float, intercept: float = 0.0) -> Function:
    return lambda x: mp.mpf(slope) * x + mp.mpf(intercept)


def piecewise_linear(name: str, build: Callable[[], Any], kinks: Sequence[float], lines: Sequence[Any]) -> Reference:
    """``lines`` are pairs of slope and intercept, or mpmath numbers as such."""
    jumps = any(
        lines[i][0] * mp.mpf(kink) + lines[i][1] != lines[i + 1][0] * mp.mpf(kink) + lines[i + 1][1]
        for i, kink in enumerate(kinks)
    )
    value = pieces(kinks, [line(*pair) for pair in lines])
    return Reference(name, build, value, pieces(kinks, [constant(pair[0]) for pair in lines]), tuple(kinks), jumps)


def rectifier(name: str, build: Callable[[], Any], slope: float) -> Reference:
    return piecewise_linear(name, build, [0.0], [(slope, 0), (1, 0)])


def exponential(name: str, build: Callable[[], Any], alpha: Any, beta: Any, positive: Any = 1) -> Reference:
    """x above 0 (times ``positive``), alpha (exp(beta x) - 1) below."""
    with mp.workdps(DIGITS):
        alpha, beta, positive = (mp.mpf(number) for number in (alpha, beta, positive))
    return Reference(
        name,
        build,
        pieces([0], [lambda x: alpha * mp.expm1(beta * x), lambda x: positive * x]),
        pieces([0], [lambda x: alpha * beta * mp.exp(beta * x), lambda x: positive]),
        (0.0,),
    )


def selu() -> Reference:
    with mp.workdps(DIGITS):
        scale, alpha = mp.mpf("1.0507009873554804934193349852946"), mp.mpf("1.6732632423543772848170429916717")
        return exponential("SELU()", nn.SELU, scale * alpha, 1, scale)


def softplus(beta: float, threshold: float) -> Reference:
    """torch's: the identity above threshold / beta, with a small jump there."""
    b, end = mp.mpf(beta), mp.mpf(threshold) / mp.mpf(beta)
    return Reference(
        f"Softplus({beta},{threshold})",
        lambda: nn.Softplus(beta, threshold),
        pieces([end], [lambda x: mp.log1p(mp.exp(b * x)) / b, lambda x: x]),
        pieces([end], [lambda x: 1 / (1 + mp.exp(-b * x)), constant(1)]),
        (float(end),),
        jumps=True,
    )


def sigmoid(x: mp.mpf) -> mp.mpf:
    return 1 / (1 + mp.exp(-x))


def mish_slope(x: mp.mpf) -> mp.mpf:
    t = mp.tanh(mp.log1p(mp.exp(x)))
    return t + x * (1 - t * t) * sigmoid(x)


def gelu_tanh(x: mp.mpf) -> mp.mpf:
    return x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)))


def gelu_tanh_slope(x: mp.mpf) -> mp.mpf:
    t = mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t * t) * mp.sqrt(2 / mp.pi) * (1 + 3 * mp.mpf("0.044715") * x * x)


def s_shaped(t_left: float, a_left: float, t_right: float, a_right: float) -> Reference:
    left, right = mp.mpf(t_left) * (1 - mp.mpf(a_left)), mp.mpf(t_right) * (1 - mp.mpf(a_right))

    def build() -> SReLU:
        unit = SReLU(1, t_left, a_left, t_right, a_right).double()
        unit.reset_parameters()  # float32 would have rounded them
        return unit

    return piecewise_linear(
        f"SReLU({t_left},{a_left},{t_right},{a_right})",
        build,
        [t_left, t_right],
        [(a_left, left), (1, 0), (a_right, right)],
    )


def mpelu(alpha: float, beta: float) -> Reference:
    return exponential(f"MPELU({alpha},{beta})", lambda: MPELU(1, alpha, beta, dtype=torch.float64), alpha, beta)


def hard_shrink(threshold: float) -> Reference:
    lines = [(1, 0), (0, 0), (1, 0)]
    return piecewise_linear(
        f"Hardshrink({threshold})", lambda: nn.Hardshrink(threshold), [-threshold, threshold], lines
    )


def soft_shrink(threshold: float) -> Reference:
    lines = [(1, threshold), (0, 0), (1, -threshold)]
    return piecewise_linear(
        f"Softshrink({threshold})", lambda: nn.Softshrink(threshold), [-threshold, threshold], lines
    )


def hard_tanh(low: float, high: float) -> Reference:
    lines = [(0, low), (1, 0), (0, high)]
    return piecewise_linear(f"Hardtanh({low},{high})", lambda: nn.Hardtanh(low, high), [low, high], lines)


def random_leaky(lower: float, upper: float) -> Reference:
    return rectifier(f"RReLU({lower},{upper})", lambda: nn.RReLU(lower, upper).eval(), (lower + upper) / 2)


def threshold(at: float, value: float) -> Reference:
    lines = [(0, value), (1, 0)]
    return piecewise_linear(f"Threshold({at},{value})", lambda: nn.Threshold(at, value), [at], lines)


def clamped_square(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-0.37, 1.3) ** 2


def distance(x: torch.Tensor) -> torch.Tensor:
    return (x - 0.123).abs()


def steps(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0.711, x.sin(), torch.where(x > -1.234, x, -2.0))


def bent(x: torch.Tensor) -> torch.Tensor:
    """A kink in the second derivative only, and one in the first."""
    return torch.where(x > 0.3, (x - 0.3) ** 2, 0.0) - (x + 1.7).clamp(min=0) * 0.01


@cache
def references() -> dict[str, Reference]:
    """Return all activations by name."""
    with mp.workdps(DIGITS):
        third = mp.mpf(1) / 6
        found = [
            rectifier("ReLU()", nn.ReLU, 0),
            *(rectifier(f"LeakyReLU({a})", partial(nn.LeakyReLU, a), a) for a in (0.01, 0.0, 0.25, 0.7, -0.5, 2.0)),
            *(
                rectifier(f"PReLU({a})", partial(nn.PReLU, 1, a, dtype=torch.float64), a)
                for a in (0.25, 0.0, 0.1, 0.9, -0.3, 1.5)
            ),
            *(
                random_leaky(*pair)
                for pair in ((0.125, 1 / 3), (0.0, 0.5), (0.1, 0.1), (0.3, 0.9), (-0.5, 0.5), (1, 2))
            ),
            piecewise_linear("ReLU6()", nn.ReLU6, [0, 6], [(0, 0), (1, 0), (0, 6)]),
            *(hard_tanh(*pair) for pair in ((-1, 1), (-0.37, 1.1), (0, 1), (-2.5, -0.5), (0.2, 0.3), (-10.0, 30.0))),
            piecewise_linear("Hardsigmoid()", nn.Hardsigmoid, [-3, 3], [(0, 0), (third, mp.mpf(1) / 2), (0, 1)]),
            *(soft_shrink(at) for at in (0.5, 0.0, 0.03, 0.31, 1.7, 6.0)),
            *(hard_shrink(at) for at in (0.5, 0.0, 0.03, 0.31, 1.7, 6.0)),
            *(
                threshold(*pair)
                for pair in ((0.1, 20.0), (0.0, 0.0), (0.3, -2.0), (-1.3, 0.5), (1.9, 0.01), (-0.7, -0.7))
            ),
            *(s_shaped(*row) for row in ((0.0, 0.2, 1.0, 1.0), (-1.0, 0.5, 0.7, 0.1), (-0.3, 0.0, 2.0, 1.5))),
            *(exponential(f"ELU({a})", partial(nn.ELU, a), a, 1) for a in (1.0, 0.25, 0.0, 2.5, 10.0, -0.4)),
            *(
                exponential(f"CELU({a})", partial(nn.CELU, a), a, 1 / mp.mpf(a))
                for a in (1.0, 0.2, 0.01, 3.0, 50.0, 0.7)
            ),
            selu(),
            *(mpelu(*row) for row in ((0.25, 1.0), (1.0, 1.0), (0.0, 1.0), (98.0, 0.01), (25.6302, 0.01), (-0.5, 2.0))),
            *(mpelu(*row) for row in ((3.0, 1.0), (2.0, 30.0), (1e4, 1e-4))),
            exponential("SPELU(2)", lambda: SPELU(1, 2.0, dtype=torch.float64), 2, 1),
            Reference("GELU()", nn.GELU, lambda x: x * mp.ncdf(x), lambda x: mp.ncdf(x) + x * mp.npdf(x)),
            Reference("erf", lambda: torch.erf, mp.erf, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x)),
            Reference("GELU('tanh')", lambda: nn.GELU("tanh"), gelu_tanh, gelu_tanh_slope),
            Reference("Sigmoid()", nn.Sigmoid, sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
            Reference("SiLU()", nn.SiLU, lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x))),
            Reference("Mish()", nn.Mish, lambda x: x * mp.tanh(mp.log1p(mp.exp(x))), mish_slope),
            Reference("LogSigmoid()", nn.LogSigmoid, lambda x: -mp.log1p(mp.exp(-x)), lambda x: sigmoid(-x)),
            *(
                softplus(*pair)
                for pair in ((1.0, 20.0), (2.0, 20.0), (0.5, 3.0), (1.0, 1.0), (10.0, 20.0), (0.7, 30.0))
            ),
            Reference("Tanh()", nn.Tanh, mp.tanh, lambda x: mp.sech(x) ** 2),
            Reference("Tanhshrink()", nn.Tanhshrink, lambda x: x - mp.tanh(x), lambda x: mp.tanh(x) ** 2),
            Reference("Softsign()", nn.Softsign, lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2, (0.0,)),
            Reference(
                "Hardswish()",
                nn.Hardswish,
                pieces([-3, 3], [constant(0), lambda x: x * (x + 3) / 6, line(1)]),
                pieces([-3, 3], [constant(0), lambda x: (2 * x + 3) / 6, constant(1)]),
                (-3, 3),
            ),
            Reference(
                "clamped_square",
                lambda: clamped_square,
                pieces([-0.37, 1.3], [constant(mp.mpf(-0.37) ** 2), lambda x: x * x, constant(mp.mpf(1.3) ** 2)]),
                pieces([-0.37, 1.3], [constant(0), lambda x: 2 * x, constant(0)]),
                (-0.37, 1.3),
            ),
            Reference("sin", lambda: torch.sin, mp.sin, mp.cos),
            piecewise_linear("distance", lambda: distance, [0.123], [(-1, mp.mpf(0.123)), (1, -mp.mpf(0.123))]),
            piecewise_linear("sign", lambda: torch.sign, [0.0], [(0, -1), (0, 1)]),
            Reference(
                "steps",
                lambda: steps,
                pieces([-1.234, 0.711], [constant(-2), line(1), mp.sin]),
                pieces([-1.234, 0.711], [constant(0), constant(1), mp.cos]),
                (-1.234, 0.711),
                jumps=True,
            ),
            Reference(
                "bent",
                lambda: bent,
                lambda x: (max(x - mp.mpf(0.3), 0)) ** 2 - max(x + mp.mpf(1.7), 0) * mp.mpf(0.01),
                lambda x: 2 * max(x - mp.mpf(0.3), 0) - (mp.mpf(0.01) if x > -1.7 else 0),
                (-1.7, 0.3),
            ),
        ]
    names = [case.name for case in found]
    assert len(set(names)) == len(names)
    return {case.name: case for case in found}


PLACES = (
    (0.0, 1.0),
    (0.0, 1e-4),
    (0.0, 1e4),
    (2.0, 1e-4),
    (-2.0, 1e-4),
    (2.0, 1e4),
    (-2.0, 0.04),
    (-1.3, 50.0),
    (0.7, 0.03),
    (-0.5, 2.0),
)
"""Pairs of mean and variance; every number is taken for the float64 that it is."""
COLUMNS = ("mean", "second_moment", "slope_mean", "slope_second_moment", "cross", "growth")


@dataclass(frozen=True)
class Known:
    """The six moments, and the means of the absolute values of their integrands (to three digits)."""

    values: tuple[mp.mpf, ...]
    sizes: tuple[mp.mpf, ...]


@cache
def legendre(count: int, digits: int) -> list[tuple[mp.mpf, mp.mpf]]:
    """Return nodes and weights on [-1, 1], by Newton's method on the recurrence of the polynomials."""
    found = []
    with mp.workdps(digits + 10):
        for i in range(count):
            x = mp.cos(mp.pi * (i + mp.mpf(3) / 4) / (count + mp.mpf(1) / 2))
            for _ in range(10):
                before, now = mp.mpf(1), x
                for k in range(2, count + 1):
                    before, now = now, ((2 * k - 1) * x * now - (k - 1) * before) / k
                slope = count * (x * now - before) / (x * x - 1)
                x -= now / slope
            found.append((x, 2 / ((1 - x * x) * slope * slope)))
    return found


def known_moments(case: Reference, mean: float, variance: float) -> Known:
    """Integrate piece by piece, each cut in half until 40 nodes and twice 40 nodes agree to 32 digits."""
    with mp.workdps(DIGITS):
        m, v = mp.mpf(mean), mp.mpf(variance)
        s = mp.sqrt(v)
        reach = 39  # the density is 1e-331 there
        edges = {
            m + s * z
            for z in (-reach, -30, -22, -16, -12, -9, -7, -5, -3, -1.5, 0, 1.5, 3, 5, 7, 9, 12, 16, 22, 30, reach)
        }
        edges |= {sign * mp.mpf(2) ** k for k in range(-1, 13) for sign in (-1, 1)} | {mp.mpf(0)}
        edges |= {mp.mpf(kink) for kink in case.kinks}
        cuts = sorted(edge for edge in edges if abs(edge - m) <= reach * s)
        nodes = legendre(40, DIGITS)

        def panel(a: mp.mpf, b: mp.mpf) -> list[mp.mpf]:
            half, middle = (b - a) / 2, (a + b) / 2
            total = [mp.mpf(0)] * 9
            for node, weight in nodes:
                x = middle + half * node
                f, d, z2 = case.value(x), case.slope(x), (x - m) ** 2 / v
                mass = weight * half * mp.exp(-z2 / 2)
                rows = (f, f * f, d, d * d, f * d, f * f * (z2 - 1) / (2 * v), abs(f), abs(d), abs(f * d))
                total = [t + mass * row for t, row in zip(total, rows, strict=True)]
            return total

        whole = [(a, b, panel(a, b)) for a, b in pairwise(cuts)]
        result = [mp.mpf(0)] * 9
        while whole:
            scale = [abs(r) + sum(abs(part[2][i]) for part in whole) for i, r in enumerate(result)]
            again = []
            for a, b, coarse in whole:
                middle = (a + b) / 2
                left, right = panel(a, middle), panel(middle, b)
                fine = [x + y for x, y in zip(left, right, strict=True)]
                if all(abs(fine[i] - coarse[i]) <= scale[i] * mp.mpf(10) ** -32 for i in range(6)):
                    result = [r + x for r, x in zip(result, fine, strict=True)]
                else:
                    again += [(a, middle, left), (middle, b, right)]
            whole = again
        result = [r / mp.sqrt(2 * mp.pi * v) for r in result]
        f_size, d_size, cross_size = result[6:]
        sizes = (f_size, result[1], d_size, result[3], cross_size, result[1] / v)
        return Known(tuple(result[:6]), sizes)
