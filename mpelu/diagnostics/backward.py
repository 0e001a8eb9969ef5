"""What mean field predicts for the norm of the gradient at each node, from the output back."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpelu.diagnostics.forward import KEPT, NORMAL, Forward
from mpelu.diagnostics.measure import Measured
from mpelu.diagnostics.spread import Vector
from mpelu.errors import MpeluError
from mpelu.graph import Graph, Node
from mpelu.init.fans import ADAPTIVE_AVERAGES, AVERAGES, CONVOLUTIONS, TRANSPOSED, propagate_profile_backward
from mpelu.init.pooling import reduced_dims
from mpelu.init.signal import relative

UNDER = (*CONVOLUTIONS, *TRANSPOSED, *AVERAGES, *ADAPTIVE_AVERAGES)
"""Operations along positions."""


@dataclass
class Returning:
    """The gradient at the output of a node.

    Attributes:
        square: Its squared norm; None where nothing is predicted.
        deviation: Relative deviation of that.
        profile: Mean squared gradient at each position over its mean; None where all are alike.
        started: True where it was measured.
    """

    square: float | None
    deviation: Vector
    profile: Tensor | None = None
    started: bool = False


class Backward:
    """The prediction of gradient norms; the work is done when it is made.

    Gradients that come from several readers are taken to be independent of each other, and of the values that they meet
    on their way.

    Attributes:
        returning: For each node.
        restarts: Names of the nodes where it started anew, outputs left out.
    """

    def __init__(self, graph: Graph, measured: Mapping[int, Measured], forward: Forward) -> None:
        self._graph, self._measured, self._forward = graph, measured, forward
        self.restarts: list[str] = []
        self._sent: list[list[Returning]] = [[] for _ in graph.nodes]
        self.returning: dict[int, Returning] = {}
        for node in reversed(graph.nodes):
            found = self._arrived(node)
            self.returning[node.index] = found
            for place, index in enumerate(node.inputs):
                self._sent[index].append(self._through(node, place, found))

    def _arrived(self, node: Node) -> Returning:
        parts = self._sent[node.index]
        self._sent[node.index] = []
        seen = self._measured.get(node.index)
        norm = None if seen is None else seen.gradient_norm
        if node.kind == "output" or not parts or any(part.square is None for part in parts):
            if parts and node.kind != "output":
                self.restarts.append(node.name)
            if norm is None or not math.isfinite(norm):
                return Returning(None, self._forward.sources.none())
            return Returning(norm**2, self._forward.sources.none(), started=True)
        if len(parts) == 1:
            return parts[0]
        total = sum(part.square or 0.0 for part in parts)
        if not total > 0:
            return Returning(total, parts[0].deviation)
        shares = [(part.square or 0.0) / total for part in parts]
        deviation = sum(
            (share * part.deviation for share, part in zip(shares, parts, strict=True)), 0.0 * parts[0].deviation
        )
        return Returning(total, deviation, _mixed(parts, shares))

    def _through(self, node: Node, place: int, found: Returning) -> Returning:
        """Return what a node sends to one of its inputs."""
        lost = Returning(None, self._forward.sources.none())
        law = LAWS.get(node.kind)
        if found.square is None or law is None:
            return lost
        try:
            sent = law(self, node, place, found)
        except (MpeluError, ValueError, OverflowError, ZeroDivisionError):
            return lost
        return lost if sent is None or not math.isfinite(sent.square or 0.0) else sent

    def alike(self, node: Node) -> float:
        """Return the correlation of the gradients of two examples, from their signal-to-noise ratio.

        With s that ratio and N examples, s = (1 / N + (1 - 1 / N) c) / (1 - c). It is known at some nodes; the next one
        that is read back from tells.
        """
        index: int | None = node.index
        while index is not None:
            seen = self._measured.get(index)
            if seen is not None and seen.gradient_snr is not None:
                count = min(16, node.shape[0])
                snr = seen.gradient_snr
                found = 1.0 if math.isinf(snr) else (snr - 1 / count) / (snr + 1 - 1 / count)
                return min(1.0, max(0.0, found))
            readers = self._graph.readers(index)
            index = readers[0].index if readers else None
        return 1.0


def _mixed(parts: Sequence[Returning], shares: Sequence[float]) -> Tensor | None:
    shapes = {tuple(part.profile.shape) for part in parts if part.profile is not None}
    if len(shapes) != 1:
        return None
    (shape,) = shapes
    flat = torch.ones(shape, dtype=torch.float64, device="cpu")
    profiles = [
        share * (flat if part.profile is None else part.profile) for share, part in zip(shares, parts, strict=True)
    ]
    return relative(torch.stack(profiles).sum(0))


def _examples(node: Node) -> int:
    return max(1, node.shape[0]) if len(node.shape) > 1 else 1


def _same(backward: Backward, node: Node, place: int, found: Returning) -> Returning:  # noqa: ARG001
    return found


def _shaped(backward: Backward, node: Node, place: int, found: Returning) -> Returning:
    old = backward._graph.nodes[node.inputs[place]].shape
    return Returning(found.square, found.deviation, found.profile if old == node.shape else None)


def _multiplied(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:  # noqa: ARG001
    of, use = backward._forward.matrices.get(node.index), backward._forward.uses.get(node.index)
    if of is None or use is None or found.square is None:
        return None
    old, sides = backward._graph.nodes[node.inputs[0]].shape, (CONVOLUTIONS | TRANSPOSED).get(node.op, 0)
    profile = None
    if sides:
        behind = _along(found.profile, node.shape[-sides:])
        before = propagate_profile_backward(
            behind, node.op, input_shape=old, weight_shape=use.shape, options=node.options
        )
        factor, profile = before.mean().item() * math.prod(old) / math.prod(node.shape), relative(before)
    else:
        factor = use.fans.fan_in
    c, count, kernel = backward.alike(node), _examples(node), math.prod(use.shape[2:]) > 1
    own = KEPT**2 + max(of.backward, 2 / old[1] if kernel else 0.0) * (1 / count + (1 - 1 / count) * c**2)
    deviation = found.deviation + backward._forward.sources.one(math.sqrt(own))
    return Returning(found.square * factor * of.square, deviation, profile)


def _along(profile: Tensor | None, shape: Sequence[int]) -> Tensor:
    if profile is not None and tuple(profile.shape) == tuple(shape):
        return profile
    return torch.ones(tuple(shape), dtype=torch.float64, device="cpu")


def _activated(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:  # noqa: ARG001
    of, part = backward._forward.expansions.get(node.index), backward._forward.expected[node.inputs[0]]
    if of is None or part.signal is None or found.square is None or not of.slope[0] > 0:
        return None
    q, variance = part.signal.second_moment, part.signal.variance
    shift = math.sqrt(q) * part.mean
    moved = q * part.square - 2 * part.signal.mean * shift
    passed = (of.slope[2] / (math.sqrt(2) * variance) * moved + of.slope[1] / math.sqrt(variance) * shift) / of.slope[0]
    unit, count = backward._forward._units[node.index], _examples(node)
    units = node.shape[unit] if unit > 0 else 1
    alike = backward._forward.alike(backward._graph.nodes[node.inputs[0]])
    spread = of.slope_kurtosis - 1
    both = (1 + 2 * backward.alike(node) ** 2) * alike
    own = spread * (3 / count + (1 - 1 / count) * both) / units * part.spots
    deviation = found.deviation + passed + backward._forward.sources.one(math.sqrt(max(0.0, own)))
    largest = [_window(reader) for reader in backward._graph.readers(node.index)]
    # behind a maximum, gradients come back to the largest entries only
    slope = of.slope_of_largest(min(largest)) if min(largest) > 1 else float(of.slope[0])
    return Returning(found.square * slope, deviation, found.profile)


def _window(node: Node) -> int:
    """Return how many entries a pooling takes the largest of; 1 for anything else."""
    if node.kind != "pool" or node.options.get("mode") != "max":
        return 1
    return math.prod(node.options.get("kernel_size", (1,)))


def _normed(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:
    """Divide by the standard deviation; what goes along the mean and the value itself is taken off."""
    part = backward._forward.expected[node.inputs[0]]
    if place or part.signal is None or found.square is None or backward._forward.expected[node.index].started:
        return None
    if node.op not in ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"):
        return None
    signal = part.signal
    centred = node.op != "rms_norm"
    if node.op == "batch_norm" and signal.across is not None:
        left = signal.second_moment * (1 - max(signal.across, 0.0) if signal.variance else 1.0)
        left = max(left, 0.0) if _examples(node) > 1 else signal.variance
    else:
        left = signal.variance if centred else signal.second_moment
    factor, _, _ = backward._forward._laws.norms.affine(node)
    scale = left + float(node.options.get("eps") or 0.0)
    if not scale > 0:
        return None
    entries = math.prod(node.shape) / (
        node.shape[1] if node.op == "batch_norm" and len(node.shape) > 1 else node.shape[0]
    )
    kept = max(0.0, 1 - (1 + centred) / entries)
    reader = backward._graph.nodes[node.inputs[0]]
    uneven = 2 * backward._forward.averaged(reader) * part.spots if node.op == "batch_norm" else 0.0
    deviation = (
        found.deviation - part.square * (left / scale) + backward._forward.sources.one(min(1.0, uneven) + NORMAL / 5)
    )
    return Returning(found.square * factor / scale * kept, deviation, found.profile)


def _summed(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:
    factors: Sequence[float] = node.options.get("coefficients", (1.0,) * len(node.inputs))
    if found.square is None or len(set(node.inputs)) < len(node.inputs):
        return None
    sent = _shaped(backward, node, place, found)
    return Returning(factors[place] ** 2 * found.square, sent.deviation, sent.profile)


def _shared(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:
    """Give each part of a concatenation as much as it has entries."""
    if found.square is None:
        return None
    sizes = [math.prod(backward._graph.nodes[index].shape) for index in node.inputs]
    return Returning(found.square * sizes[place] / sum(sizes), found.deviation, found.profile)


def _factored(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:
    """Multiply with the other factor of a product."""
    if node.op != "mul" or len(set(node.inputs)) != 2 or found.square is None:
        return None
    other = backward._forward.expected[node.inputs[1 - place]]
    if other.signal is None:
        return None
    deviation = found.deviation + other.square + backward._forward.sources.one(NORMAL)
    return Returning(found.square * other.signal.second_moment, deviation)


def _dropped(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:  # noqa: ARG001
    p = node.options.get("p")
    if found.square is None or p is None or "alpha" in node.op or not 0.0 <= float(p) < 1.0:
        return None
    kept = 1.0 - float(p)
    factor = 1 / kept if node.options.get("scaled", True) else kept
    return Returning(found.square * factor, found.deviation, found.profile)


def _padded(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:
    if found.square is None:
        return None
    old = backward._graph.nodes[node.inputs[place]].shape
    inside = math.prod(old) / math.prod(node.shape) if node.options.get("mode", "constant") == "constant" else 1.0
    return Returning(found.square * inside, found.deviation)


def _pooled(backward: Backward, node: Node, place: int, found: Returning) -> Returning | None:
    old = backward._graph.nodes[node.inputs[place]].shape
    if found.square is None:
        return None
    if node.op in ("mean", "sum"):
        count = math.prod(old[dim] for dim in reduced_dims(node, old))
        return Returning(found.square * (count if node.op == "sum" else 1 / count), found.deviation)
    if node.op in AVERAGES or node.op in ADAPTIVE_AVERAGES:
        sides = (AVERAGES | ADAPTIVE_AVERAGES)[node.op]
        behind = _along(found.profile, node.shape[-sides:])
        before = propagate_profile_backward(behind, node.op, input_shape=old, options=node.options)
        factor = before.mean().item() * math.prod(old) / math.prod(node.shape)
        return Returning(found.square * factor, found.deviation, relative(before))
    if node.options.get("mode") == "max":
        return Returning(found.square, found.deviation + backward._forward.sources.one(NORMAL))
    return None


LAWS: dict[str, Callable[[Backward, Node, int, Returning], Returning | None]] = {
    "activation": _activated,
    "scale": _activated,
    "weight": _multiplied,
    "norm": _normed,
    "sum": _summed,
    "concat": _shared,
    "product": _factored,
    "dropout": _dropped,
    "pad": _padded,
    "pool": _pooled,
    "shape": _shaped,
    "output": _same,
}
"""What a node sends back, by its kind; of others that is not known."""
