"""What a plan expects behind every node that carries no weight: a law for each kind, in mean field.

Where there is none (attention, recurrence, tables), what stands in for it is an assumption, and the signal names the
node from there on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from mpelu.errors import UsageError
from mpelu.graph import Graph, Node
from mpelu.init.fans import propagate_profile
from mpelu.init.joining import combined, concatenated, first, summed
from mpelu.init.pooling import pooled, resized
from mpelu.init.signal import Gaussian, Signal, activated, profile_of, relative
from mpelu.init.starts import Norms

PERMUTING = frozenset(
    {"transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "H", "mH", "adjoint"}
)
"""Shape operations that give units and positions other dims."""
UNCHANGED = ("expand", "expand_as", "repeat", "view", "reshape", "unsqueeze", "squeeze")
"""What may be done to a parameter without its moments changing."""
UNCENTERED = ("rms_norm", "normalize")
"""Normalizations that leave the mean."""
SELU_SATURATION = -1.7580993408473766
"""What alpha dropout puts in the place of an entry: the limit of SELU at minus infinity."""


@dataclass(frozen=True)
class Laws:
    """The laws for one model.

    Attributes:
        graph: The model as a graph.
        model: The model.
        gaussian: Moments of its activations.
        norms: Its normalizations, with what their factors and shifts start as.
        reasons: Why the law of a node failed, by its name.
    """

    graph: Graph
    model: nn.Module
    gaussian: Gaussian
    norms: Norms
    reasons: dict[str, str] = field(default_factory=dict)

    def behind(self, node: Node, signals: Sequence[Signal]) -> Signal:
        """Return the signal behind a node, from those of all nodes before it."""
        before = [signals[index] for index in node.inputs]
        if node.kind == "norm":
            found = _normalized(node, before[0], self.norms.affine(node))
        else:
            found = LAWS.get(node.kind, _unknown)(self, node, before)
        if not node.inputs or node.kind in ("attention", "recurrent", "embedding", "opaque"):
            return replace(found, origins=1 << node.index, names=1 << node.index)
        origins, names = _all(before)
        return replace(found, origins=origins, names=names)


def _all(signals: Sequence[Signal]) -> tuple[int, int]:
    """Return the origins and names of signals together."""
    origins = names = 0
    for signal in signals:
        origins, names = origins | signal.origins, names | signal.names
    return origins, names


def _activated(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:
    try:
        return activated(node, before[0], laws.gaussian)
    except UsageError as error:  # infinite moments, or parameters without values: only who reads it has to care
        laws.reasons[node.name] = str(error)
        return replace(_unknown(laws, node, before), unknown=node.name)


def _pooled(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:
    return pooled(laws.graph, node, before[0], laws.gaussian)


def _resized(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:
    return resized(laws.graph, node, before[0])


def _summed(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:  # noqa: ARG001
    return summed(node, before)


def _concatenated(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:
    found = concatenated(laws.graph, node, before)
    return _assumed(laws, node, before) if found is None else found


def _combined(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:
    return combined(laws.graph, node, before)


def _shaped(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:
    """Leave the values as they are; positions and units may have changed places."""
    old, new = laws.graph.nodes[node.inputs[0]].shape, node.shape
    signal = replace(before[0], profile=before[0].profile if old == new and node.op not in PERMUTING else None)
    if len(old) == len(new) and node.op not in PERMUTING:
        return signal
    if len(new) <= 2:
        return replace(signal, unit=-1, within=None)
    if len(old) <= 2:  # what were units are positions now: they share the mean alone
        alike = signal.mean**2 / signal.second_moment if signal.second_moment else None
        return replace(signal, unit=1 - len(new), within=alike)
    return replace(signal, unit=None, within=0.0 if signal.within == 0.0 and signal.mean == 0.0 else None)


def _same(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:  # noqa: ARG001
    return before[0]


def _assumed(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:  # noqa: ARG001
    """Assume that mean and second moment stay."""
    return _guessed(node, before[0] if before else Signal())


def _guessed(node: Node, signal: Signal) -> Signal:
    assumed = signal.assumed or node.name
    return replace(signal, within=None, across=None, normal=False, source=None, profile=None, assumed=assumed)


def _unknown(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:  # noqa: ARG001
    unknown = node.name if node.kind == "opaque" else first(part.unknown for part in before)
    return Signal(within=None, across=None, normal=False, assumed=node.name, unknown=unknown)


def _normalized(node: Node, signal: Signal, affine: tuple[float, float, float]) -> Signal:
    """Return the signal behind a normalization, whose factors and shifts have these moments."""
    if node.op == "local_response_norm":
        return _guessed(node, signal)
    if False in (node.options.get("training"), node.options.get("use_input_stats")):
        return _fixed(signal, affine)
    if signal.assumed:  # whatever comes in, it goes out with this second moment
        signal = Signal(within=None, across=None, unit=signal.unit, normal=signal.normal)
    taken, within, across = _centering(node, signal)
    left = max(0.0, signal.second_moment - taken)
    if node.op == "normalize":
        dims = node.options.get("dim", 1)
        size = math.prod(node.shape[dim] for dim in ([dims] if isinstance(dims, int) else dims))
        scale = 1 / math.sqrt(size * left) if left else 0.0
    else:
        scale = 1 / math.sqrt(left + float(node.options.get("eps") or 0.0)) if left else 0.0
    factor, shift, square = affine
    mean = signal.mean * scale * math.sqrt(factor) if node.op in UNCENTERED else 0.0
    return replace(
        signal,
        mean=mean + shift,
        second_moment=factor * left * scale**2 + square,
        within=within,
        across=across,
        source=None,
        unknown="",
        profile=signal.profile if node.op in ("batch_norm", "instance_norm", "group_norm") else None,
    )


def _fixed(signal: Signal, affine: tuple[float, float, float]) -> Signal:
    """Normalize by running statistics, which start as mean 0 and variance 1."""
    factor, shift, square = affine
    mean = math.sqrt(factor) * signal.mean
    second_moment = factor * signal.second_moment + 2 * mean * shift + square
    return replace(signal, mean=mean + shift, second_moment=second_moment, source=None)


def _centering(node: Node, signal: Signal) -> tuple[float, float | None, float | None]:
    """Return what a normalization takes off the second moment, and the correlations that are left."""
    q, mean = signal.second_moment, signal.mean**2
    joint = [None if part is None else q * part for part in (signal.within, signal.across)]
    if node.op == "batch_norm":
        taken = mean if joint[1] is None else max(mean, joint[1])
    elif node.op == "instance_norm":
        taken = mean if joint[0] is None else max(mean, joint[0])
    else:
        taken = 0.0 if node.op in UNCENTERED else mean
    left = q - taken
    if left <= 0:
        return taken, None, None
    within, across = (None if part is None else min(1.0, max(0.0, (part - taken) / left)) for part in joint)
    return taken, within, across


def _padded(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:
    signal, pads = before[0], tuple(node.options.get("pad") or ())
    shape = laws.graph.nodes[node.inputs[0]].shape
    count = len(shape) - 2
    if not pads or count < 1 or len(pads) > 2 * count or signal.second_moment == 0.0:
        return _spread(laws, node, signal)
    inside = math.prod(shape) / math.prod(node.shape) if node.options.get("mode", "constant") == "constant" else 1.0
    value = float(node.options.get("value") or 0.0)
    options = {**node.options, "value": value / math.sqrt(signal.second_moment)}
    behind = propagate_profile(profile_of(signal, shape[-count:]), "pad", output_shape=node.shape, options=options)
    return replace(
        signal,
        mean=inside * signal.mean + (1 - inside) * value,
        second_moment=signal.second_moment * behind.mean().item(),
        within=None if signal.within is None or value else signal.within * inside,
        across=signal.across if inside == 1.0 or not value else None,
        normal=signal.normal and inside == 1.0,
        source=None,
        profile=relative(behind),
    )


def _spread(laws: Laws, node: Node, signal: Signal) -> Signal:
    """Pad other dims than positions, for instance channels."""
    if node.options.get("mode", "constant") != "constant":
        return replace(signal, source=None, profile=None)
    inside = math.prod(laws.graph.nodes[node.inputs[0]].shape) / math.prod(node.shape)
    value = float(node.options.get("value") or 0.0)
    return replace(
        signal,
        mean=inside * signal.mean + (1 - inside) * value,
        second_moment=inside * signal.second_moment + (1 - inside) * value**2,
        normal=signal.normal and inside == 1.0,
        source=None,
        profile=None,
    )


def _dropped(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:
    """Drop entries and scale the others up so that the mean stays; whole channels with a mask for each."""
    signal, p = before[0], node.options.get("p")
    if p is None or not 0.0 <= float(p) < 1.0:
        return _assumed(laws, node, before)
    kept = 1.0 - float(p)
    if "alpha" in node.op:
        return _alpha_dropped(signal, kept)
    scale = 1.0 if node.options.get("scaled", True) else kept
    whole = node.op in ("dropout1d", "dropout2d", "dropout3d", "feature_dropout", "mul")
    return replace(
        signal,
        mean=signal.mean * scale,
        second_moment=signal.second_moment * scale**2 / kept,
        within=signal.within if whole or signal.within is None else signal.within * kept,
        across=None if signal.across is None else signal.across * kept,
        normal=False,
        source=None,
    )


def _alpha_dropped(signal: Signal, kept: float) -> Signal:
    """Put SELU's limit in the place of an entry, then change all affinely so that N(0, 1) stays at these moments."""
    put = SELU_SATURATION
    scale = 1 / math.sqrt(kept * (1 + (1 - kept) * put**2))
    shift = -scale * put * (1 - kept)
    mean = kept * signal.mean + (1 - kept) * put
    square = kept * signal.second_moment + (1 - kept) * put**2
    return replace(
        signal,
        mean=scale * mean + shift,
        second_moment=scale**2 * square + 2 * scale * shift * mean + shift**2,
        within=None,
        across=None,
        normal=False,
        source=None,
    )


def _constant(laws: Laws, node: Node, before: Sequence[Signal]) -> Signal:  # noqa: ARG001
    """Look at the values of a parameter or buffer that is used as it is, and at what is drawn from N(0, 1).

    Anything else is assumed to be small.
    """
    names = node.parameters.get("value", ())
    if str(node.options.get("random", "")).startswith("randn") and len(node.calls) == 1:
        return Signal()
    if len(names) == 1 and (not node.calls or node.op in UNCHANGED):
        path, _, last = names[0].rpartition(".")
        held = getattr(laws.model.get_submodule(path), last)
        if held.is_floating_point() and not held.is_meta and held.numel():
            values = held.detach().double()
            return Signal(values.mean().item(), values.square().mean().item(), None, 1.0, normal=False)
    return Signal(0.0, 0.0, None, None, normal=False, assumed=node.name)


LAWS: dict[str, Callable[[Laws, Node, Sequence[Signal]], Signal]] = {
    "input": lambda laws, node, before: Signal(),  # noqa: ARG005
    "activation": _activated,
    "scale": _activated,
    "sum": _summed,
    "concat": _concatenated,
    "product": _combined,
    "pad": _padded,
    "dropout": _dropped,
    "shape": _shaped,
    "output": _same,
    "pool": _pooled,
    "resize": _resized,
    "attention": _assumed,
    "constant": _constant,
}
