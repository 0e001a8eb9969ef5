"""Along which dim the channels of an activation lie: as the layer says that makes its input."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from mpelu.graph import Graph, Node
from mpelu.graph.calls import Value, leaves, replaced

LAST = ("linear", "bilinear", "matmul", "rmatmul", "mm", "mv", "bmm", "inner", "addmm", "addbmm", "baddbmm")
"""Products whose results lie in the last dim where the weight stands on the right."""
SECOND = ("batch_norm", "instance_norm", "group_norm", "local_response_norm")
PASSING = ("sum", "product", "concat", "pad", "pool", "dropout", "resize", "scale", "activation", "softmax", "norm")
"""Kinds that leave the channels where they are, if the number of dims stays."""


def channel_dim(graph: Graph, node: Node) -> tuple[int, str]:
    """Return the dim of the channels of an activation's input, and who says so.

    - The dim along which the activation itself has parameters (PReLU).
    - Of two dims, the second.
    - As the nearest layer before it has it: dim 1 behind convolutions and behind batch, group and instance norms, the
      last dim behind linear and recurrent layers, embeddings, attention and layer norms; followed through sums,
      poolings, and through transpositions and reshapes that keep the channels in one dim.
    - Where nothing says it: the last of three dims, else dim 1.
    """
    dims = len(node.shape)
    if "channel_dim" in node.options:
        return node.options["channel_dim"], "its own parameters"
    if dims <= 2:
        return 1, "two dims"
    found = next(_saying(graph, graph.nodes[node.inputs[0]], set()), None)
    return found if found is not None else (2 if dims == 3 else 1, "no layer says it")


def _saying(graph: Graph, node: Node, seen: set[int]) -> Iterator[tuple[int, str]]:
    """Yield the dim of the channels in the output of a node, and the name of the layer, as each path to it says."""
    if node.index in seen:
        return
    seen.add(node.index)
    said = _said(node)
    if said is not None:
        yield said % len(node.shape), node.name
        return
    for index in node.inputs:
        before = graph.nodes[index]
        if node.kind == "shape":
            for dim, name in _saying(graph, before, seen):
                moved = _moved(graph, node, before, dim)
                if moved is not None:
                    yield moved, name
        elif node.kind in PASSING and len(before.shape) == len(node.shape):
            yield from _saying(graph, before, seen)


def _said(node: Node) -> int | None:
    """Return the dim of the channels that a layer makes; None where it makes none."""
    spatial = re.match(r"conv(?:_transpose)?([123])d", node.op)
    if node.kind == "weight" and spatial is not None:
        return -1 - int(spatial[1])
    if node.kind == "weight" and node.op in LAST:
        return -2 if node.options.get("side") == "left" and len(node.shape) > 1 else -1
    if node.kind in ("embedding", "recurrent", "attention"):
        return -1
    if node.kind == "norm" and node.op in SECOND:
        return 1
    if node.kind == "norm" and "normalized_shape" in node.options:
        return -len(node.options["normalized_shape"])
    if node.kind in ("activation", "scale") and "channel_dim" in node.options:
        dim: int = node.options["channel_dim"]
        return dim
    return None


def _moved(graph: Graph, node: Node, before: Node, dim: int) -> int | None:
    """Return where a step that only moves entries puts a dim: it is made with the positions along that dim."""
    call = graph.trace.calls[node.calls[-1]]
    if call.synthetic or len(call.tensors) != 1 or call.tensors[0].shape != before.shape:
        return None
    marks = torch.arange(float(before.shape[dim])).view(-1, *[1] * (len(before.shape) - dim - 1))
    marks = marks.expand(before.shape).contiguous()
    args, kwargs = replaced((call.args, call.kwargs), Value, lambda _: marks)
    moved: Tensor = leaves(call.function(*args, **kwargs), Tensor)[node.options.get("output", 0)]
    along = [axis for axis in range(moved.dim()) if moved.shape[axis] > 1 and bool((moved.diff(dim=axis) != 0).any())]
    return along[0] if len(along) == 1 else None
