r"""Folding: the affine changes round tailored activations, absorbed into the weights beside them.

A wrapper computes s (f(a x + b) + d). Where a weight W with bias c makes its input, a and b fold into a W and a c + b;
where weights read its output, s and d fold into s W and c + s d sum W, the sum over all that a unit reads. Both are
exact. MPELU takes scales into its own two parameters, f(k x; alpha, beta) = k f(x; alpha / k, k beta), so that the
weights keep their size.

The network computes the same, but it does not learn the same: the mean of what the weights now read is no longer 0.
Train with the wrappers, and fold what is to be exported.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.graph import Example, Graph, Node, read
from mpelu.graph.calls import replaced
from mpelu.init.calibrate import in_training
from mpelu.init.transform import TensorShape, Transformed
from mpelu.nn import MPELU

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
"""They subtract a mean, so that a shift of their input changes nothing, and divide by a deviation."""
NEUTRAL = {"input_scale": 1.0, "input_shift": 0.0, "output_scale": 1.0, "output_shift": 0.0}


@dataclass(frozen=True)
class FoldRow:
    """One wrapper: where its numbers went, and which stayed and why."""

    name: str
    folded: tuple[str, ...]
    """Names of the modules that took something."""
    kept: Mapping[str, str]
    """``input_scale``, ``input_shift``, ``output_scale`` or ``output_shift``, to the reason."""


@dataclass(frozen=True)
class FoldReport:
    """What :func:`fold` did, in execution order. ``print(report)`` is a table."""

    rows: tuple[FoldRow, ...]

    @property
    def complete(self) -> bool:
        """True where no wrapper is left."""
        return not any(row.kept for row in self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return "no wrappers"
        lines = [("wrapper", "folded into", "kept")]
        for row in self.rows:
            kept = "; ".join(f"{number}: {reason}" for number, reason in row.kept.items())
            lines.append((row.name, ", ".join(row.folded), kept))
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


@dataclass
class _Side:
    """What stands before or behind a wrapper: the nodes that take its numbers, and why they cannot."""

    takers: list[Node] = field(default_factory=list)
    no_scale: str = ""
    no_shift: str = ""

    def refuse(self, reason: str) -> None:
        self.no_scale = self.no_scale or reason
        self.refuse_shift(reason)

    def refuse_shift(self, reason: str) -> None:
        self.no_shift = self.no_shift or reason


def fold(model: nn.Module, example: Example | None = None) -> FoldReport:
    """Absorb tailored activations into the weights beside them, in place; what cannot be absorbed stays and is named.

    The outputs stay the same up to rounding, which s |d| magnifies: in tailored nets of 100 layers the folded weights
    and biases, put into float64, deviate by at most 7e-6 of the largest output, and 4e-14 if they were float64 before.
    Run in float32, the sums over inputs whose mean is no longer 0 add to it: with ELU, GELU, SiLU, Mish and MPELU it is
    1e-5 at width 64 and 2e-5 at width 256, with tanh and softplus 3e-5 and 4e-5.

    A wrapper that has given away all of its numbers is replaced by its activation, under its own name. What stays:

    - d in front of a convolution that pads with zeros: these zeros mean another value than the zeros of f.
    - d in front of dropout and of transposed convolutions.
    - s and d where the output enters a sum, product, concatenation or the output of the model; the scale only if the
      activation is no MPELU, which takes it itself.
    - a and b where no weight or norm with parameters makes the input, or where something else reads that input too.
    - All four where the weight is computed (weight normalization) or used in several places.

    Layers without bias get one. Norms that read the output keep what they compute: their eps and running statistics
    are rescaled.

    Args:
        model: With :class:`mpelu.init.transform.Transformed` wrappers.
        example: As for :func:`mpelu.graph.read`; its values do not matter unless the model looks at them. None takes
            the one that :func:`mpelu.tailor` left in the wrappers, without its values.

    Returns:
        A row for each wrapper.

    Raises:
        UsageError: If the model does not accept the example, or there is none. The model is unchanged then.

    Example:
        >>> from mpelu.init import tailor
        >>> layers = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.GELU())]
        >>> model = nn.Sequential(*layers, nn.Linear(8, 2))
        >>> init_plan = tailor(model, torch.zeros(1, 8), seed=0)
        >>> print(fold(model))
        wrapper  folded into  kept
        1        0, 2
        3        2, 4
        5        4, 6
        >>> model[1]
        GELU(approximate='none')
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, Transformed)}
    if not names:
        return FoldReport(())
    graph = _graph(model, example, names)
    uses: dict[Transformed, list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node.source, Transformed):
            uses.setdefault(node.source, []).append(node)
    with torch.no_grad():
        rows = [_fold_one(graph, names[wrapper], wrapper, nodes) for wrapper, nodes in uses.items()]
    reason = "the example does not reach it alone, as one function of one value"
    rows += [
        FoldRow(name, (), dict.fromkeys(_left(wrapper), reason))
        for wrapper, name in names.items()
        if wrapper not in uses
    ]
    for wrapper in names:
        if not _left(wrapper):
            _replace(model, wrapper)
    return FoldReport(tuple(rows))


def _graph(model: nn.Module, example: Example | None, names: Mapping[Transformed, str]) -> Graph:
    """Read the model on the example, or on what its wrappers were told that it takes."""
    with in_training(model):
        if example is not None:
            return read(model, example)
        shapes = _shapes(names)
        try:
            return read(model, _on_meta(shapes, model))
        except UsageError as error:
            raise UsageError(
                f"this model does not run on the shapes of the example that it was tailored with, {shapes!r}: {error}. "
                f"Give an example: fold(model, example)"
            ) from error


def _on_meta(shapes: object, model: nn.Module) -> Example:
    """Return an example without values; the floating ones have the dtype that the parameters have by now."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    converted = dtypes.pop() if len(dtypes) == 1 else None

    def stand_in(tensor: TensorShape) -> Tensor:
        dtype = converted if converted is not None and tensor.dtype.is_floating_point else tensor.dtype
        return torch.empty(tensor.shape, dtype=dtype, device="meta")

    example: Example = replaced(shapes, TensorShape, stand_in)
    return example


def _shapes(names: Mapping[Transformed, str]) -> object:
    """Return what :func:`mpelu.tailor` left in the wrappers.

    Raises:
        UsageError: If it left nothing in one of them, or they say different things.
    """
    untold = [name or type(wrapper).__name__ for wrapper, name in names.items() if wrapper.example_shapes is None]
    told = {repr(wrapper.example_shapes): wrapper.example_shapes for wrapper in names}
    if untold:
        reason = f"{untold[0]!r} was not made by mpelu.tailor in this process, nor copied or pickled from there"
    elif len(told) > 1:
        reason = f"parts of the model were tailored with different examples, {', '.join(told)}"
    else:
        return next(iter(told.values()))
    raise UsageError(f"folding has to know what the model takes: {reason}. Give an example: fold(model, example)")


def _fold_one(graph: Graph, name: str, wrapper: Transformed, nodes: Sequence[Node]) -> FoldRow:
    before, behind = _before(graph, nodes), _behind(graph, nodes)
    if not (wrapper.input_scale > 0 and wrapper.output_scale > 0):
        before.refuse("a scale is not positive")
        behind.refuse("a scale is not positive")
    folded: list[str] = []
    if isinstance(wrapper.activation, MPELU) and not _other_uses(graph, nodes):
        scale = 1 / wrapper.output_scale if behind.no_scale else wrapper.input_scale
        if scale != 1:
            _take_scale(wrapper, wrapper.activation, scale)
            folded.append(f"{name}.activation")
    reasons = (before.no_scale, before.no_shift, behind.no_scale, behind.no_shift)
    kept = {number: reason for number, reason in zip(NEUTRAL, reasons, strict=True) if reason}
    given = {number for number in _left(wrapper) if number not in kept}
    if given & {"input_scale", "input_shift"}:
        _fold_input(wrapper, before.takers)
        folded += [node.module for node in before.takers]
    if given & {"output_scale", "output_shift"}:
        _fold_output(wrapper, behind.takers, shifted=not behind.no_shift)
        folded += [node.module for node in behind.takers]
    left = _left(wrapper)
    return FoldRow(
        name, tuple(dict.fromkeys(folded)), {number: reason for number, reason in kept.items() if number in left}
    )


def _take_scale(wrapper: Transformed, unit: MPELU, scale: float) -> None:
    """Let an MPELU move a factor from its input to its output; the whole stays the same function."""
    unit.alpha.div_(scale)
    unit.beta.mul_(scale)
    wrapper.input_scale /= scale
    wrapper.input_shift /= scale
    wrapper.output_scale *= scale
    wrapper.output_shift /= scale


def _left(wrapper: Transformed) -> list[str]:
    return [number for number, neutral in NEUTRAL.items() if getattr(wrapper, number) != neutral]


def _fold_input(wrapper: Transformed, takers: Sequence[Node]) -> None:
    for node in takers:
        module = _module(node)
        weight, bias = _weight(module), _bias(module)
        weight.copy_(weight.double() * wrapper.input_scale)
        bias.copy_(bias.double() * wrapper.input_scale + wrapper.input_shift)
    wrapper.input_scale, wrapper.input_shift = 1.0, 0.0


def _fold_output(wrapper: Transformed, takers: Sequence[Node], *, shifted: bool) -> None:
    scale = wrapper.output_scale
    shift = scale * wrapper.output_shift if shifted else 0.0
    for node in takers:
        module = _module(node)
        if isinstance(module, NORMS):
            _rescale_norm(module, scale, shift)
            continue
        weight = _weight(module)
        if shift:
            bias = _bias(module)
            bias.copy_(bias.double() + shift * weight.double().flatten(1).sum(1))
        weight.copy_(weight.double() * scale)
    wrapper.output_scale = 1.0
    if shifted:
        wrapper.output_shift = 0.0


def _module(node: Node) -> nn.Module:
    assert node.source is not None
    return node.source


def _rescale_norm(norm: nn.Module, scale: float, shift: float) -> None:
    """Make a norm that read scale * u + shift compute the same from u."""
    assert isinstance(norm, NORMS)
    norm.eps /= scale * scale
    if isinstance(norm, BATCH_NORMS) and norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_((norm.running_mean.double() - shift) / scale)
        norm.running_var.copy_(norm.running_var.double() / (scale * scale))


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def _bias(module: nn.Module) -> Tensor:
    """Return the bias of a layer, which gets one if it has none."""
    weight = _weight(module)
    bias: object = module.bias
    if bias is None:
        zeros = torch.zeros_like(weight) if isinstance(module, NORMS) else weight.new_zeros(_out_channels(module))
        module.bias = bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    assert isinstance(bias, nn.Parameter)
    return bias


def _out_channels(module: nn.Module) -> int:
    size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    assert isinstance(size, int)
    return size


def _before(graph: Graph, nodes: Iterable[Node]) -> _Side:
    """Find what makes the input of a wrapper."""
    side = _Side()
    for node in nodes:
        maker = graph.nodes[node.inputs[0]]
        while len(graph.readers(maker.index)) == 1 and _keeps_affine(maker):
            maker = graph.nodes[maker.inputs[0]]
        if len(graph.readers(maker.index)) > 1:
            side.refuse(f"{maker.name} is read by others too")
        elif not isinstance(maker.source, (*PRODUCTS, *NORMS)):
            side.refuse(f"{maker.name} ({maker.kind}) has no weight to take it")
        elif not isinstance(maker.source.weight, nn.Parameter):
            side.refuse(f"{maker.name} has no weight of its own")
        side.takers.append(maker)
    _check_takers(graph, side)
    return side


def _behind(graph: Graph, nodes: Iterable[Node]) -> _Side:
    """Find what reads the output of a wrapper, through everything that keeps an affine change as it is."""
    side = _Side()
    waiting = list(nodes)
    while waiting:
        for reader in graph.readers(waiting.pop(0).index):
            if _keeps_affine(reader):
                waiting.append(reader)
            elif reader.kind == "dropout":
                side.refuse_shift(f"{reader.name} drops entries to 0")
                waiting.append(reader)
            elif isinstance(reader.source, PRODUCTS) and reader.kind == "weight":
                if _is_padded(reader):
                    side.refuse_shift(f"{reader.name} pads with zeros")
                elif "transpose" in reader.op:
                    side.refuse_shift(f"{reader.name} is transposed: not every output reads every weight")
                side.takers.append(reader)
            elif isinstance(reader.source, NORMS):
                side.takers.append(reader)
            else:
                side.refuse(f"{reader.name} ({reader.kind}) reads it")
    _check_takers(graph, side)
    return side


def _keeps_affine(node: Node) -> bool:
    """True for a step through which a scale > 0 and a shift can be moved: it chooses entries or averages them."""
    if node.kind == "pad":
        return node.options.get("mode") in ("circular", "reflect", "replicate")
    if node.kind == "shape":
        return not _is_padded(node)
    if node.kind != "pool" or node.options.get("divisor_override") is not None:
        return False
    if node.options.get("mode") == "max":
        return True
    return node.options.get("mode") == "avg" and (
        not _is_padded(node) or node.options.get("count_include_pad") is False
    )


def _is_padded(node: Node) -> bool:
    padding = node.options.get("padding", 0)
    return any(padding) if isinstance(padding, tuple) else bool(padding)


def _check_takers(graph: Graph, side: _Side) -> None:
    """Refuse takers whose weights are computed or used elsewhere; count a module that takes several times once."""
    for node in side.takers:
        if node.options.get("computed"):
            side.refuse(f"the weight of {node.name} is computed from others")
    others = _other_uses(graph, side.takers)
    if others:
        side.refuse(f"{', '.join(others)} uses the same weight")
    side.takers = list({id(node.source): node for node in side.takers}.values())


def _other_uses(graph: Graph, nodes: Sequence[Node]) -> list[str]:
    """Return the nodes that use the modules or parameters of these nodes and are none of them."""
    indices = {node.index for node in nodes}
    modules = {id(node.source) for node in nodes if node.source is not None}
    used = {
        index
        for node in nodes
        for names in node.parameters.values()
        for name in names
        for index in graph.parameters.get(name, ())
    }
    used |= {node.index for node in graph.nodes if id(node.source) in modules}
    return [graph.nodes[index].name for index in sorted(used - indices)]


def _replace(model: nn.Module, wrapper: Transformed) -> None:
    """Put the activation in the place of its wrapper, wherever that is held."""
    if not isinstance(wrapper.activation, nn.Module):
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child is wrapper:
                setattr(parent, name, wrapper.activation)
