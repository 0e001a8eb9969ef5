"""Faults of a net as a whole: what every layer does a little, and depth makes a lot of."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from mpelu.diagnostics import advice
from mpelu.diagnostics.layers import Drift, Layer, Net, drift
from mpelu.diagnostics.records import Finding, LayerRecord
from mpelu.errors import UsageError
from mpelu.graph import Node
from mpelu.init import centered_critical, gain
from mpelu.init.signal import channels
from mpelu.moments.elementwise import elementwise

DRIFT = 1.5
"""Decades of second moment, or of squared gradient, between the ends of a net whose weights have a gain that is wrong.
Tailored nets of 30 layers on the digits (ReLU and tanh, best of four learning rates, 120 updates) ended at a loss of
0.01 to 0.07 with all gains multiplied by 1, 0.95 or 1.05 (at most 1.5 decades), at 0.4 and 0.6 with 0.9 (2.6 decades),
at 1.2 and 2.0 with 0.85 (4 decades)."""
CHANCE_DRIFT = 2.6
"""The same for weights with the right gain: in a net of width n and depth L the logarithm of q wanders by about
sqrt(5 L / n), and nets train to six times the depth in which a factor of e is lost (Schoenholz et al.,
arXiv:1611.01232), so that a factor of e^6 does no harm yet."""
SHALLOW_DRIFT = 4.0
"""The same for nets of fewer than DEEP weights. torch's default weights lose 0.8 decades in each ReLU layer; with 5
layers the digits are learned (2.3 decades of gradient), with 7 they are not (3.8)."""
DEEP = 6
NORMALIZED_DRIFT = 8.0
"""The same for the gradient of normalized layers, whose weights have no scale: behind ReLU and batch normalization it
grows by pi / (pi - 1) per layer, and such nets train to about 50 layers (Yang et al., arXiv:1902.08129)."""
STEADY = 0.2
"""Share of the drift of a residual net in the smaller half of its depth. A constant factor per block has 1/2; where
each block adds the same, the second moment grows like the number of blocks, which has log 2 / log n: 0.15 for 100."""
COLLAPSED = 0.01
"""1 - cosine of two inputs: what differs between them has a seventh of the norm of what they share. Linear nets of 20,
30, 50 and 100 ReLU layers with calibrated weights (1 - cosine 0.047, 0.021, 0.003, 0.002; width 64) ended at a loss of
0.14, 0.4, 1.2 and 2.1 on the digits after 120 updates, a tailored one at 0.03."""
FEW_ENTRIES = 16
"""Entries of one example below which a cosine is mostly chance: its standard deviation is 1 / sqrt(entries)."""
LOST = 0.1
"""Share of 1 - cosine that is left: inputs that were alike from the start are no collapse."""
SATURATED = 0.75
"""Share of the entries of a bounded activation that is called saturated; of N(0, 1), tanh has 0.3 %."""
BOUND = 1e3
OFF = 0.1
"""Relative error of a gain that is called wrong; as a matter of chance it is 1 % for 5,000 weights."""
MATCH = 0.05
"""Relative error of sigma^2 within which weights are said to come from a rule. Chance is 1 % for 20,000 weights."""
CENTERED = 0.05
"""Mean square of the sums of rows over that of independent weights, below which the rows were made to sum to 0."""
LITTLE_BIAS = 0.25
"""Share of the bias variance that is needed, below which it is missing."""

FILLS = {
    2.0: "filled for ReLU (2 / fan_in)",
    1.0: "filled for layers without activation (1 / fan_in)",
    1 / 3: "left at torch's default (1 / 3 fan_in)",
}


def saturation(net: Net) -> Iterator[Finding]:
    """Find the first bounded activation most of whose entries are saturated."""
    for record in net.records:
        node = net.graph[record.name]
        if node.kind == "activation" and not net.graph.is_head(node.index) and (record.saturated or 0.0) >= SATURATED:
            if not bounded(node):
                continue
            size = math.sqrt(max((made.second_moment for made in net.before(node)), default=math.nan))
            cause = (
                f"saturated activation: {record.saturated:.0%} of the entries of {node.name} ({node.op}) are flat, "
                f"since its inputs have root mean square {size:.3g}"
            )
            yield Finding("vanishing", node.name, None, cause, *advice.keep(net))
            return


def bounded(node: Node) -> bool:
    """True for a function that stays below a constant on both sides."""
    of = node.function if node.source is None else node.source
    if of is None:
        return False
    try:
        ends = elementwise(of, channels(node)).values(torch.tensor([-BOUND, BOUND], dtype=torch.float64, device="cpu"))
    except UsageError:
        return False
    return bool(ends.abs().max() < BOUND / 10)


def growth(net: Net) -> Iterator[Finding]:
    """Find the trunk of a residual net that grows by a factor in every block."""
    trunk = [
        net.by_name[node.name] for node in net.graph.nodes if node.index in net.residual and node.name in net.by_name
    ]
    found = drift(net, trunk, [record.second_moment for record in trunk])
    if found is None or net.normalized_branches or abs(found.decades) < DRIFT or found.steady < STEADY:
        return
    per_sum = 10 ** (found.decades / len(found.steps))
    cause = (
        f"residual growth: every sum makes the second moment {per_sum:.3g} times as large, since a branch adds a share "
        f"of what the trunk holds"
    )
    if found.decades < 0:
        cause = f"each sum leaves {per_sum:.3g} of the second moment of the trunk"
    yield Finding(_state(found.decades), found.start, per_sum, cause, *advice.keep(net))


def steady_drift(net: Net) -> Iterator[Finding]:
    """Find the larger of the drifts of the signal and of the gradient, where one is too large."""
    candidates: list[_Candidate] = []
    for role in ("trunk", "inside a branch", "last of a branch"):
        layers = [layer for layer in net.layers if layer.role == role]
        records = [layer.record for layer in layers]
        signal = drift(net, records, [record.second_moment for record in records])
        back = records[::-1]
        gradient = drift(net, back, [_square(record.gradient_norm) for record in back])
        if signal is not None and not net.normalized:
            candidates.append(_Candidate("signal", signal, layers))
        if gradient is not None:
            candidates.append(_Candidate("gradient", gradient, layers))
    candidates = [found for found in candidates if _counts(net, found)]
    if candidates:
        yield _drifting(net, max(candidates, key=lambda found: abs(found.drift.decades)))


@dataclass(frozen=True)
class _Candidate:
    """What drifts ("signal", "gradient"), by how much, and over which layers."""

    what: str
    drift: Drift
    layers: list[Layer]


def _counts(net: Net, found: _Candidate) -> bool:
    decades = abs(found.drift.decades)
    if decades < DRIFT or (net.residual and found.drift.steady < STEADY):
        return False
    if net.normalized:
        return decades >= NORMALIZED_DRIFT
    if len(net.layers) < DEEP:
        return decades >= SHALLOW_DRIFT
    return decades >= CHANCE_DRIFT or gain_cause(net, found)[1]


def _drifting(net: Net, found: _Candidate) -> Finding:
    total = 10**found.drift.decades
    if found.what == "signal":
        per_layer = found.drift.per_layer
        moved = f"the second moment is multiplied by {per_layer:.3g} from weight to weight, by {total:.2g} in all"
    else:
        per_layer = math.sqrt(found.drift.per_layer)
        moved = (
            f"on its way back the norm of the gradient is multiplied by {per_layer:.3g} from weight to weight, by "
            f"{math.sqrt(total):.2g} in all"
        )
    cause = f"{gain_cause(net, found)[0]}; {moved}"
    return Finding(_state(found.drift.decades), found.drift.start, per_layer, cause, *advice.keep(net))


def _state(decades: float) -> str:
    return "exploding" if decades > 0 else "vanishing"


def _square(value: float | None) -> float | None:
    return None if value is None else value**2


def gain_cause(net: Net, found: _Candidate) -> tuple[str, bool]:
    """Say what is wrong with the weights of layers in which signal or gradient drift, and whether anything is."""
    layers = found.layers
    if net.normalized:
        if found.drift.decades > 0:
            return "normalization in every layer and no skip connections: the gradient grows in each of them", True
        return (
            "normalization in every layer, and yet the gradient shrinks in each of them, as it does in evaluation mode "
            "where the running statistics are larger than those of this input"
        ), True
    fed = [(layer, node) for layer in layers if (node := net.activation_before(layer)) is not None and layer.variance]
    if not fed:
        return "no activation feeds the weights, and their gain is not 1", False
    op = Counter(node.op for _, node in fed).most_common(1)[0][0]
    like = [layer for layer, node in fed if node.op == op]
    unit, variance = next(node for _, node in fed if node.op == op), median(layer.variance for layer in like)
    of = unit.function if unit.source is None else unit.source
    assert of is not None
    title = op if unit.source is None else type(unit.source).__name__
    try:
        right = gain(of, channels=channels(unit)) ** 2
        critical = centered_critical(of, channels=channels(unit))
    except UsageError:
        return f"the weights have variance {variance:.3g} / fan_in, and no gain is known for {title}", False
    missing = _missing_bias(net, like, variance, critical.gain**2, critical.bias_variance, right)
    if missing:
        return missing, True
    ratio = math.sqrt(variance / right)
    rule = next((f", as if {text}" for known, text in FILLS.items() if abs(variance / known - 1) < MATCH), "")
    if abs(ratio - 1) >= OFF or (rule and abs(ratio - 1) >= MATCH):
        return (
            f"wrong gain: the weights are {ratio:.3g} times as large as {title} needs "
            f"({variance:.3g} / fan_in instead of {right:.3g} / fan_in){rule}"
        ), True
    if found.what == "gradient" and abs(variance / critical.gain**2 - 1) > MATCH:
        return (
            f"the gain keeps the second moment of {title} and not the gradient, whose square it multiplies by "
            f"{variance / critical.gain**2:.3g} in each layer"
        ), False
    return f"the gain fits {title}, and what changes is a matter of small width, of biases or of the data", False


def _missing_bias(
    net: Net, layers: Sequence[Layer], variance: float, critical: float, needed: float, right: float
) -> str:
    """Say that biases are missing, where the weights have the gain that goes with them.

    Args:
        net: That the layers are of.
        layers: With the same activation.
        variance: sigma^2 of their weights.
        critical: sigma^2 that keeps the gradient.
        needed: Variance of the biases that goes with it, if the rows of the weights sum to 0.
        right: sigma^2 that keeps the second moment without biases, which is 1 / E f^2.
    """
    centered = median(_row_sums(net, layer) for layer in layers) < CENTERED
    # calibration moves the gain of narrow layers, and nothing but the rule that needs biases makes rows sum to 0
    if not (centered or abs(variance / critical - 1) < MATCH):
        return ""
    sizes = [bias.detach().double().square().mean().item() for layer in layers if (bias := net.bias(layer)) is not None]
    held = median(sizes) if sizes else 0.0
    if not centered:
        needed = 1 - critical / right
    if needed < 0.02 or held > LITTLE_BIAS * needed:
        return ""
    return (
        f"missing bias variance: the weights have the gain that keeps the gradient ({math.sqrt(critical):.3g}), which "
        f"goes with biases of variance {needed:.3g}, and theirs is {held:.2g}"
    )


def _row_sums(net: Net, layer: Layer) -> float:
    """Return the mean square of the sums of rows, over what it is for independent weights."""
    held = dict(net.model.named_parameters()).get(layer.use.weight)
    if held is None or not layer.use.plain:
        return 1.0
    values = held.detach().double().flatten(1)
    square = values.square().sum(1).mean().item()
    return values.sum(1).square().mean().item() / square if square else 1.0


def collapse(net: Net) -> Iterator[Finding]:
    """Find the depth at which all inputs have become alike."""
    nodes = {layer.use.node.index for layer in net.layers if not layer.use.head} | set(net.residual)
    chain = [
        net.by_name[node.name]
        for node in net.graph.nodes
        if node.index in nodes and net.pooled[node.index] == 0 and node.name in net.by_name
    ]
    chain = [
        record for record in chain if record.correlation is not None and math.prod(record.shape[1:]) >= FEW_ENTRIES
    ]
    given = [record.correlation for record in net.records if record.kind == "input" and record.correlation is not None]
    if not chain:
        return
    first = 1 - max(given) if given else 1 - (chain[0].correlation or 0.0)
    left = 1 - (chain[-1].correlation or 0.0)
    if left > COLLAPSED or (first > 0 and left > LOST * first):
        return
    if first <= COLLAPSED:
        return
    yield _collapsed(net, chain, first, left)


def _collapsed(net: Net, chain: Sequence[LayerRecord], first: float, left: float) -> Finding:
    start = next(record for record in chain if 1 - (record.correlation or 0.0) <= COLLAPSED)
    kept = (max(left, 1e-16) / first) ** (1 / max(1, chain[-1].depth))
    cause = (
        f"activations too nonlinear for this depth: the cosine of two inputs goes from {1 - first:.2g} to "
        f"{1 - left:.6g}; of 1 - cosine each layer keeps {kept:.2g}"
    )
    return Finding("collapsing", start.name, kept, cause, *(advice.tailor(net) or advice.keep(net)))
