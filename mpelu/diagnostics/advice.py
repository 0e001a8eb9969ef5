"""The one call that mends a fault, as code, and what it is predicted to do.

The names in the code are ``torch``, ``mpelu``, ``model``, ``example`` and ``optimizer``. Predictions are made when
something is wrong only: they cost a plan of the model.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from mpelu.diagnostics.layers import Layer, Net
from mpelu.errors import MpeluError, UsageError
from mpelu.graph import Node
from mpelu.init import Transformed, nonlinear_depth, plan, shape, transform
from mpelu.init.uses import sums
from mpelu.nn import MPELU

Advice = tuple[str, str]
"""The call and its predicted effect."""

DEEP = 15.0
"""Activations one behind the other, above which a net is tailored rather than only initialized. Behind 15 ReLU, the
most nonlinear of the usual units, unrelated inputs leave with a cosine of 0.87, behind 30 of 0.96: less and less to
tell them apart by."""
WORDS_FOR_NORMALIZED = (
    "write each block of layers as x + block(x)",
    "the gradient grows like the number of blocks, and not by a factor in each layer",
)
"""No call mends a deep net that is normalized in every layer and has activations that cannot be tailored."""
NAMED = 4
"""Parameters that a call names one by one."""
LEAKY = (nn.ReLU, nn.LeakyReLU, nn.PReLU)


def keep(net: Net) -> Advice:
    """Initialize the whole model so that the signal keeps its size, and its differences where the net is deep."""
    if deep(net) and (found := tailor(net)) is not None:
        return found
    if net.normalized and not net.residual:
        return WORDS_FOR_NORMALIZED
    return "mpelu.initialize(model, example)", f"the second moment stays near 1 in every layer{_planned(net)}"


def tailor(net: Net) -> Advice | None:
    """Tailor the activations, and initialize the weights for them; None where they cannot be tailored.

    Activations that :func:`mpelu.tailor` does not take, calls of functions and units with a kink, become MPELU first.
    """
    units = [node for node in net.graph.nodes if _between(net, node)]
    others = sorted({node.op for node in units if node.source is None or not _takes(node.source)})
    if not units or not all(hasattr(functional, op) for op in others):
        return None
    convert = f"mpelu.convert(model, {others}, example=example, approximate=True); " if others else ""
    effect = (
        f"second moment and gradient keep their size in all {len(net.layers)} layers, and two unrelated inputs leave "
        f"the last of them with a cosine of at most {max(_tailored_correlation(node) for node in units):.2g}"
    )
    return f"{convert}mpelu.tailor(model, example)", effect


def deep(net: Net) -> bool:
    """True for a net with more than :data:`DEEP` activations one behind the other; in branches their shares count."""
    return nonlinear_depth(net.graph) > DEEP


def _between(net: Net, node: Node) -> bool:
    if node.kind != "activation" or net.graph.is_head(node.index):
        return False
    return {reader.kind for reader in net.graph.readers(node.index)} != {"product"}


def _takes(unit: nn.Module) -> bool:
    if isinstance(unit, (MPELU, *LEAKY)):
        return True
    try:
        transform.tailored(unit.activation if isinstance(unit, Transformed) else unit, 2.0)
    except UsageError:
        return False
    return True


def _tailored_correlation(node: Node) -> float:
    r"""Return a bound of the cosine with which unrelated inputs leave a net whose activations are tailored like this.

    Leaky units are solved for it. Of the others, C is convex with C'(1) = 1 and C''(1) = tau / depth, so that
    C(c) <= c + C''(1) (1 - c)^2 / 2, and with all layers together 1 - c >= 1 / (1 + tau / 2).
    """
    if isinstance(node.source, LEAKY):
        return shape.ETA
    smooth = node.source is not None and not isinstance(node.source, MPELU) and _takes(node.source)
    return 1 - 1 / (1 + (transform.TAU if smooth else shape.TAU) / 2)


def _planned(net: Net) -> str:
    """Return what a plan without calibration says of the second moment behind the last weight, as the end of a text."""
    try:
        rows = plan(net.model, net.example, method="critical", seed=0).weights
    except MpeluError:
        return ""
    last = next((row for row in reversed(rows) if row.second_moment is not None), None)
    if last is None or last.second_moment is None:
        return ""
    now = [layer.record.second_moment for layer in net.layers if layer.use.weight == last.parameter]
    instead = f" instead of {now[0]:.2g}" if now and math.isfinite(now[0]) else ""
    sized = " (each branch adds its share of the trunk)" if sums(net.graph) else ""
    return f": {last.second_moment:.2g} behind {last.parameter.rpartition('.')[0]}{instead}{sized}"


def renew(net: Net, node: Node) -> Advice:
    """Initialize one layer and leave all others as they are."""
    layer = next((layer for layer in net.layers if layer.use.node.index == node.index), None)
    path = node.module if layer is None else layer.use.weight.rpartition(".")[0]
    if layer is None and node.kind == "norm" and path:
        return f"model.get_submodule({path!r}).reset_parameters()", f"{path} starts as the identity again"
    if layer is None or not path:
        return keep(net)
    tensors = "(*model.named_parameters(), *model.named_buffers())"
    skip = f"[name for name, _ in {tensors} if not name.startswith({path + '.'!r})]"
    effect = f"{path} gets new weights, with a second moment near 1 behind it, and nothing else changes"
    return f"mpelu.initialize(model, example, skip={skip})", effect


def rescale(net: Net, layer: Layer, factor: float, *, with_bias: bool) -> Advice:
    """Multiply the weights of one layer with a factor; weights that are computed from others are drawn anew."""
    if layer.use.behind.originals:
        return renew(net, layer.use.node)
    names = [layer.use.weight, *([layer.use.bias] if with_bias and layer.use.bias is not None else [])]
    parameters = [f"model.get_parameter({name!r}).data.mul_({factor:.3g})" for name in names]
    before, after = layer.record.second_moment, layer.record.second_moment * factor**2
    effect = f"the second moment behind {layer.name} becomes {after:.2g} instead of {before:.2g}"
    return "; ".join(parameters), effect


def zero_bias(maker: Node) -> Advice:
    """Set the bias of one layer to 0."""
    name = maker.parameters["bias"][0]
    return (
        f"torch.nn.init.zeros_(model.get_parameter({name!r}))",
        "the pre-activations have mean 0 again, and about half of the units answer to each example",
    )


def unfreeze(layer: Layer) -> Advice:
    """Let one layer train."""
    path = layer.use.weight.rpartition(".")[0]
    call = f"model.get_submodule({path!r})" if path else f"model.get_parameter({layer.use.weight!r})"
    return f"{call}.requires_grad_(True)", f"{layer.name} gets a gradient and trains"


def hand_over(names: Sequence[str]) -> Advice:
    """Give parameters to the optimizer."""
    parameters = ", ".join(f"model.get_parameter({name!r})" for name in names)
    return f"optimizer.add_param_group({{'params': [{parameters}]}})", "the optimizer moves the layer"


def hand_over_shapes(names: Sequence[str]) -> Advice:
    """Give parameters of activations to the optimizer, those of a deep net in a line that does not name each."""
    ends = {name.rpartition(".")[2] for name in names}
    if len(names) <= NAMED:
        return hand_over(names)[0], "alpha and beta are learned" if ends <= {
            "alpha",
            "beta",
        } else "the units are learned"
    missing = "not any(own is held for group in optimizer.param_groups for held in group['params'])"
    call = f"optimizer.add_param_group({{'params': [own for own in model.parameters() if {missing}]}})"
    return call, "they are learned; mpelu.param_groups(model) gives a new optimizer the rates of the paper too"


def standardize(net: Net, node: Node) -> Advice:
    """Shift and scale an input to mean 0 and second moment 1."""
    record = net.by_name[node.name]
    std = math.sqrt(max(0.0, record.second_moment - record.mean**2))
    effect = "the inputs have mean 0 and second moment 1; scale all data alike"
    if std == 0.0:
        return f"{_assigned(net, node, 'torch.randn_like({})')}", "inputs that differ; better is a batch of real data"
    return _assigned(net, node, f"({{}} - {record.mean:.4g}) / {std:.4g}"), effect


def clean_input(net: Net, node: Node) -> str:
    """Replace what is not finite in an input by 0."""
    return _assigned(net, node, "torch.nan_to_num({}, posinf=0.0, neginf=0.0)")


def _assigned(net: Net, node: Node, change: str) -> str:
    """Return code that puts a changed input into the example; ``{}`` stands for the input."""
    if isinstance(net.example, Tensor):
        return f"example = {change.format('example')}"
    if isinstance(net.example, dict) and node.name in net.example:
        place = f"example[{node.name!r}]"
        return f"example = {{**example, {node.name!r}: {change.format(place)}}}"
    names = [other.name for other in net.graph.nodes if other.kind == "input"]
    at = names.index(node.name)
    place = f"example[{at}]"
    return f"example = (*example[:{at}], {change.format(place)}, *example[{at + 1}:])"
