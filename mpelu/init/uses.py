"""What a rule may know of a weight: who feeds it, where its output goes, and what it reads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mpelu.graph import Graph, Node
from mpelu.init.fans import CONVOLUTIONS, TRANSPOSED, Fans
from mpelu.init.parametrized import Weight, weight_of

TRANSPARENT = frozenset({"shape", "dropout", "pool", "pad", "resize", "scale"})
"""Kinds that stand between an activation and the weight it feeds without being its source."""

UNPOOLED = frozenset({"shape", "dropout", "pad"})
"""Those that leave the norm of a gradient as it is."""

MATRICES = {"linear": "Linear", "bilinear": "Bilinear", "matmul": "Matmul", "einsum": "Einsum"}
"""Operations on matrices that a rule fills, and how they are called in a table; convolutions come on top."""


@dataclass(frozen=True)
class Branch:
    """The place of a weight, or normalization, in a residual branch.

    Attributes:
        length: How many sums the trunk has.
        start: Index of the node whose value enters the first of these sums along the trunk.
        place: How many weights of the branch stand before it, itself included.
        size: The same of the last one.
        last: True for the last weight, or the normalization behind it: nothing but activations stands between it and
            the sum, and nothing else reads it.
    """

    length: int
    start: int
    place: int
    size: int
    last: bool


@dataclass(frozen=True)
class Use:
    """A weight and the call that reads it.

    Attributes:
        node: The call; of a weight that is read several times, the first one.
        weight: Name of the parameter, or of the parametrized weight.
        bias: Name of the parameter that is added, None where there is none.
        shape: Of the weight as the call reads it.
        groups: Of the convolution.
        fans: Nominal, without borders and strides.
        source: The node that feeds it, behind whatever is transparent.
        previous: The call of the weight whose output the feeding activation reads, where nothing but that activation
            stands between the two, or its index is -1.
        head: No weight, norm, activation or sum stands behind it.
        chained: It has a previous weight and a next activation, so that random biases do no harm.
        branch: Its place in a residual branch, None where it stands in none.
        calls: All nodes that read the weight.
        behind: How its values are held.
    """

    node: Node
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    groups: int
    fans: Fans
    source: Node
    previous: int
    head: bool
    chained: bool
    branch: Branch | None
    calls: tuple[Node, ...]
    behind: Weight

    @property
    def shared(self) -> int:
        """How many calls read the weight."""
        return len(self.calls)

    @property
    def plain(self) -> bool:
        """True where dim 0 of the parameter is that of the outputs and dim 1 that of what is read."""
        return (self.node.op in CONVOLUTIONS or self.node.op == "linear") and self.shape == self.behind.shape

    @property
    def layer(self) -> str:
        """The kind and size of the layer, for a table."""
        kernel, groups = "x".join(str(side) for side in self.shape[2:]), self.groups
        if self.node.op in TRANSPOSED:
            return f"ConvT {kernel}({self.shape[0]} -> {self.shape[1] * groups})"
        if self.node.op in CONVOLUTIONS:
            return f"Conv {kernel}({self.shape[1] * groups} -> {self.shape[0]})"
        if self.node.op == "bilinear":
            return f"Bilinear({self.shape[1]} x {self.shape[2]} -> {self.shape[0]})"
        return f"{MATRICES[self.node.op]}({int(self.fans.fan_in)} -> {int(self.fans.fan_out)})"


def fillable(node: Node) -> bool:
    """True for a call whose weight a rule fills."""
    if node.kind != "weight" or node.options.get("fixed"):
        return False
    if node.op == "einsum":
        return _einsum(node, ()) is not None
    return node.op in CONVOLUTIONS or node.op in TRANSPOSED or node.op in MATRICES


def behind(graph: Graph, index: int, through: frozenset[str] = TRANSPARENT) -> Node:
    """Return the node that feeds, found by walking back through the kinds given."""
    node = graph.nodes[index]
    while node.kind in through and node.inputs:
        node = graph.nodes[node.inputs[0]]
    return node


def next_kinds(graph: Graph, index: int) -> set[str]:
    """Return the kinds of the nodes that read a node, behind whatever is transparent."""
    kinds: set[str] = set()
    waiting, seen = [index], set()
    while waiting:
        for reader in graph.readers(waiting.pop()):
            if reader.kind not in TRANSPARENT:
                kinds.add(reader.kind)
            elif reader.index not in seen:
                seen.add(reader.index)
                waiting.append(reader.index)
    return kinds


def sums(graph: Graph) -> dict[int, int]:
    """Return the residual sums: the index of each, to that of the node which enters as its branch.

    A sum is residual where one of its inputs, the branch, has passed more weights than the other, the trunk: counted
    along the shortest way from an input of the model, which is that of the trunk. Where a weight that is read several
    times stands on either side, and the trunk has weights of its own in front of the sum, it is a step of a recurrent
    net and no residual sum.
    """
    depth: list[int] = []
    found: dict[int, int] = {}
    readers: dict[tuple[str, ...], int] = {}
    for node in graph.nodes:
        if node.kind == "weight":
            key = tuple(node.parameters.get("weight", ()))
            readers[key] = readers.get(key, 0) + 1
    for node in graph.nodes:
        before = [depth[index] for index in node.inputs if graph.nodes[index].kind != "constant"]
        own = node.kind in ("weight", "attention", "recurrent")
        depth.append(min(before, default=0) + own)
        if node.kind == "sum" and len(before) == 2 and before[0] != before[1]:
            sides = [behind(graph, index) for index in node.inputs]
            if all(side.kind == "weight" for side in sides) and any(
                readers[tuple(side.parameters.get("weight", ()))] > 1 for side in sides
            ):
                continue
            found[node.index] = node.inputs[before.index(max(before))]
    return found


def trunk_length(graph: Graph, residual: Mapping[int, int]) -> list[int]:
    """Return for every node how many residual sums stand on the longest way from an input to an output through it."""
    above, below = [0] * len(graph.nodes), [0] * len(graph.nodes)
    for node in graph.nodes:
        above[node.index] = max((above[index] for index in node.inputs), default=0) + (node.index in residual)
    for node in reversed(graph.nodes):
        below[node.index] = max(
            (below[reader.index] + (reader.index in residual) for reader in graph.readers(node.index)), default=0
        )
    return [up + down for up, down in zip(above, below, strict=True)]


def branches(graph: Graph) -> dict[int, Branch]:
    """Return the weights and normalizations in residual branches, by the index of their node."""
    residual = sums(graph)
    length = trunk_length(graph, residual)
    above: list[int] = []
    starts: dict[int, int] = {}
    found: dict[int, Branch] = {}
    for node in graph.nodes:
        above.append(1 << node.index)
        for index in node.inputs:
            above[-1] |= above[index]
        if node.index not in residual:
            continue
        end = residual[node.index]
        trunk = next(index for index in node.inputs if index != end)
        before = behind(graph, trunk, TRANSPARENT | {"activation", "norm"})
        starts[node.index] = starts.get(before.index, trunk)
        inside = [item for item in graph.nodes[: end + 1] if (above[end] & ~above[trunk]) >> item.index & 1]
        places: dict[int, int] = {}
        for item in inside:
            passed = max((places.get(index, 0) for index in item.inputs), default=0)
            places[item.index] = passed + (item.kind == "weight")
        last = _last(graph, end)
        for item in inside:
            if item.kind in ("weight", "norm") and item.index not in found:
                found[item.index] = Branch(
                    length[node.index], starts[node.index], places[item.index], places[end], item.index == last
                )
    return found


def _last(graph: Graph, index: int) -> int:
    """Return the last weight or normalization of a branch, -1 where something else reads it or what follows it."""
    node = graph.nodes[index]
    while len(graph.readers(node.index)) == 1:
        if node.kind in ("weight", "norm"):
            return node.index
        if node.kind not in TRANSPARENT | {"activation"} or not node.inputs:
            break
        node = graph.nodes[node.inputs[0]]
    return -1


def read_uses(graph: Graph, model: nn.Module) -> list[Use]:
    """Return every weight that a rule fills, in the order in which the calls are made; a shared one at its first call.

    Weights that the model computes are none, but for parametrizations that take the values which they are given; nor
    are tables of embeddings that a layer shares. :func:`mpelu.init.starts.reason` says why.
    """
    places = branches(graph)
    calls: dict[tuple[str, ...], list[Node]] = {}
    for node in graph.nodes:
        if fillable(node):
            calls.setdefault(tuple(node.parameters["weight"]), []).append(node)
    uses = []
    for nodes in calls.values():
        node = nodes[0]
        held = weight_of(graph, model, node)
        if held is None:
            continue
        previous = _previous(graph, node)
        head = graph.is_head(node.index)
        bias = node.parameters.get("bias", ())
        shape = tuple(node.options["weight_shape"])
        uses.append(
            Use(
                node=node,
                weight=held.name,
                bias=bias[0] if len(bias) == 1 else None,
                shape=shape,
                groups=int(node.options.get("groups", 1)),
                fans=_nominal(node, shape),
                source=behind(graph, node.inputs[0]),
                previous=previous,
                head=head,
                chained=previous >= 0 and not head and next_kinds(graph, node.index) == {"activation"},
                branch=places.get(node.index),
                calls=tuple(nodes),
                behind=held,
            )
        )
    return uses


def _nominal(node: Node, shape: tuple[int, ...]) -> Fans:
    taps, groups = math.prod(shape[2:]), int(node.options.get("groups", 1))
    if node.op in TRANSPOSED:
        return Fans(shape[0] // groups * taps, shape[1] * taps)
    if node.op in CONVOLUTIONS:
        return Fans(shape[1] * taps, shape[0] // groups * taps)
    if node.op == "bilinear":
        return Fans(shape[1] * shape[2], shape[0])
    if node.op == "matmul":
        rows, columns = shape[-2:] if len(shape) > 1 else (shape[0], 1)
        return Fans(columns, rows) if node.options.get("side") == "left" else Fans(rows, columns)
    if node.op == "einsum":
        found = _einsum(node, shape)
        assert found is not None
        return found
    return Fans(shape[1], shape[0])


def _einsum(node: Node, shape: tuple[int, ...]) -> Fans | None:
    """Return the fans of a weight in an einsum of two operands; None where a letter of the input alone is summed."""
    terms, arrow, result = str(node.options.get("equation", "")).replace(" ", "").partition("->")
    operands = terms.replace("...", "").split(",")
    if not arrow or len(operands) != 2:
        return None
    weight, other = operands if node.options.get("side") == "left" else reversed(operands)
    if len(set(weight)) != len(weight) or set(other) - set(weight) - set(result):
        return None
    sizes = dict(zip(weight, shape, strict=False))
    return Fans(
        math.prod(size for letter, size in sizes.items() if letter not in result),
        math.prod(size for letter, size in sizes.items() if letter not in other),
    )


def _previous(graph: Graph, node: Node) -> int:
    """Return the index of the weight's call behind one activation, -1 where something else stands between."""
    unit = behind(graph, node.inputs[0], UNPOOLED)
    if unit.kind != "activation":
        return -1
    before = behind(graph, unit.inputs[0], UNPOOLED)
    return before.index if fillable(before) and next_kinds(graph, before.index) == {"activation"} else -1
