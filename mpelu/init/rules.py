"""How each method chooses the standard deviation of one weight."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from mpelu.errors import UsageError
from mpelu.graph import Graph, Node
from mpelu.init.fill import taylor_gain
from mpelu.init.signal import Gaussian, Signal
from mpelu.init.uses import TRANSPARENT, UNPOOLED, Use, behind


@dataclass(frozen=True)
class Choice:
    """What a rule decides for one weight.

    Attributes:
        std: Root mean square of the entries; None leaves the weight as it is, and ``equation`` says why.
        fan: What the variance was divided by.
        slope: Of the negative side of what feeds it, where the rule looks at one.
        equation: Where std comes from.
        distribution: See :func:`mpelu.init.draw`.
        centered: True where every row sums to 0 at every tap.
        bias_std: Standard deviation of the biases.
    """

    std: float | None
    fan: float
    equation: str
    slope: float | None = None
    distribution: str = "normal"
    centered: bool = False
    bias_std: float = 0.0


@dataclass(frozen=True)
class Question:
    """All that a rule may look at.

    Attributes:
        use: The weight.
        mode: ``fan_in``, ``fan_out`` or ``average``.
        std: Of ``gaussian``.
        distribution: The user's, or that of the method.
        net_slope: Slope of the first activation of the net.
        reads: The signal that the weight reads.
        before: The one that the activation reads which feeds it; None where none does.
        fan_in: Effective, for that signal.
        target: Second moment that its output is to have.
        gaussian: Moments of activations.
        graph: The model.
    """

    use: Use
    mode: str
    std: float
    distribution: str
    net_slope: float
    reads: Signal
    before: Signal | None
    fan_in: float
    target: float
    gaussian: Gaussian
    graph: Graph


def slope(graph: Graph, node: Node, gaussian: Gaussian) -> float:
    """Return the slope behind a weight; images, sums, norms and other weights act as a linear unit of slope 1.

    For values side by side it is the root mean square over the channels.
    """
    if node.kind == "activation":
        return gaussian.negative_slope(node)
    if node.kind == "concat":
        dim = node.options.get("dim", 1)
        sizes = [graph.nodes[index].shape[dim] for index in node.inputs]
        slopes = [slope(graph, behind(graph, index, TRANSPARENT), gaussian) for index in node.inputs]
        return math.sqrt(sum(size * part**2 for size, part in zip(sizes, slopes, strict=True)) / sum(sizes))
    return 1.0


def _eq22(question: Question) -> Choice:
    mode = "fan_in" if question.use.head else question.mode
    fan, of = question.use.fans.of(mode), slope(question.graph, question.use.source, question.gaussian)
    return Choice(taylor_gain(of) / math.sqrt(fan), fan, "Eq. 22", of)


def _released(question: Question) -> Choice:
    fan, of = question.use.fans.of(question.mode), question.net_slope
    if question.use.node.op == "linear":
        return Choice(None, fan, "released code: linear layers keep torch's default", of)
    return Choice(taylor_gain(of) / math.sqrt(fan), fan, "Eq. 22, one slope for the net (released code)", of)


def _msra(question: Question) -> Choice:
    fan = question.use.fans.of(question.mode)
    return Choice(math.sqrt(2.0 / fan), fan, "MSRA, sqrt(2 / fan)")


def _xavier(question: Question) -> Choice:
    fan = question.use.fans.of(question.mode)
    return Choice(math.sqrt(1.0 / fan), fan, "Xavier, sqrt(1 / fan)")


def _gaussian(question: Question) -> Choice:
    return Choice(question.std, question.use.fans.of(question.mode), "Gaussian, fixed std")


def _second_moment(question: Question) -> Choice:
    kept = question.fan_in * question.reads.second_moment
    if not kept > 0:
        raise UsageError(f"what {question.use.weight!r} reads is 0: no weight can restore the signal there")
    std = math.sqrt(question.target / kept)
    return Choice(std, question.fan_in, _wanted("second moment", question.target), distribution=question.distribution)


FEWEST_COLUMNS = 8
"""Of fewer channels, a row that sums to 0 loses too much: of one (depthwise), everything."""


def _critical(question: Question) -> Choice:
    """Both signals where random biases can make up the difference, else the second moment."""
    use, target, reads = question.use, question.target, question.reads
    possible = use.chained and use.bias and use.plain and use.shape[1] >= FEWEST_COLUMNS
    if not possible or question.before is None or not (question.before.variance > 0 and reads.variance > 0):
        return _second_moment(question)
    unit = behind(question.graph, use.node.inputs[0], UNPOOLED)
    of = question.gaussian(unit, mean=question.before.mean, variance=question.before.variance)
    if not of.slope_second_moment > 0:
        return _second_moment(question)
    # dropout between the two scales the gradient as it scales the second moment
    dropped = max(1.0, reads.second_moment / of.second_moment)
    std = 1 / math.sqrt(question.fan_in * of.slope_second_moment * dropped)
    bias_variance = max(0.0, target - std**2 * question.fan_in * reads.variance)
    if bias_variance == 0.0:
        std = math.sqrt(target / (question.fan_in * reads.variance))
    return Choice(
        std,
        question.fan_in,
        "critical, rows sum to 0",
        distribution=question.distribution,
        centered=True,
        bias_std=math.sqrt(bias_variance),
    )


def _lsuv(question: Question) -> Choice:
    fan = question.use.fans.fan_in
    return Choice(math.sqrt(1.0 / fan), fan, "LSUV, orthonormal", distribution=question.distribution)


def _wanted(what: str, target: float) -> str:
    return what if target == 1.0 else f"{what} {target:.3g}"


METHODS: dict[str, Callable[[Question], Choice]] = {
    "eq22": _eq22,
    "released": _released,
    "msra": _msra,
    "xavier": _xavier,
    "gaussian": _gaussian,
    "second_moment": _second_moment,
    "critical": _critical,
    "auto": _critical,
    "tailored": _second_moment,
    "lsuv": _lsuv,
}
"""``auto`` is ``critical``, then calibrated on noise, and ``lsuv`` on the example: see :mod:`mpelu.init.calibrate`."""

PUBLISHED = frozenset({"eq22", "released", "msra", "xavier", "gaussian", "lsuv"})
"""Methods of others: nominal fans, and no rule of its own for residual sums."""

ORTHOGONAL = frozenset({"auto", "tailored", "critical", "lsuv"})
"""Methods that draw orthogonal weights where the user does not say otherwise."""

REFINED = {"auto": "noise", "tailored": "noise", "lsuv": "data"}
"""What a method is calibrated on where the user does not say otherwise; the others are not."""
