"""What mean field leaves open - finite width, pooling, attention, borders - measured on the net itself, and mended.

One forward pass sets the second moment of every layer: the weights behind it wait until the layer has its scale. Where
a chain of layers has random biases, a backward pass shows how the gradient grows, and the balance of weights and biases
is moved until it does not: more weight and less bias make the gradient larger at the same second moment.

The model runs in its own dtype. In half types the gradient of a deep chain may leave their range; then the balance
stays as it was.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpelu.graph import Graph, Node, run
from mpelu.graph.calls import leaves, replaced
from mpelu.graph.capture import Example
from mpelu.init.aside import aside, in_training
from mpelu.init.parametrized import originals
from mpelu.init.rows import InitPlan, PlanRow
from mpelu.init.uses import Use

__all__ = ["Layer", "Target", "calibrate", "in_training", "refined"]

MAX_PASSES = 12
"""Of forward and backward together. Most nets need 2; Linear nets of depth 1000 up to 12."""

TOLERANCE = 0.1
"""Decades by which the gradient may differ between the ends of a chain."""

STEP = 0.3
"""Share of a layer's own deviation that one pass corrects; the common part is corrected in full. With 1 the layers of a
conv net of depth 300 overshoot in turn, and the gradient never comes within 0.2 decades."""

LARGEST_STEP = 0.2
"""Of the logarithm of a layer's weights in one pass."""


@dataclass(frozen=True)
class Target:
    """The second moment that the output of a weight is to have.

    Attributes:
        second_moment: As predicted.
        trunk: Index of the node that it is to be a share of, where that can be measured; -1 for none.
        share: That share.
    """

    second_moment: float
    trunk: int = -1
    share: float = 1.0


@dataclass
class Layer:
    """A weight during calibration: its output is scale * (weight * input) + bias_scale * bias.

    Attributes:
        use: The weight and its calls.
        aim: What its output is to have.
        bias: Values of its bias at bias_scale 1; None where it has none, or only zeros.
        held: True where the bias stays as it is, at bias_scale 1.
        scale: Of the weight.
        bias_scale: Of the bias.
        second_moment: That its output had in the last pass.
        gradient: Norm of the gradient of its output in the last pass.
        target: Second moment that the aim amounts to.
        problem: Why it could not be calibrated; "" where it was.
        output: Its output during a pass that goes backward.
    """

    use: Use
    aim: Target
    bias: Tensor | None = None
    held: bool = False
    scale: float = 1.0
    bias_scale: float = 0.0
    second_moment: float = math.nan
    gradient: float = math.nan
    target: float = math.nan
    problem: str = ""
    output: Tensor | None = field(default=None, repr=False)


def calibrate(
    model: nn.Module,
    probe: Example,
    graph: Graph,
    layers: Sequence[Layer],
    *,
    parameters: Mapping[str, Tensor],
    balance: bool,
) -> int:
    """Set the scales of all layers so that each output has its target second moment on the probe.

    Args:
        model: Is run, and left as it is.
        probe: What it is run on.
        graph: Of the model.
        layers: In the order of their calls; ``scale`` and ``bias_scale`` hold where to start, and the result.
        parameters: Values of all parameters; the biases of the layers are 0.
        balance: Whether chains are balanced by backward passes.

    Returns:
        How many passes it took.
    """
    chains = _chains(layers) if balance else []
    best: tuple[float, list[tuple[float, float]]] | None = None
    for count in range(1, MAX_PASSES + 1):
        _pass(model, probe, graph, layers, parameters, backward=bool(chains))
        if not chains:
            return 1
        growth = [_growth(chain) for chain in chains]
        error = max(abs(sum(ratios)) for ratios in growth) / math.log(10)
        if not math.isfinite(error):
            break
        if best is None or error < best[0]:
            best = error, [(layer.scale, layer.bias_scale) for layer in layers]
        if error <= TOLERANCE or count == MAX_PASSES:
            break
        for chain, ratios in zip(chains, growth, strict=True):
            common = sum(ratios) / len(ratios)
            for layer, ratio in zip(chain[1:], ratios, strict=True):
                step = STEP * (ratio - common) + common
                layer.scale *= math.exp(-max(-LARGEST_STEP, min(LARGEST_STEP, step)))
    if best is not None:
        for layer, scales in zip(layers, best[1], strict=True):
            layer.scale, layer.bias_scale = scales
    return count


def _chains(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Return the longest runs of layers in which each feeds the next through one activation, and has random biases."""
    chains: dict[int, list[Layer]] = {}
    for layer in layers:
        use = layer.use
        movable = use.shared == 1 and use.chained and layer.bias is not None and not layer.held
        if movable and use.previous in chains:
            chains[use.node.index] = chains.pop(use.previous)
            chains[use.node.index].append(layer)
        else:
            chains[use.node.index] = [layer]
    return [chain for chain in chains.values() if len(chain) > 1]


def _growth(chain: Sequence[Layer]) -> list[float]:
    """Return log(gradient before / gradient behind) of every step of a chain; nan where one of them is 0."""
    gradients = [layer.gradient if 0 < layer.gradient < math.inf else math.nan for layer in chain]
    return [math.log(before / after) for before, after in itertools.pairwise(gradients)]


def _pass(
    model: nn.Module,
    probe: Example,
    graph: Graph,
    layers: Sequence[Layer],
    parameters: Mapping[str, Tensor],
    *,
    backward: bool,
) -> None:
    by_call = {node.index: layer for layer in layers for node in layer.use.calls}
    trunks = dict.fromkeys((layer.aim.trunk for layer in layers), 0.0)

    def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:  # noqa: ARG001
        layer = by_call.get(node.index)
        if layer is not None and node.index == layer.use.node.index:
            layer.target = trunks[layer.aim.trunk] * layer.aim.share or layer.aim.second_moment
            _fit(layer, output.detach())
        scaled = None if layer is None else _scaled(layer, output)
        if layer is not None and scaled is not None and node.index == layer.use.node.index:
            layer.second_moment = _mean_square(scaled)
            if backward:
                scaled = scaled if scaled.requires_grad else scaled.requires_grad_()
                scaled.retain_grad()
                layer.output = scaled
                scaled = scaled.clone()  # an activation that works in place may not write to what is kept
        if node.index in trunks:
            trunks[node.index] = _mean_square(output if scaled is None else scaled)
        return scaled

    with aside(model, parameters), torch.set_grad_enabled(backward):
        result = run(model, probe, graph, visit)
        if backward:
            _backward(result)
    for layer in layers:
        if layer.output is not None:
            gradient = layer.output.grad
            layer.gradient = math.nan if gradient is None else gradient.double().norm().item()
            layer.output = None


def _mean_square(values: Tensor) -> float:
    return values.detach().double().square().mean().item()


def _fit(layer: Layer, output: Tensor) -> None:
    """Choose the bias scale, or where biases cannot help the scale, so that the output has the target.

    With a = weight * input and b the bias, E[(w a + s b)^2] = w^2 E[a^2] + 2 w s E[a b] + s^2 E[b^2].
    """
    product = _mean_square(output)
    layer.problem = "" if math.isfinite(product) and product > 0 else f"its output is {math.sqrt(product):g}"
    if layer.problem:
        return
    if layer.bias is None:
        layer.scale = math.sqrt(layer.target / product)
        return
    square = _mean_square(layer.bias)
    cross = (output.double() * _along(layer, output)).mean().item()
    if layer.held:
        left = cross**2 + product * (layer.target - square)
        if square >= layer.target or left < 0:
            layer.problem = f"its bias, which stays, has second moment {square:.3g}"
        else:
            layer.scale = (math.sqrt(left) - cross) / product
        return
    missing = layer.target - layer.scale**2 * product
    if missing <= 0:
        layer.scale, layer.bias_scale = math.sqrt(layer.target / product), 0.0
        return
    cross *= layer.scale
    layer.bias_scale = (math.sqrt(cross**2 + square * missing) - cross) / square


def _scaled(layer: Layer, output: Tensor) -> Tensor:
    scaled = layer.scale * output
    return (
        scaled if layer.bias is None or layer.bias_scale == 0.0 else scaled + layer.bias_scale * _along(layer, output)
    )


def _along(layer: Layer, output: Tensor) -> Tensor:
    """View a bias along the channels of an output; as many dimensions follow as the kernel has."""
    assert layer.bias is not None
    return layer.bias.to(output).view(-1, *[1] * (len(layer.use.shape) - 2))


def _backward(result: Any) -> None:
    """Send a fixed random cotangent back from every output."""
    stream = torch.Generator("cpu").manual_seed(0)
    outputs = [tensor for tensor in leaves(result, Tensor) if tensor.requires_grad and tensor.is_floating_point()]
    total = sum((out * torch.randn(out.shape, generator=stream, device="cpu").to(out)).sum() for out in outputs)
    if isinstance(total, Tensor):
        total.backward()  # type: ignore[no-untyped-call]


def refined(
    before: InitPlan,
    model: nn.Module,
    probe: Example,
    graph: Graph,
    uses: Sequence[Use],
    targets: Mapping[str, Target],
    *,
    balance: bool,
) -> InitPlan:
    """Return a plan with the scales that a run of the model asks for, and the second moments that it then has.

    Args:
        before: The plan to start from.
        model: Is run, and left as it is.
        probe: What it is run on.
        graph: Of the model.
        uses: The weights of the plan.
        targets: Second moments that their outputs are to have, by name.
        balance: As for :func:`calibrate`.
    """
    rows = {row.parameter: row for row in before.rows}
    with torch.inference_mode(False):  # what is made in inference mode cannot take part in a backward pass
        parameters = _values(before, model)
        layers = [_layer(use, targets[use.weight], rows, parameters) for use in uses if rows[use.weight].std]
        own = replaced(probe, Tensor, torch.clone)
        passes = calibrate(model, own, graph, layers, parameters=parameters, balance=balance)
    for layer in layers:
        rows[layer.use.weight] = _calibrated(rows[layer.use.weight], layer)
        if layer.bias is not None and not layer.held:
            assert layer.use.bias is not None
            rows[layer.use.bias] = replace(rows[layer.use.bias], std=layer.bias_scale)
    return replace(before, rows=tuple(rows.values()), passes=passes)


def _values(init_plan: InitPlan, model: nn.Module) -> dict[str, Tensor]:
    """Return the values that each parameter of a model will have."""
    held = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for row in init_plan.rows:
        if row.std is not None and (row.parameter in held or row.fan is not None):
            values = row.values(row.shape, init_plan.seed)
            parts = {row.parameter: values} if row.parameter in held else originals(model, row.parameter, values)
            assert parts is not None
            found.update({name: part.to(held[name]) for name, part in parts.items()})
    return {name: found[name] if name in found else parameter.detach().clone() for name, parameter in held.items()}


def _layer(use: Use, aim: Target, rows: Mapping[str, PlanRow], parameters: dict[str, Tensor]) -> Layer:
    """Return a layer to calibrate; its bias is taken out of the parameters, and added apart."""
    row = rows.get(use.bias or "")
    values = None if use.bias is None else parameters[use.bias]
    if values is None or use.bias is None or not bool(values.any()):
        return Layer(use, aim)
    parameters[use.bias] = torch.zeros_like(values)
    if row is None or row.std is None:
        return Layer(use, aim, values, held=True, bias_scale=1.0)
    return Layer(use, aim, values / row.std)


def _calibrated(row: PlanRow, layer: Layer) -> PlanRow:
    """Return the row of a weight behind the calibration."""
    if layer.problem:
        return replace(row, second_moment=None, equation=f"{row.equation}; not calibrated: {layer.problem}")
    assert row.std is not None
    std = row.std * layer.scale
    rule, semicolon, more = row.equation.partition(";")
    return replace(
        row,
        std=std,
        gain=None if row.fan is None else std * math.sqrt(row.fan),
        second_moment=layer.second_moment if math.isfinite(layer.second_moment) else None,
        equation=f"{rule}, calibrated{semicolon}{more}",
    )
