"""Faults of single layers: what one layer has, or does, that the others do not."""

import math
from collections.abc import Iterator, Mapping
from statistics import median

import torch
from torch import Tensor
from torch.optim import Optimizer

from mpelu.diagnostics import advice
from mpelu.diagnostics.layers import Layer, Net
from mpelu.diagnostics.records import Finding, LayerRecord
from mpelu.graph import Node

OUTLIER = 1.0
"""Decades of sigma^2 by which a layer differs from its like before it is called mis-scaled: weights 3.2 times too large
or too small. The rules in use differ by less between layers of one net: 2 / fan and 1 / (3 fan) by 0.8."""
LONELY = 1.5
"""The same for a layer with fewer than PEERS of its role, which is compared with all others: a stem, a projection or a
head has reasons of its own to differ."""
PEERS = 4
DEVIATIONS = 5.0
"""Scaled median deviations that an outlier is away too, so that the layers of a trained net may differ."""
SHOWN = 1 / 3
"""Share of these decades that the second moment has to show; biases may hide the rest."""
MOST = 0.9
"""Share of the second moment that is little but a bias."""
DEAD = 0.75
"""Share of dead units that is called dead. Units of mean 0 are dead with probability 1/2 even for a single example, or
for inputs that have become alike; more than that takes a bias or a mean."""
FEW_UNITS = 8
"""Below so many units all of them are dead by chance in one net of 250 or more, and nothing is said."""
LARGE_INPUT, SMALL_INPUT = 5.0, 0.01
"""Root mean squares of inputs between which a first layer for N(0, 1) works: data in [0, 1], [-1, 1] and standardized
data lie between 0.1 and 2, pixels in [0, 255] and pixels that were divided by 255 twice lie outside."""


def non_finite(net: Net) -> Iterator[Finding]:
    """Find the first nodes that make NaN or infinity from finite numbers."""
    for record in net.records:
        node = net.graph[record.name]
        if record.non_finite > 0 and not any(found.non_finite > 0 for found in net.before(node)):
            yield _non_finite(net, node, record)


def _non_finite(net: Net, node: Node, record: LayerRecord) -> Finding:
    share = f"{record.non_finite:.0%} of its outputs are NaN or infinite"
    if node.kind == "input":
        return Finding("non-finite", node.name, None, f"the input holds NaN or infinity: {share}",
                       advice.clean_input(net, node), "a finite input")  # fmt: skip
    bad = [name for name in _parameters(net, node) if not bool(torch.isfinite(_held(net, name)).all())]
    if bad:
        cause = f"non-finite parameter: {', '.join(bad)} holds NaN or infinity; {share}"
        return Finding("non-finite", node.name, None, cause, *advice.renew(net, node))
    largest = max((found.second_moment for found in net.before(node)), default=math.nan)
    cause = f"overflow: its inputs are finite, with root mean square {math.sqrt(largest):.3g}, and {share}"
    return Finding("non-finite", node.name, None, cause, *advice.keep(net))


def dead(net: Net) -> Iterator[Finding]:
    """Find activations whose units are dead; those behind one of them are dead for that reason."""
    silent: set[int] = set()
    for record in net.records:
        node = net.graph[record.name]
        if any(index in silent for index in node.inputs):
            silent.add(node.index)
        elif record.dead is not None and record.dead >= _dead_limit(record):
            silent.add(node.index)
            yield _dead(net, node, record)


def _dead(net: Net, node: Node, record: LayerRecord) -> Finding:
    maker = net.maker(node)
    bias = _held(net, maker.parameters["bias"][0]) if maker.parameters.get("bias") else None
    made = net.by_name.get(maker.name)
    count = f"{record.dead:.0%} of the units of {node.name} ({node.op}) have slope 0 for every example"
    if bias is not None and made is not None and bias.double().square().mean().item() > made.second_moment / 2:
        cause = f"dead layer: {count}; the bias of {maker.name}, {bias.mean().item():.3g} on average, holds them there"
        return Finding("dead units", maker.name, None, cause, *advice.zero_bias(maker))
    cause = f"dead layer: {count}; what {maker.name} makes has mean {math.nan if made is None else made.mean:.3g}"
    return Finding("dead units", maker.name, None, cause, *advice.renew(net, maker))


def _dead_limit(record: LayerRecord) -> float:
    """Return :data:`DEAD`, or for few units more: 5 standard deviations above 1/2, as chance may have it."""
    units = record.shape[1] if len(record.shape) > 3 else record.shape[-1]
    return min(1.0, max(DEAD, 0.5 + 5 * 0.5 / math.sqrt(units))) if units >= FEW_UNITS else math.inf


def misscaled(net: Net) -> Iterator[Finding]:
    """Find layers whose weights are far larger or smaller than those of their like."""
    layers = [layer for layer in net.layers if not layer.normalized and layer.variance > 0]
    roles: dict[str, list[Layer]] = {}
    for layer in layers:
        roles.setdefault(layer.role, []).append(layer)
    for layer in layers:
        like = [other for other in roles[layer.role] if other is not layer]
        limit = OUTLIER if len(like) >= PEERS else LONELY
        like = like if len(like) >= PEERS else [other for other in layers if other is not layer]
        if len(like) < 2 or (layer.use.head and layer.record.second_moment < LARGE_INPUT**2):
            continue
        decades, spread = _away(layer.variance, [other.variance for other in like])
        if abs(decades) >= max(limit, DEVIATIONS * spread) and _shows(net, layer, like, decades):
            yield _misscaled(net, layer, like, decades)


def biased(net: Net) -> Iterator[Finding]:
    """Find layers whose output is little but a bias, and far larger than what was there before."""
    for layer in net.layers:
        bias = net.bias(layer)
        before = [record.second_moment for record in _earlier(net, layer) if record.second_moment > 0]
        if bias is None or layer.normalized or layer.use.head or not before:
            continue
        square = _rms(bias) ** 2
        if square > MOST * layer.record.second_moment and square > 10**OUTLIER * median(before):
            cause = (
                f"one bias is too large: that of {layer.name} has root mean square {math.sqrt(square):.3g}, and what "
                f"comes in has {math.sqrt(median(before)):.3g}; all inputs look alike behind it"
            )
            yield Finding("exploding", layer.name, None, cause, *advice.zero_bias(layer.use.node))


def _earlier(net: Net, layer: Layer) -> list[LayerRecord]:
    """Return the records of the inputs, and of the weights before a layer."""
    weights = [other.record for other in net.layers if other.use.node.index < layer.use.node.index]
    return [*weights, *(record for record in net.records if record.kind == "input")]


def _away(value: float, others: list[float]) -> tuple[float, float]:
    """Return by how many decades a number differs from the median of others, and their scaled deviation."""
    logs = [math.log10(other) for other in others]
    middle = median(logs)
    return math.log10(value) - middle, 1.4826 * median(abs(log - middle) for log in logs)


def _shows(net: Net, layer: Layer, like: list[Layer], decades: float) -> bool:
    """True where a layer multiplies the second moment by so much more, or less, than others do.

    Behind a global average a layer needs larger weights; what it makes is no larger for that. A layer that is alone in
    its role has to make more, or less, than the layers and inputs before it too.
    """
    factors = [factor for other in like if (factor := _factor(other)) > 0]
    compared = [(_factor(layer), factors)]
    if len(like) < PEERS or any(other.role != layer.role for other in like):
        compared.append((layer.record.second_moment, [record.second_moment for record in _earlier(net, layer)]))
    for own, others in compared:
        known = [value for value in others if 0 < value < math.inf]
        if own > 0 and known and _away(own, known)[0] * math.copysign(1.0, decades) < SHOWN * abs(decades):
            return False
    return True


def _factor(layer: Layer) -> float:
    read = 0.0 if layer.reads is None else layer.reads.second_moment
    found = layer.record.second_moment / read if read > 0 else 0.0
    return found if math.isfinite(found) else 0.0


def _misscaled(net: Net, layer: Layer, like: list[Layer], decades: float) -> Finding:
    factor = 10 ** (decades / 2)
    words = f"{factor:.3g} times as large as" if factor > 1 else f"{1 / factor:.3g} times smaller than"
    cause = f"one mis-scaled layer: the weights of {layer.name} are {words} those of the {len(like)} layers like it"
    bias, others = net.bias(layer), [net.bias(other) for other in like]
    sizes = [_rms(other) for other in others if other is not None and _rms(other) > 0]
    along = bias is not None and bool(sizes) and _rms(bias) > 0 and abs(math.log10(_rms(bias) / median(sizes))) >= 0.5
    return Finding(
        "exploding" if decades > 0 else "vanishing",
        layer.name,
        None,
        cause,
        *advice.rescale(net, layer, 1 / factor, with_bias=along),
    )


def inputs(net: Net) -> Iterator[Finding]:
    """Find inputs of a size that the first layer was not made for."""
    for record in net.records if net.layers else ():
        node = net.graph[record.name]
        if record.kind != "input" or not _matters(net, node) or not math.isfinite(record.second_moment):
            continue
        size = math.sqrt(record.second_moment)
        made, own = _first_layers(net, node, record)
        if size > LARGE_INPUT and made > LARGE_INPUT:
            state, words = "exploding", f"have root mean square {size:.3g} and mean {record.mean:.3g}"
        elif size < SMALL_INPUT and own < SMALL_INPUT:
            state, words = "vanishing", f"have root mean square {size:.3g}" if size else "are all 0"
        else:
            continue
        cause = f"input scale: the inputs {words}; layers are made for 1"
        yield Finding(state, node.name, None, cause, *advice.standardize(net, node))


def _first_layers(net: Net, node: Node, record: LayerRecord) -> tuple[float, float]:
    """Return the largest root mean square behind the weights that read an input, and what they make without biases."""
    layers = [layer for layer in net.layers if layer.use.source.index == node.index]
    made = [layer.record.second_moment for layer in layers] or [record.second_moment]
    own = [layer.variance * record.second_moment for layer in layers] or [record.second_moment]
    return math.sqrt(max(made)), math.sqrt(max(own))


def _matters(net: Net, node: Node) -> bool:
    """True unless a normalization, with at most one weight before it, takes the scale of an input away."""
    waiting, seen = [(node, 0)], set()
    while waiting:
        at, weights = waiting.pop()
        for reader in net.graph.readers(at.index):
            passed = weights + (reader.kind == "weight")
            if reader.kind in ("norm", "embedding") or reader.index in seen:
                continue
            if reader.kind not in ("weight", "shape", "pad", "scale", "dropout") or passed > 1:
                return True
            seen.add(reader.index)
            waiting.append((reader, passed))
    return False


def frozen(net: Net) -> Iterator[Finding]:
    """Find weights that take no part in training: without requires_grad, or unknown to the optimizer."""
    parameters = dict(net.model.named_parameters())
    off = [layer for layer in net.layers if layer.record.weight is not None and not _trainable(layer, parameters)]
    if off and len(off) == len(net.layers):
        cause = "frozen layers: no weight of the model has requires_grad"
        yield Finding("dead gradient", off[0].name, None, cause, "model.requires_grad_(True)", "all layers train again")
    else:
        yield from (_frozen(layer) for layer in off)
    if net.optimizer is None:
        return
    groups = [group for group in net.optimizer.param_groups if group["lr"] != 0]
    # by address: a stand-in of a parameter has the memory of its own
    held = {parameter.data_ptr() for group in groups for parameter in group["params"]}
    for layer in net.layers:
        names = [name for name in layer.use.behind.originals or (layer.use.weight,) if name in parameters]
        if layer not in off and names and not any(parameters[name].data_ptr() in held for name in names):
            cause = f"frozen layer: the optimizer does not hold {names[0]}, or its learning rate is 0"
            yield Finding("dead gradient", layer.name, None, cause, *advice.hand_over(names))
    yield from _fixed_shapes(net, net.optimizer, parameters)


def _fixed_shapes(net: Net, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Find parameters of activations that the optimizer does not know; all of them are one finding, at the first."""
    held = {parameter.data_ptr() for group in optimizer.param_groups for parameter in group["params"]}
    uses = [
        (node.name, name)
        for node in net.graph.nodes
        if node.kind == "activation"
        for names in node.parameters.values()
        for name in names
        if name in parameters and parameters[name].requires_grad and parameters[name].data_ptr() not in held
    ]
    if uses:
        names = list(dict.fromkeys(name for _, name in uses))
        more = f" and {len(names) - 1} more parameters of activations" if len(names) > 1 else ""
        cause = (
            f"frozen activation: the optimizer does not hold {names[0]}{more}; one that was made before mpelu.convert "
            f"or mpelu.tailor does not know what they put in"
        )
        yield Finding("dead gradient", uses[0][0], None, cause, *advice.hand_over_shapes(names))


def _trainable(layer: Layer, parameters: Mapping[str, Tensor]) -> bool:
    names = layer.use.behind.originals or (layer.use.weight,)
    return any(parameters[name].requires_grad for name in names if name in parameters)


def _frozen(layer: Layer) -> Finding:
    cause = f"frozen layer: {layer.use.weight} has requires_grad=False and stays as it is (fine if that is meant)"
    return Finding("dead gradient", layer.name, None, cause, *advice.unfreeze(layer))


def cut(net: Net) -> Iterator[Finding]:
    """Find weights that are to be trained and get no gradient, but for those behind which a weight of 0 starts."""
    for layer in reversed(net.layers):
        record = layer.record
        names = layer.use.behind.originals or (layer.use.weight,)
        trainable = any(net.model.get_parameter(name).requires_grad for name in names)
        reached = record.weight_gradient_norm or record.gradient_norm
        if not trainable or record.weight is None or reached or _explained(net, layer.use.node):
            continue
        cause = f"no gradient reaches {layer.name}: a detach() or no_grad() behind it, or the loss does not read it"
        yield Finding("dead gradient", layer.name, None, cause,
                      "remove what cuts the gradient behind it", "the layer trains")  # fmt: skip
        return


def _explained(net: Net, node: Node) -> bool:
    """True where what stands behind a node multiplies with 0, and opens with the first step, or is dead by chance."""
    waiting, seen = [node], set()
    while waiting:
        for reader in net.graph.readers(waiting.pop().index):
            if reader.index in seen:
                continue
            seen.add(reader.index)
            if reader.name in net.by_name and net.by_name[reader.name].dead == 1.0:
                return True
            factors = [net.graph.nodes[index] for index in reader.inputs if net.graph.nodes[index].kind == "constant"]
            if any(_multiplies_with_zero(net, part) for part in (reader, *factors)):
                return True
            waiting.append(reader)
    return False


def _multiplies_with_zero(net: Net, node: Node) -> bool:
    learned = dict(net.model.named_parameters())
    names = [name for role, names in node.parameters.items() if role != "bias" for name in names if name in learned]
    return any(not bool(learned[name].any()) for name in names)


def _parameters(net: Net, node: Node) -> list[str]:
    known = {name for name, _ in (*net.model.named_parameters(), *net.model.named_buffers())}
    return [name for names in node.parameters.values() for name in names if name in known]


def _held(net: Net, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    found: Tensor = getattr(net.model.get_submodule(path), last)
    return found.detach()


def _rms(values: Tensor) -> float:
    return math.sqrt(values.detach().double().square().mean().item())
