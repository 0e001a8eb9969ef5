"""A real forward pass that stops at each node."""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from mpelu.errors import UsageError
from mpelu.graph.calls import Call, called_by_torch, is_recorded, leaves, memory_of, name_of, replaced
from mpelu.graph.capture import Example, call, eagerly
from mpelu.graph.nodes import Graph, Node, Place

Visit = Callable[[Node, tuple[Tensor, ...], Tensor], Tensor | None]


def run(model: nn.Module, example: Example, graph: Graph, visit: Visit) -> Any:
    """Run a model and call ``visit(node, inputs, output)`` for each node of its graph, in order.

    What ``visit`` returns takes the place of the output from there on; None leaves it. So one pass can set a weight and
    go on with the output that it then gives. It is a forward pass like any other: buffers and random numbers move, and
    gradients are recorded where the caller has them recorded. What torch.compile has compiled runs as it was written,
    and attention modules do without their fused kernel for inference.

    The inputs are the outputs of the nodes that the node reads, as ``visit`` left them; where the model has written
    over one since, a detached copy.

    Args:
        model: That of the graph, in the mode that it was read in.
        example: As for :func:`mpelu.graph.read`; the batch may have another size.
        graph: What ``read`` returned.
        visit: Called with the node, a tuple of tensors and a tensor.

    Returns:
        What the model returns.

    Raises:
        UsageError: If the model makes other calls than those in the graph.

    Example:
        >>> import torch
        >>> from mpelu.graph import read
        >>> model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.ones(2, 4)
        >>> _ = run(model, x, read(model, x), lambda node, inputs, output: print(node.name, tuple(output.shape)))
        input (2, 4)
        0 (2, 3)
        1 (2, 3)
        output (2, 3)
    """
    return _Follower(graph, visit).follow(model, dict(example) if isinstance(example, Mapping) else example)


class _Follower(TorchFunctionMode):
    """Compares each call with the recorded one, and visits the nodes that it makes."""

    def __init__(self, graph: Graph, visit: Visit) -> None:
        super().__init__()
        self._visit = visit
        self._calls = [step for step in graph.trace.calls if not step.synthetic]
        self._end = len(graph.trace.calls)
        self._next = 0
        self._visiting = False
        self._thread = threading.get_ident()
        self._entered = 0
        self._stack: list[tuple[nn.Module, int]] = []
        self._live: dict[int, Tensor] = {}
        self._last_reader = {index: node.index for node in graph.nodes for index in node.inputs}
        self._instead: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of what it stands for, which is kept
        self._met: dict[tuple[str, int], list[tuple[Node, Place]]] = defaultdict(list)
        for node, place in zip(graph.nodes, graph.places, strict=True):
            self._met[place.moment, place.index].append((node, place))
        self._opaque = any(place.moment == "returned" for place in graph.places)

    def follow(self, model: nn.Module, example: Any) -> Any:
        """Run the model."""
        example, _ = self._visited(("inputs", -1), example)
        with ExitStack() as stack:
            stack.enter_context(eagerly())
            if self._opaque:
                stack.callback(register_module_forward_pre_hook(self._enter_module).remove)
                stack.callback(register_module_forward_hook(self._leave_module).remove)
            with self:
                output = call(model, example)
        if self._next < len(self._calls):
            raise self._differs("the end")
        if self._instead:
            output = replaced(output, Tensor, self._present)
        return self._visited(("outputs", self._end), output)[0]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if self._visiting or called_by_torch():
            return func(*args, **named)
        if self._instead:
            args, named = replaced((args, named), Tensor, self._present)
        expected = self._calls[self._next] if self._next < len(self._calls) else None
        if expected is None or not (func is expected.function or func == expected.function):
            result = func(*args, **named)
            if is_recorded(func, result):
                raise self._differs(name_of(func))
            return result
        if ("arguments", expected.index) in self._met:
            (args, named), changed = self._visited(("arguments", expected.index), (args, named))
            self._instead.update((id(old), (old, new)) for old, new in changed)
        if expected.written:
            given = leaves((args, named), Tensor)
            self._keep([given[position] for position in expected.written])
        result = func(*args, **named)
        if is_recorded(func, result):
            self._next += 1
            if ("results", expected.index) in self._met:
                return self._result(expected, args, named, result)
        return result

    def _result(self, made: Call, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Visit the nodes that a call makes, and return its result as they leave it."""
        given = leaves((args, kwargs), Tensor)
        result, changed = self._visited(("results", made.index), result, [given[place] for place in made.silent])
        for old, new in changed:
            if any(old is tensor for tensor in given):  # written in place: the model may hold the old tensor
                self._instead[id(old)] = old, new
        return result

    def _visited(
        self, key: tuple[str, int], structure: Any, others: Sequence[Tensor] = ()
    ) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
        """Visit the nodes that are met here, and return the structure with what took a place, and what took which."""
        if key not in self._met:
            return structure, []
        tensors = [*leaves(structure, Tensor), *others]
        changed: dict[int, Tensor] = {}
        for node, place in self._met[key]:
            instead = self._meet(node, tensors[place.position])
            if instead is not None:
                changed[place.position] = instead
        if changed:
            positions = count()
            structure = replaced(structure, Tensor, lambda tensor: changed.get(next(positions), tensor))
        return structure, [(tensors[position], instead) for position, instead in changed.items()]

    def _meet(self, node: Node, output: Tensor) -> Tensor | None:
        inputs = tuple(self._live[index] for index in node.inputs)
        self._visiting = True
        try:
            instead = self._visit(node, inputs, output)
        finally:
            self._visiting = False
        for index in set(node.inputs):
            if self._last_reader[index] == node.index:
                del self._live[index]
        if node.index in self._last_reader:
            self._live[node.index] = output if instead is None else instead
        return instead

    def _keep(self, overwritten: list[Tensor]) -> None:
        """Copy the values that are still to be shown to ``visit`` and are about to be written over."""
        memories = {memory_of(tensor) for tensor in overwritten}
        for index, tensor in self._live.items():
            if memory_of(tensor) in memories:
                self._live[index] = tensor.detach().clone()

    def _present(self, tensor: Tensor) -> Tensor:
        """Return what stands for a tensor now."""
        while id(tensor) in self._instead:
            tensor = self._instead[id(tensor)][1]
        return tensor

    def _enter_module(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002
        if not self._visiting and threading.get_ident() == self._thread:
            self._stack.append((module, self._entered))
            self._entered += 1

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG002
        if self._visiting or threading.get_ident() != self._thread:
            return None
        while self._stack:
            inner, index = self._stack.pop()
            if inner is module:
                return self._visited(("returned", index), output)[0]
        return None

    def _differs(self, found: str) -> UsageError:
        expected = self._calls[self._next] if self._next < len(self._calls) else None
        recorded = "the end" if expected is None else name_of(expected.function)
        where = f" in module {expected.frame.path!r}" if expected is not None and expected.frame.path else ""
        return UsageError(
            f"the forward pass differs from the graph at call {self._next + 1}: recorded was {recorded}{where}, now "
            f"comes {found}. Read the graph again with this model, in this mode; where the path depends on the values, "
            f"with this example and on_meta=False"
        )
