"""Who feeds each weight: a model read as a graph, in execution order.

Read with torch.fx, which covers models without data-dependent control flow. What is not understood is an error that
names the node; nothing is passed through silently.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from mpelu.errors import MpeluError, UsageError
from mpelu.nn import MPELU, SPELU, SReLU

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
ACTIVATIONS = (MPELU, SPELU, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
TRANSPARENT = (
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
)
TRANSPARENT_CALLS: tuple[Callable[..., Any] | str, ...] = (
    torch.flatten,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    F.dropout,
    "flatten",
    "view",
    "reshape",
    "contiguous",
)
SUMS: tuple[Callable[..., Any] | str, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


class UnknownNodeError(MpeluError):
    """The graph holds something whose effect on the signal is not known here."""


@dataclass(frozen=True)
class Source:
    """What stands before a weight: the ``kind``, its name in the model, and the module when it is an activation."""

    kind: str  # "input", "activation", "norm", "sum" or "weight"
    name: str
    module: nn.Module | None = None


@dataclass(frozen=True)
class Reader:
    """A module that multiplies its input with a weight, what feeds it, and the shape that one example has behind it."""

    name: str
    module: Weighted
    source: Source
    output_shape: tuple[int, ...]
    last: bool
    """True where no other weight, norm, activation or sum reads the output: the head of the model."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, MPELU | SPELU | SReLU) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes the shape of each result without its batch dimension."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["output_shape"] = tuple(result.shape[1:])
        return result


def read(model: nn.Module, example: Tensor) -> list[Reader]:
    """Return the weight-carrying modules of a model in execution order, each with what feeds it.

    Args:
        model: Any module that torch.fx can trace. It is neither run nor changed.
        example: An input of the right shape and dtype; its values do not matter.

    Raises:
        UsageError: If the model does not accept the example.
        UnknownNodeError: If the model cannot be traced, or a node before a weight is not understood.
    """
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UnknownNodeError(
            f"{type(model).__name__} cannot be read by torch.fx ({_first_line(error)}); take data-dependent control "
            f"flow out of its forward, or initialize its parts one by one"
        ) from error
    try:
        # fake: nothing is computed and nothing is changed; two examples, because batch normalization refuses one
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            with FakeCopyMode(mode):
                fake = copy.deepcopy(fx.GraphModule(model, graph))
            _Shapes(fake, graph=graph).run(
                mode.from_tensor(example if len(example) > 1 else example.repeat_interleave(2, 0))
            )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{type(model).__name__} does not accept an example of shape {tuple(example.shape)} and dtype "
            f"{example.dtype}: {_first_line(error.__cause__ or error)}"
        ) from error
    modules = dict(model.named_modules())
    readers: dict[int, Reader] = {}
    for node in graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        if not isinstance(module, WEIGHTED):
            continue
        if not isinstance(module.weight, nn.Parameter):
            raise UnknownNodeError(
                f"the weight of {str(node.target)!r} is computed by a parametrization; remove it (torch.nn.utils."
                f"parametrize.remove_parametrizations), initialize, and register it again"
            )
        reader = Reader(
            name=str(node.target),
            module=module,
            source=_source(_input(node), modules),
            output_shape=node.meta["output_shape"],
            last=_is_last(node, modules),
        )
        before = readers.setdefault(id(module.weight), reader)
        if before.source != reader.source:
            raise UnknownNodeError(
                f"the weight of {reader.name!r} is read twice, after {before.source.name!r} and after "
                f"{reader.source.name!r}; give each use a weight of its own"
            )
    _refuse_what_was_not_read(model, graph, readers)
    return list(readers.values())


def _refuse_what_was_not_read(model: nn.Module, graph: fx.Graph, readers: dict[int, Reader]) -> None:
    """Raise if the forward uses a matrix or a kernel in another way than through a module of WEIGHTED."""
    modules, unread = dict(model.named_modules()), []
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and not isinstance(modules[name], (*NORMS, *ACTIVATIONS)):
            used = [(f"{name}.{own}", parameter) for own, parameter in modules[name].named_parameters()]
        elif node.op == "get_attr":
            used = [(own, parameter) for own, parameter in model.named_parameters() if own == name]
        else:
            continue
        unread += [own for own, parameter in used if parameter.dim() >= 2 and id(parameter) not in readers]
    if unread:
        raise UnknownNodeError(
            f"weights {', '.join(unread)} are used otherwise than by a convolution or linear layer that the forward "
            f"calls as a module; initialize the parts of the model that hold them by themselves"
        )


def _input(node: fx.Node) -> fx.Node:
    """Return what a node with one input works on, given by position or by name."""
    found = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensors"))
    if not isinstance(found, fx.Node):
        raise UnknownNodeError(_unknown(node, str(node.target)))
    return found


def _source(node: Any, modules: dict[str, nn.Module]) -> Source:
    """Walk back from a weight to what determines the second moment of its input."""
    if node.op == "placeholder":
        return Source("input", "input")
    if node.op == "call_module":
        name = str(node.target)
        module = modules[name]
        for kind, types in (("activation", ACTIVATIONS), ("norm", NORMS), ("weight", WEIGHTED)):
            if isinstance(module, types):
                return Source(kind, name, module if kind == "activation" else None)
        if isinstance(module, TRANSPARENT):
            return _source(_input(node), modules)
        raise UnknownNodeError(_unknown(node, f"module {type(module).__name__}"))
    if node.target in TRANSPARENT_CALLS:
        return _source(_input(node), modules)
    if node.target in SUMS:
        return Source("sum", _sum_name(node))
    if node.target is torch.cat:
        sources = {_source(argument, modules) for argument in node.all_input_nodes}
        if len(sources) == 1:
            return sources.pop()
        names = ", ".join(sorted(source.name for source in sources))
        raise UnknownNodeError(_unknown(node, f"a concatenation of different sources ({names})"))
    raise UnknownNodeError(_unknown(node, str(getattr(node.target, "__name__", node.target))))


def _sum_name(node: fx.Node) -> str:
    """Name a sum after the module whose forward adds, as in ``sum of stage1_block2``."""
    inside = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"sum of {inside[-1]}" if inside else f"sum {node.name!r}"


def _is_last(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """True where no path from the node meets a weight, norm, activation or sum before the output."""
    for user in node.users:
        if user.op == "call_module" and isinstance(modules[str(user.target)], (*WEIGHTED, *NORMS, *ACTIVATIONS)):
            return False
        if user.op in ("call_function", "call_method") and user.target in SUMS:
            return False
        if not _is_last(user, modules):
            return False
    return True


def _unknown(node: fx.Node, what: str) -> str:
    known = ", ".join(_names(ACTIVATIONS))
    return (
        f"node {node.name!r} ({what}) feeds a weight and is not understood; known activations: {known}. "
        f"Write it as one of these modules, or initialize the model in parts that leave it out"
    )


def _names(types: Sequence[type]) -> list[str]:
    return [kind.__name__ for kind in types]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
