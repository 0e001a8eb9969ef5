"""ONNX, from a network that is made smaller before the exporter sees it.

The exporter traces every node three times. In nopre164, each of 110 MPELUs would be a dozen nodes, each of 110 batch
normalizations and of 166 convolutions without bias several more. So an MPELU goes through the exporter as one operator,
and becomes five of ONNX at the end; a normalization goes into the convolution in front of it; and a convolution without
bias gets one of zeros, which the exporter would compute from its weight. That takes a quarter of the time.
"""

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mpelu.errors import MpeluError
from mpelu.nn import MPELU


def _values(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(beta * x.clamp(max=0)))


def _shape(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


torch.library.define("mpelu::activation", "(Tensor x, Tensor alpha, Tensor beta) -> Tensor")
torch.library.impl("mpelu::activation", "cpu", _values)
torch.library.register_fake("mpelu::activation", _shape)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
QUIET = ("torch.onnx._internal.exporter._registration",)
"""It says of each operator of torchvision, once in a process, that this is not installed."""


class Whole(nn.Module):
    """An MPELU as one operator, for the exporter.

    Args:
        unit: The MPELU; its beta is not below 0.
        dimensions: Of its input.
    """

    def __init__(self, unit: MPELU, dimensions: int) -> None:
        super().__init__()
        along = (-1, *[1] * max(dimensions - 2, 0))
        self.alpha = nn.Parameter(unit.alpha.detach().reshape(along))
        self.beta = nn.Parameter(unit.beta.detach().reshape(along))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mpelu.activation(x, self.alpha, self.beta)
        return result


def to_onnx(net: nn.Module, example: Tensor, *, notes: Mapping[str, str]) -> bytes:
    """Return a network as an ONNX file with the input ``images`` and the output ``logits``, for any number of images.

    Args:
        net: In evaluation mode; it stays as it is.
        example: Images of more than one, shape ``(N, C, H, W)``, float32.
        notes: Metadata of the file.

    Raises:
        MpeluError: If the exporter does not take the network.
    """
    import onnx

    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                smaller(net, example),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: "batch"},),
                input_names=["images"],
                output_names=["logits"],
                custom_translation_table={
                    torch.ops.mpelu.activation.default: _mpelu,
                    torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool,
                },
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise MpeluError(f"torch's ONNX exporter does not take this network: {reason}") from error
    assert program is not None
    program.model.metadata_props.update(notes)
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # where each node comes from, with folders of this machine
    content: bytes = proto.SerializeToString()
    onnx.checker.check_model(content)
    return content


def smaller(net: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy in evaluation mode that computes the same to within rounding, and makes fewer nodes."""
    dimensions: dict[nn.Module, set[int]] = {}

    def note(unit: nn.Module, given: tuple[Tensor, ...]) -> None:
        dimensions.setdefault(unit, set()).add(given[0].dim())

    net = copy.deepcopy(net).eval()
    units = [module for module in net.modules() if type(module) is MPELU]
    handles = [unit.register_forward_pre_hook(note) for unit in units]
    net(example)
    for handle in handles:
        handle.remove()
    names = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    for parent in list(net.modules()):
        if type(parent) is nn.Sequential:
            _fuse(parent, names)
        for child, module in parent.named_children():
            if type(module) is MPELU and len(dimensions.get(module, ())) == 1 and bool((module.beta >= 0).all()):
                setattr(parent, child, Whole(module, *dimensions[module]))
            elif isinstance(module, CONVOLUTIONS) and module.bias is None:
                module.bias = nn.Parameter(torch.zeros(module.out_channels, dtype=module.weight.dtype))
    return net


def _fuse(layers: nn.Sequential, names: Counter[nn.Module]) -> None:
    """Put each batch normalization that follows a convolution into it, where nothing else uses either."""
    for (first, convolution), (second, norm) in pairwise(list(layers.named_children())):
        if not (isinstance(convolution, CONVOLUTIONS) and isinstance(norm, NORMS)) or norm.running_mean is None:
            continue
        if all(names[each] == 1 and not _has_hooks(each) for each in (convolution, norm)):
            setattr(layers, first, fuse_conv_bn_eval(convolution, norm))
            setattr(layers, second, nn.Identity())


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _mpelu(x: Any, alpha: Any, beta: Any) -> Any:
    """Write MPELU with ONNX's Elu, which is exp - 1 for negative inputs; beta is not below 0 here."""
    import onnxscript

    op: Any = onnxscript.opset18
    negative = op.Mul(op.Elu(op.Mul(x, beta)), alpha)
    return op.Where(op.Greater(x, op.Constant(value_float=0.0)), x, negative)


def _adaptive_max_pool(x: Any, output_size: Any) -> tuple[Any, Any]:
    """Write the largest value of each bin, for which the exporter has no rule.

    Bin i of n goes from floor(i H / n) to the ceiling of (i + 1) H / n. Where the largest value stands is not given:
    that output, which pooling layers leave alone, is a second copy of the values.
    """
    import onnxscript

    op: Any = onnxscript.opset18
    (top, left), (height, width) = output_size, (int(side) for side in x.shape[-2:])
    rows = []
    for begin, end in _bins(height, top):
        row = op.Slice(x, _integers(op, begin), _integers(op, end), _integers(op, 2))
        cells = [op.Slice(row, _integers(op, a), _integers(op, b), _integers(op, 3)) for a, b in _bins(width, left)]
        rows.append(op.Concat(*(op.ReduceMax(cell, _integers(op, 2, 3), keepdims=1) for cell in cells), axis=3))
    values = op.Concat(*rows, axis=2)
    return values, op.Identity(values)


def _bins(length: int, count: int) -> list[tuple[int, int]]:
    return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def _integers(op: Any, *values: int) -> Any:
    return op.Constant(value_ints=list(values))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch says of itself while it exports."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
