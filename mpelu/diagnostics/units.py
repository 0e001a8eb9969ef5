"""Which dim of a value is that of the channels or units, and how deep a node lies."""

import math
from collections.abc import Mapping
from typing import Any

from mpelu.graph import CARRIERS, Graph, Node
from mpelu.init.fans import CONVOLUTIONS, TRANSPOSED
from mpelu.init.signal import unit_of

SWAPS = frozenset({"transpose", "swapaxes", "swapdims"})
FLIPS = frozenset({"t", "T", "mT", "H", "mH", "adjoint"})


def unit_dims(graph: Graph) -> list[int]:
    """Return for each node the dim of its channels or units, counted from the left; -1 where there is none.

    A weight has it where its rows are: dim 1 for convolutions, the last one for matrices. From there it is followed
    forward, through permutations too, and backward to what a weight or normalization reads. Where nothing is known, it
    is dim 1 of images (4 dims and more), else the last one. The batch is dim 0.
    """
    found: list[int | None] = [None] * len(graph.nodes)
    for node in graph.nodes:
        found[node.index] = _own(node)
        if found[node.index] is None and node.inputs:
            found[node.index] = _passed(graph, node, found)
    for node in reversed(graph.nodes):
        for index in node.inputs:
            if found[index] is None:
                found[index] = _wanted(graph, node, index, found[node.index])
    return [_sound(node, found[node.index]) for node in graph.nodes]


def depths(graph: Graph) -> list[int]:
    """Return for each node the number of weights on the longest path from an input to it, its own included."""
    found: list[int] = []
    for node in graph.nodes:
        before = max((found[index] for index in node.inputs), default=0)
        found.append(before + (node.kind in CARRIERS))
    return found


def _own(node: Node) -> int | None:
    """Return the dim that the node itself says, None where it says nothing."""
    dims = len(node.shape)
    if node.kind == "weight":
        return dims + unit_of(node)
    if node.kind in ("attention", "recurrent", "embedding"):
        return dims - 1
    if node.kind == "norm":
        return _normed(node)
    if node.kind in ("activation", "scale") and node.parameters and "channel_dim" in node.options:
        return int(node.options["channel_dim"]) % dims if dims else None
    return None


def _normed(node: Node) -> int | None:
    if node.op in ("layer_norm", "rms_norm"):
        return len(node.shape) - 1
    return 1 if node.op in ("batch_norm", "instance_norm", "group_norm", "local_response_norm") else None


def _passed(graph: Graph, node: Node, found: list[int | None]) -> int | None:
    """Return the dim as it comes from what a node reads."""
    index = next((item for item in node.inputs if graph.nodes[item].kind != "constant"), node.inputs[0])
    unit, old, new = found[index], graph.nodes[index].shape, node.shape
    if unit is None or node.kind == "opaque":
        return None
    if node.op in SWAPS | FLIPS | {"permute", "movedim", "moveaxis"}:
        order = _order(node.op, node.options, len(old))
        return order.index(unit) if order is not None and unit in order else None
    if len(old) == len(new):
        return unit
    if node.kind == "pool" and unit < len(old):
        dim = node.options.get("dim")
        gone = [dim] if isinstance(dim, int) else list(dim or ())
        before = sum(int(item) % len(old) < unit for item in gone)
        return unit - before
    # what is flattened from an image has units for channels and positions; the last dim stays the last one
    return (
        len(new) - 1
        if len(new) <= 2 or unit == len(old) - 1
        else (unit if old[: unit + 1] == new[: unit + 1] else None)
    )


def _order(op: str, options: Mapping[str, Any], dims: int) -> list[int] | None:
    """Return which old dim stands at each new place; None where that is not known."""
    order = list(range(dims))
    if op in FLIPS:
        first, second = dims - 2, dims - 1
    elif op in SWAPS:
        pair = [options.get("dim0", options.get("axis0")), options.get("dim1", options.get("axis1"))]
        if None in pair:
            return None
        first, second = (int(item) % dims for item in pair if item is not None)
    else:
        dims_given = options.get("dims")
        return [int(item) % dims for item in dims_given] if op == "permute" and dims_given else None
    order[first], order[second] = order[second], order[first]
    return order


def _wanted(graph: Graph, node: Node, index: int, own: int | None) -> int | None:
    """Return the dim of what a node reads, from how the node reads it."""
    shape = graph.nodes[index].shape
    if node.kind == "weight":
        return len(shape) - 1 - (CONVOLUTIONS | TRANSPOSED).get(node.op, 0)
    return own if len(shape) == len(node.shape) and node.op not in SWAPS | FLIPS | {"permute"} else None


def _sound(node: Node, unit: int | None) -> int:
    dims = len(node.shape)
    if dims < 2 or not math.prod(node.shape):
        return -1
    if unit is None:
        unit = 1 if dims > 3 else dims - 1
    return unit if 0 < unit < dims else -1
