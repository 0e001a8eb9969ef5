"""What mean field predicts behind each node, from the input on, with the variances that the weights have."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mpelu.diagnostics.measure import Measured
from mpelu.diagnostics.spread import Expansion, Matrix, Sources, Vector, expansion, matrix, sampled
from mpelu.errors import MpeluError
from mpelu.graph import Graph, Node
from mpelu.init.fans import CONVOLUTIONS, TRANSPOSED
from mpelu.init.laws import Laws
from mpelu.init.signal import Gaussian, Signal, multiplied, reach
from mpelu.init.starts import Norms
from mpelu.init.uses import Use, read_uses

LOST = ("attention", "recurrent", "embedding", "opaque", "softmax")
"""Kinds without a law: the prediction starts anew behind them, from what was measured."""
KEPT = 1e-3
"""Relative deviation that every weight and normalization adds: rounding, and means that are taken apart."""
LARGEST = 0.1
"""Relative deviation of the law for maxima, which takes all entries of a window to be alike."""
NORMAL = 0.05
"""Relative deviation where a law takes for Gaussian what is not quite."""


@dataclass
class Expected:
    """The signal at a node, and how far it may be off.

    Attributes:
        signal: As the laws of initialization have it; None where nothing is predicted.
        square: Relative deviation of the second moment.
        mean: Deviation of the mean, over the root of the second moment.
        correlation: Standard error of the correlation.
        spots: Share of the sampling deviation that averaging over positions leaves.
        started: True where it was measured.
    """

    signal: Signal | None
    square: Vector
    mean: Vector
    correlation: float = 0.0
    spots: float = 1.0
    started: bool = False


class Forward:
    """The prediction of second moments and correlations; the work is done when it is made.

    Attributes:
        expected: For each node.
        matrices: By the index of each call of a weight that is understood.
        uses: The same for what is known of the call.
        expansions: By the index of each activation.
        restarts: Names of the nodes where it started anew, inputs left out.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, measured: Mapping[int, Measured], units: Sequence[int], sources: Sources
    ) -> None:
        self._model, self._graph, self._measured, self._units = model, graph, measured, units
        self.sources = sources
        self._gaussian = Gaussian()
        norms = Norms(graph, model, zero=False, skipped=lambda name: True)  # noqa: ARG005
        self._laws = Laws(graph, model, self._gaussian, norms)
        self.uses: dict[int, Use] = {node.index: use for use in read_uses(graph, model) for node in use.calls}
        self._of: dict[str, Matrix] = {}
        self.matrices: dict[int, Matrix] = {}
        self.expansions: dict[int, Expansion] = {}
        self.restarts: list[str] = []
        self.expected: list[Expected] = []
        for node in graph.nodes:
            self.expected.append(self._behind(node))

    def _behind(self, node: Node) -> Expected:
        before = [self.expected[index] for index in node.inputs]
        if node.kind in ("input", *LOST) or any(part.signal is None for part in before):
            return self._restart(node)
        try:
            if node.kind == "weight":
                return self._multiplied(node, before)
            return self._by_law(node, before)
        except (MpeluError, ValueError, OverflowError, ZeroDivisionError):  # moments that are infinite, or not finite
            return self._restart(node)

    def _restart(self, node: Node) -> Expected:
        """Start from what was measured; where nothing was, there is no prediction."""
        found, zero = self._measured.get(node.index), self.sources.none()
        if node.kind != "input" and node.inputs:
            self.restarts.append(node.name)
        if found is None or not math.isfinite(found.second_moment) or not math.isfinite(found.mean):
            return Expected(None, zero, zero)
        unit = self._units[node.index]
        signal = Signal(
            mean=found.mean,
            second_moment=found.second_moment,
            within=found.within if len(node.shape) > 2 else 0.0,
            across=found.correlation,
            unit=unit - len(node.shape) if unit > 0 else None,
            origins=1 << node.index,
            names=1 << node.index,
        )
        return Expected(signal, zero, zero, started=True)

    def _by_law(self, node: Node, before: Sequence[Expected]) -> Expected:
        signals = [part.signal or Signal() for part in self.expected]
        found = self._laws.behind(node, signals)
        fixed = node.kind == "norm" and False in (node.options.get("training"), node.options.get("use_input_stats"))
        if fixed or found.assumed or found.unknown or not math.isfinite(found.second_moment):
            return self._restart(node)
        return PASSED_ON.get(node.kind, _scaled)(self, node, before, found)

    def _multiplied(self, node: Node, before: Sequence[Expected]) -> Expected:
        use = self.uses.get(node.index)
        if use is None or len(before) > 1:
            return self._restart(node)
        of = self._matrix(use)
        self.matrices[node.index] = of
        (part,) = before
        reads = part.signal
        assert reads is not None
        q, mean = reads.second_moment, reads.mean
        seen = q + (of.row_square - 1) * mean**2  # what rows with these sums make of the mean
        if not seen > 0:
            return self._restart(node)

        def joint(correlation: float | None) -> float | None:
            return None if correlation is None else (q * correlation + (of.row_square - 1) * mean**2) / seen

        shown = replace(
            reads,
            mean=mean * math.sqrt(of.row_square),
            second_moment=seen,
            within=joint(reads.within),
            across=joint(reads.across),
        )
        reached = reach(self._graph, node, use.shape, use.fans.fan_in, shown)
        found = multiplied(node, shown, reached, std=math.sqrt(of.square), bias_std=math.sqrt(of.bias_square))
        total = found.second_moment + 2 * mean * of.with_bias
        if not total > 0 or not math.isfinite(total):
            return self._restart(node)
        share = min(1.0, reached.fan_in * of.square * seen / total)
        found = replace(
            found,
            mean=mean * of.row_mean + of.bias_mean,
            second_moment=total,
            origins=1 << node.index,
            names=1 << use.node.index,
        )
        spots = self._spots(node, use, found)
        averaged = self.averaged(node) * spots
        # what a kernel reads lies in fewer directions than it has taps: then an orthogonal one is like any other
        kernel = max(of.forward, 2 / of.units) if math.prod(use.shape[2:]) > 1 else of.forward
        own = KEPT**2 + share**2 * kernel * averaged + 4 * share * (1 - share) / of.units * averaged
        passed = (q * part.square + 2 * (of.row_square - 1) * mean * math.sqrt(q) * part.mean) / seen
        return Expected(
            found,
            square=share * passed + self.sources.one(math.sqrt(own)),
            mean=self.sources.none(),
            correlation=self._of_correlation(node, found, share * q / seen * part.correlation, spots),
            spots=spots,
        )

    def _matrix(self, use: Use) -> Matrix:
        if use.weight not in self._of:
            path, _, last = use.weight.rpartition(".")
            weight = getattr(self._model.get_submodule(path), last).detach()
            bias = None if use.bias is None else self._model.get_parameter(use.bias)
            rows = _as_rows(use, weight)
            self._of[use.weight] = matrix(rows, bias, groups=use.groups if use.node.op in CONVOLUTIONS else 1)
        return self._of[use.weight]

    def averaged(self, node: Node) -> float:
        """Return the share of a sampling deviation that averaging over examples leaves: (1 + (N - 1) c^2) / N."""
        count = max(1, node.shape[0]) if len(node.shape) > 1 else 1
        return 1 / count + (1 - 1 / count) * self.alike(node) ** 2

    def alike(self, node: Node) -> float:
        """Return the root mean square of the cosines of pairs of examples: as measured, or predicted, or else 1."""
        found = self._measured.get(node.index)
        if found is not None and found.cosines is not None:
            return min(1.0, found.cosines)
        signal = self.expected[node.index].signal if node.index < len(self.expected) else None
        return 1.0 if signal is None or signal.across is None else min(1.0, abs(signal.across))

    def _spots(self, node: Node, use: Use, found: Signal) -> float:
        """Return what averaging over positions leaves; those within reach of a kernel count as one."""
        sides = (CONVOLUTIONS | TRANSPOSED).get(node.op, 0)
        positions = math.prod(node.shape[-sides:]) if sides else 1
        if positions < 2 or found.within is None:
            return 1.0
        return min(1.0, math.prod(use.shape[2:]) / positions + max(0.0, found.within))

    def _of_correlation(self, node: Node, found: Signal, passed: float, spots: float, kurtosis: float = 1.0) -> float:
        """Return the standard error of a correlation, sampled over units, behind a node that passes on so much."""
        if found.across is None:
            return 0.0
        c, count = min(1.0, abs(found.across)), max(2, min(16, node.shape[0]))
        unit = self._units[node.index]
        units = node.shape[unit] if unit > 0 else 1
        pairs = count * (count - 1) / 2
        own = (1 - c**2) ** 2 * (1 / pairs + (1 - 1 / pairs) * c) * max(spots, units / 256) * kurtosis / units
        return math.hypot(passed, math.sqrt(own))


def _as_rows(use: Use, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight with dim 0 for the outputs, where that is known; else as it is."""
    weight = weight.reshape(use.shape) if weight.numel() == math.prod(use.shape) else weight
    if use.node.op in TRANSPOSED and use.groups == 1:
        return weight.transpose(0, 1)
    if use.node.op == "matmul" and weight.dim() == 2 and use.node.options.get("side") != "left":
        return weight.T
    return weight if weight.dim() > 1 else weight[None]


def _scaled(forward: Forward, node: Node, before: Sequence[Expected], found: Signal) -> Expected:  # noqa: ARG001
    """Pass on relative deviations as they are."""
    first = max(before, key=lambda part: part.signal.second_moment if part.signal else 0.0) if before else None
    if first is None:
        return Expected(found, forward.sources.none(), forward.sources.none())
    return Expected(found, first.square, first.mean, first.correlation, first.spots)


def _pooled(forward: Forward, node: Node, before: Sequence[Expected], found: Signal) -> Expected:
    """Add that of the correlation between positions, which the average depends on, or of the law for maxima."""
    result = _scaled(forward, node, before, found)
    signal = before[0].signal
    assert signal is not None
    ratio = found.second_moment / signal.second_moment if signal.second_moment else 1.0
    unit = forward.expected and node.shape[1] if len(node.shape) > 1 else 1
    own = LARGEST
    if node.options.get("mode") == "avg" and ratio:
        own = max(NORMAL, (1 - min(1.0, signal.within or 0.0) ** 2) / math.sqrt(unit or 1) / ratio)
    return replace(result, square=result.square + forward.sources.one(own), spots=1.0)


def _activated(forward: Forward, node: Node, before: Sequence[Expected], found: Signal) -> Expected:
    (part,) = before
    signal = part.signal
    assert signal is not None
    q, variance = signal.second_moment, signal.variance
    if variance <= 1e-12 * q or not found.second_moment > 0:
        return Expected(found, part.square, part.mean, part.correlation, part.spots)
    of = expansion(forward._gaussian.function(node), mean=signal.mean, variance=variance)
    forward.expansions[node.index] = of
    shift = math.sqrt(q) * part.mean
    moved = q * part.square - 2 * signal.mean * shift  # of the variance
    by_variance, by_mean = math.sqrt(2) * variance, math.sqrt(variance)
    unit = forward._units[node.index]
    units = node.shape[unit] if unit > 0 else 1
    reader = forward._graph.nodes[node.inputs[0]]
    alike = forward.alike(reader)
    count = max(1, node.shape[0]) if len(node.shape) > 1 else 1
    square, own, cross = (
        sampled(squares, alike=alike, examples=count) * part.spots / units
        for squares in (of.residual, of.own, of.cross)
    )
    first = math.sqrt(max(0.0, square))
    lean = cross / first if first else 0.0
    noise, rest = forward.sources.one(1.0), forward.sources.one(math.sqrt(max(0.0, own - lean**2)))
    size = found.second_moment
    kurtosis = max(1.0, (of.residual.sum() / max(1e-300, of.square[0] ** 2)) / 3)
    return Expected(
        found,
        square=(of.square[2] / by_variance * moved + of.square[1] / by_mean * shift + first * noise) / size,
        mean=(of.value[2] / by_variance * moved + of.value[1] / by_mean * shift + lean * noise + rest)
        / math.sqrt(size),
        correlation=forward._of_correlation(
            node, found, _bend(of, signal, size) * part.correlation, part.spots, kurtosis
        ),
        spots=part.spots,
    )


def _bend(of: Expansion, signal: Signal, size: float) -> float:
    """Return the derivative of the correlation behind an activation by that before it."""
    c = signal.centered(signal.across)
    if c is None:
        return 0.0
    degrees = range(1, len(of.own))
    slope: float = sum(k * of.own[k] * c ** (k - 1) for k in degrees)
    return slope / size * signal.second_moment / signal.variance


def _normed(forward: Forward, node: Node, before: Sequence[Expected], found: Signal) -> Expected:
    (part,) = before
    signal = part.signal
    assert signal is not None
    eps = float(node.options.get("eps") or 0.0)
    left = max(signal.variance, 1e-300)
    square = part.square * (eps / (left + eps)) + forward.sources.one(KEPT)
    bent = signal.second_moment / left if node.op not in ("rms_norm", "normalize") else 1.0
    return Expected(found, square, part.mean * 0.0, min(1.0, part.correlation * bent), part.spots)


def _summed(forward: Forward, node: Node, before: Sequence[Expected], found: Signal) -> Expected:
    factors: Sequence[float] = node.options.get("coefficients", (1.0,) * len(before))
    square, mean = forward.sources.none(), forward.sources.none()
    variances = []
    errors = []
    for factor, part in zip(factors, before, strict=True):
        signal = part.signal
        assert signal is not None
        shift = factor * math.sqrt(signal.second_moment) * part.mean
        square = square + factor**2 * signal.second_moment * part.square - 2 * factor * signal.mean * shift
        square = square + 2 * found.mean * shift
        mean = mean + shift
        variances.append(factor**2 * signal.variance)
        errors.append(part.correlation * factor**2 * signal.second_moment)
    size = max(found.second_moment, 1e-300)
    unit = forward._units[node.index]
    units = node.shape[unit] if unit > 0 else 1
    spots = max(part.spots for part in before)
    crossed = 2 * math.sqrt(math.prod(variances[:2])) / size if len(variances) > 1 else 0.0
    own = crossed * math.sqrt(forward.averaged(node) * spots / units)
    return Expected(found, square / size + forward.sources.one(own), mean / math.sqrt(size), sum(errors) / size, spots)


def _concatenated(forward: Forward, node: Node, before: Sequence[Expected], found: Signal) -> Expected:
    sizes = [math.prod(forward._graph.nodes[index].shape) for index in node.inputs]
    square, mean = forward.sources.none(), forward.sources.none()
    size = max(found.second_moment, 1e-300)
    for entries, part in zip(sizes, before, strict=True):
        signal = part.signal
        assert signal is not None
        share = entries / sum(sizes)
        square = square + share * signal.second_moment / size * part.square
        mean = mean + share * math.sqrt(signal.second_moment / size) * part.mean
    return Expected(found, square, mean, max(part.correlation for part in before), max(part.spots for part in before))


def _combined(forward: Forward, node: Node, before: Sequence[Expected], found: Signal) -> Expected:  # noqa: ARG001
    square = sum((part.square for part in before), forward.sources.one(NORMAL))
    spots = max(part.spots for part in before)
    return Expected(found, square, before[0].mean, sum(part.correlation for part in before), spots)


PASSED_ON: dict[str, Callable[[Forward, Node, Sequence[Expected], Signal], Expected]] = {
    "activation": _activated,
    "scale": _activated,
    "norm": _normed,
    "sum": _summed,
    "concat": _concatenated,
    "product": _combined,
    "pool": _pooled,
    "resize": _pooled,
}
"""How deviations are passed on, by the kind of the node; other kinds leave them as they are."""
