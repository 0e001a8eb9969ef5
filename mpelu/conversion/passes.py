"""Forward passes that leave no trace: what a model returns, what its activations are given, what it writes over."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpelu.graph import Example, Graph, Node, run
from mpelu.graph.calls import called_by_torch, is_recorded, leaves, memory_of, replaced
from mpelu.graph.capture import call, eagerly
from mpelu.init.aside import holding, modes_kept, own_randomness

SAMPLES = 2**16
"""Entries of the input of an activation that are looked at for each of its uses."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in eval mode, without gradients; modes, buffers, attributes and random numbers are put back."""
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        stack.enter_context(in_mode(model, training=False))
        stack.enter_context(holding(model, parameters))
        stack.enter_context(own_randomness(parameters.values(), seed=0))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eagerly())
        yield


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or eval mode, and every module back into its own."""
    with modes_kept(model):
        model.train(training)
        yield


def has_values(model: nn.Module, example: Example) -> bool:
    """True where no tensor of the model or the example is on the meta device."""
    held = (*model.parameters(), *model.buffers(), *leaves(example, Tensor))
    return not any(tensor.is_meta for tensor in held)


def own(example: Example) -> Any:
    """Return a copy of the tensors: a forward may write to them."""
    return replaced(dict(example) if isinstance(example, Mapping) else example, Tensor, torch.clone)


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """Return the tensors that a model returns in eval mode."""
    with undisturbed(model):
        return [tensor.detach().clone() for tensor in leaves(call(model, own(example)), Tensor)]


def largest_difference(before: list[Tensor], after: list[Tensor]) -> float:
    """Return the largest absolute difference of any entry; those that are the same NaN or infinity do not count."""
    largest = 0.0
    for old, new in zip(before, after, strict=True):
        wide = torch.complex128 if old.is_complex() else torch.float64
        old, new = old.to(wide), new.to(wide)
        same = (old == new) | (old.isnan() & new.isnan())
        gap = (old - new).abs().masked_fill(same, 0.0)
        largest = max(largest, float(gap.max()) if gap.numel() else 0.0)
    return largest


def samples(
    model: nn.Module, example: Example, graph: Graph, wanted: Mapping[int, Callable[[Tensor], Tensor]]
) -> dict[int, Tensor]:
    """Return what enters the nodes of some indices, each as it is after its own function: shape (up to SAMPLES,)."""
    found: dict[int, Tensor] = {}

    def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
        if node.index in wanted:
            entries = wanted[node.index](inputs[0]).flatten()
            found[node.index] = entries[:: max(1, len(entries) // SAMPLES)].to("cpu", torch.float64, copy=True)

    with undisturbed(model):
        run(model, own(example), graph, visit)
    return found


class _Watch(TorchFunctionMode):
    """Follows a pass call by call and finds which activations depend on writing over their input, and which on not."""

    def __init__(self, calls: Collection[int], total: Mapping[int, int]) -> None:
        super().__init__()
        self._wanted = calls
        self._index_of = total
        self._next = 0
        self._kept: dict[int, tuple[Tensor, int]] = {}
        self._stale: dict[int, list[int]] = defaultdict(list)
        self.stale: set[int] = set()
        """Positions of calls in place after which the model reads the tensor that they wrote to."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if called_by_torch():
            return func(*args, **(kwargs or {}))
        given = leaves((args, dict(kwargs or {})), Tensor)
        self.read(given)
        before = given[0]._version if given else 0
        result = func(*args, **(kwargs or {}))
        if not is_recorded(func, result):
            return result
        index = self._index_of.get(self._next, -1)
        self._next += 1
        if index not in self._wanted or not given:
            return result
        x = given[0]
        if x._version != before:
            self._stale[memory_of(x)].append(index)
            result = x.clone()
        self._kept[index] = x, x._version
        return result

    def read(self, tensors: list[Tensor]) -> None:
        """Note which writes in place are seen through these tensors."""
        for tensor in tensors if self._stale else ():
            self.stale.update(self._stale.get(memory_of(tensor), ()))

    def overwritten(self) -> set[int]:
        """Return the positions of the calls whose input was written to afterwards."""
        return {index for index, (x, version) in self._kept.items() if x._version != version}


def written_over(model: nn.Module, example: Example, graph: Graph, calls: Collection[int]) -> tuple[set[int], set[int]]:
    """Run a model and look at the memory that some calls of its trace read.

    Returns:
        The calls in place whose effect on their input the model relies on, and the calls whose input is written to
        later, so that a unit must not keep it for the backward pass.
    """
    real = [step.index for step in graph.trace.calls if not step.synthetic]
    watch = _Watch(calls, dict(enumerate(real)))
    with undisturbed(model):
        given = own(example)
        if not has_values(model, example):
            given = replaced(given, Tensor, lambda tensor: tensor.to("meta"))
        with watch:
            result = call(model, given)
        watch.read(leaves(result, Tensor))
    return watch.stale, watch.overwritten()
