"""The weights of a model with what was measured at them, and which of them may be compared."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import nn

from mpelu.diagnostics.records import LayerRecord
from mpelu.graph import Example, Graph, Node
from mpelu.init.uses import Use, behind, read_uses, sums

MIXING = ("pool", "resize", "concat")
"""Kinds that change second moment, gradient norm and correlation by averaging or choosing, not by a weight."""
WIDE_POOL = 4
"""Positions that a 2x2 window makes one of. A pool over more, such as a global average, makes all inputs alike that
differ by details only, as noise does: that is no collapse of the layers before it."""
TINY = 1e-300


@dataclass(frozen=True)
class Layer:
    """A weight that has values of its own, at its first call."""

    use: Use
    record: LayerRecord
    reads: LayerRecord | None
    """Of the node that it reads."""
    weight_norm: float
    normalized: bool
    """A normalization reads its output and nothing else does: its scale has no effect."""

    @property
    def name(self) -> str:
        return self.use.node.name

    @property
    def variance(self) -> float:
        """sigma^2 = fan_in E w^2: what it multiplies the second moment with, if what it reads is not correlated."""
        return self.weight_norm**2 / max(1, math.prod(self.use.shape)) * self.use.fans.fan_in

    @property
    def role(self) -> str:
        """Layers of one role have outputs of one size where all is well: the last of a branch brings its share only."""
        if self.use.head:
            return "head"
        if self.use.branch is None:
            return "trunk"
        return "last of a branch" if self.use.branch.last else "inside a branch"


@dataclass(frozen=True)
class Net:
    """What a verdict is made from."""

    records: tuple[LayerRecord, ...]
    graph: Graph
    model: nn.Module
    example: Example
    optimizer: torch.optim.Optimizer | None = None

    @cached_property
    def by_name(self) -> dict[str, LayerRecord]:
        return {record.name: record for record in self.records}

    @cached_property
    def residual(self) -> dict[int, int]:
        """Residual sums, each with the node that enters as its branch."""
        return sums(self.graph)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The weights that have values of their own, in execution order."""
        found = []
        for use in read_uses(self.graph, self.model):
            record = self.by_name.get(use.node.name)
            if record is None:
                continue
            reads = next(iter(self.before(use.node)), None)
            found.append(Layer(use, record, reads, self._weight_norm(use, record), self._normalized(use.node)))
        return tuple(found)

    @cached_property
    def normalized_branches(self) -> bool:
        """True where every branch has a normalization, so that a branch adds the same however large the trunk is."""
        return bool(self.residual) and all(self._has_norm(index, end) for index, end in self.residual.items())

    @cached_property
    def normalized(self) -> bool:
        """True where most layers but the head have a normalization directly behind them, or in each branch."""
        inner = [layer.normalized for layer in self.layers if not layer.use.head]
        return self.normalized_branches or (len(inner) > 0 and 2 * sum(inner) > len(inner))

    @cached_property
    def mixed(self) -> list[int]:
        """For every node, how many nodes of kinds :data:`MIXING` stand on the longest way to it."""
        return self._counted(lambda node: node.kind in MIXING)

    @cached_property
    def pooled(self) -> list[int]:
        """For every node, how many wide pools stand on the longest way to it: see :data:`WIDE_POOL`."""

        def wide(node: Node) -> bool:
            return node.kind == "pool" and any(
                _positions(self.graph.nodes[index]) > WIDE_POOL * _positions(node) for index in node.inputs
            )

        return self._counted(wide)

    def before(self, node: Node) -> list[LayerRecord]:
        """Return the records of what a node reads; of a node without a record, of what that reads."""
        found, waiting = [], [*node.inputs]
        while waiting:
            read = self.graph.nodes[waiting.pop(0)]
            if read.name in self.by_name:
                found.append(self.by_name[read.name])
            else:
                waiting.extend(read.inputs)
        return found

    def bias(self, layer: Layer) -> nn.Parameter | None:
        """Return the bias of a layer, None where it has none."""
        return None if layer.use.bias is None else dict(self.model.named_parameters()).get(layer.use.bias)

    def activation_before(self, layer: Layer) -> Node | None:
        """Return the activation that feeds a layer, None where something else does."""
        return layer.use.source if layer.use.source.kind == "activation" else None

    def maker(self, node: Node) -> Node:
        """Return the weight or normalization that makes the input of an activation; the activation where none does."""
        before = behind(self.graph, node.inputs[0])
        return before if before.kind in ("weight", "norm") else node

    def _weight_norm(self, use: Use, record: LayerRecord) -> float:
        if not use.behind.originals:
            return record.weight_norm or 0.0
        path, _, last = use.weight.rpartition(".")
        with torch.no_grad():
            return float(getattr(self.model.get_submodule(path), last).double().norm())

    def _normalized(self, node: Node) -> bool:
        readers = self.graph.readers(node.index)
        while len(readers) == 1 and readers[0].kind in ("shape", "pad", "scale", "dropout"):
            readers = self.graph.readers(readers[0].index)
        return len(readers) == 1 and readers[0].kind == "norm"

    def _has_norm(self, index: int, end: int) -> bool:
        """True where a normalization stands in the branch that ends at a node and enters a sum."""
        trunk = min(number for number in self.graph.nodes[index].inputs if number != end)
        waiting, seen = [end], {trunk}
        while waiting:
            number = waiting.pop()
            if number in seen or number < trunk:
                continue
            seen.add(number)
            if self.graph.nodes[number].kind == "norm":
                return True
            waiting.extend(self.graph.nodes[number].inputs)
        return False

    def _counted(self, counts: Callable[[Node], bool]) -> list[int]:
        found: list[int] = []
        for node in self.graph.nodes:
            found.append(max((found[index] for index in node.inputs), default=0) + counts(node))
        return found


def _positions(node: Node) -> int:
    return math.prod(node.shape[2:])


@dataclass(frozen=True)
class Drift:
    """How a number changes along layers of one role.

    Attributes:
        decades: log10 of the last over the first; what pools, resizing and concatenation do is left out.
        layers: Names of the layers, in the order in which the signal or the gradient meets them.
        steps: log10 of the factor between each and the next.
        span: Number of weights passed.
    """

    decades: float
    layers: tuple[str, ...]
    steps: tuple[float, ...]
    span: int

    @property
    def per_layer(self) -> float:
        """Factor from weight to weight."""
        return float(10 ** (self.decades / max(1, self.span)))

    @property
    def steady(self) -> float:
        """Share of the smaller half in the whole: 1/2 for a power of the depth, far less where it soon slows down."""
        middle = len(self.steps) // 2
        halves = sum(self.steps[:middle]), sum(self.steps[middle:])
        return min(half / self.decades for half in halves) if self.decades else 0.0

    @property
    def start(self) -> str:
        """The first layer that changes it by half of the mean step or more."""
        mean = self.decades / max(1, len(self.steps))
        at = next((at for at, step in enumerate(self.steps) if step * mean > 0 and abs(step) >= abs(mean) / 2), 0)
        return self.layers[at + 1]


def drift(net: Net, records: Sequence[LayerRecord], values: Sequence[float | None]) -> Drift | None:
    """Return how a number changes along records of one role; those at which it is not positive are left out.

    Args:
        net: That they are from.
        records: In the order in which it travels: the gradient goes backward.
        values: Of the number, at each.

    Returns:
        None for fewer than two numbers.
    """
    known = [
        (record, math.log10(value))
        for record, value in zip(records, values, strict=True)
        if value is not None and TINY < value < math.inf
    ]
    if len(known) < 2:
        return None
    steps = []
    for (before, old), (record, new) in pairwise(known):
        mixes = net.mixed[net.graph[record.name].index] != net.mixed[net.graph[before.name].index]
        steps.append(0.0 if mixes else new - old)
    names = tuple(record.name for record, _ in known)
    return Drift(
        decades=sum(steps),
        layers=names,
        steps=tuple(steps),
        span=abs(known[-1][0].depth - known[0][0].depth),
    )
