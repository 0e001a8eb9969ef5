"""The function, entry by entry, that a few calls of a trace make of one value."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.graph.calls import Call, Value, leaves, replaced
from mpelu.graph.facts import FILLED_WITH, Facts
from mpelu.graph.functions import PER_CHANNEL

CONSTANT, AFFINE, OTHER = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A function that can be called with any tensor, in the tensor's dtype, and the model's present parameters.

    The channels are those dims of the input along which parameters change: dim 1 of an input of two dims, else the dim
    that they were recorded along; any where there are no such parameters.
    """

    facts: Facts
    base: Value
    calls: tuple[Call, ...]
    channel_dim: int | None

    def __call__(self, x: Tensor) -> Tensor:
        dim = self._dim(x)
        x = x if dim is None else x.movedim(dim, 1)
        like = x if x.is_floating_point() else torch.empty_like(x, dtype=torch.get_default_dtype())
        values = {self.base.number: x}
        for call in self.calls:
            values[call.results[0].number] = self._apply(call, values, like)
        result = values[self.calls[-1].results[0].number]
        return result if dim is None else result.movedim(1, dim)

    def __repr__(self) -> str:
        return f"Pointwise({' -> '.join(self.facts.rules[call.index].op for call in self.calls)})"

    def _dim(self, x: Tensor) -> int | None:
        if self.channel_dim is None:
            return None
        if x.dim() < 2:
            raise UsageError(
                f"this function has parameters for each channel: x must have shape (K, C), or that of the model's own "
                f"values, {self.base.shape}; got {tuple(x.shape)}"
            )
        if x.dim() == 2:
            return 1
        return x.dim() - 1 if self.channel_dim == len(self.base.shape) - 1 else self.channel_dim

    def _apply(self, call: Call, values: dict[int, Tensor], like: Tensor) -> Tensor:
        """Return the result of a call, of which ``like`` has shape, device and floating dtype."""
        rule = self.facts.rules[call.index]

        def fill(value: Value) -> Tensor:
            value = self.facts.resolved(value)
            if value.number in values:
                found = values[value.number]
            else:
                found = evaluated(self.facts, value, like)
                if rule.op in PER_CHANNEL:
                    found = found.reshape(-1)
                else:
                    found = found.reshape(() if found.numel() == 1 else (1, -1, *([1] * (like.dim() - 2))))
            return found.expand(like.shape).clone() if call.written else found

        if rule.kind == "identity" and call.results[0].floating:  # floating values stay in the dtype of x
            value = fill(call.tensors[0])
            return value if value.is_floating_point() else value.to(like.dtype)
        return _computed(call, call.results[0], fill, like)


def evaluated(facts: Facts, value: Value, like: Tensor) -> Tensor:
    """Return a value without data, from the model's present parameters and in the dtype of ``like``.

    One whose entries are all the same number is returned as that number.

    Raises:
        UsageError: If a parameter that it needs is on the meta device.
    """
    value = facts.resolved(value)
    if value.origin in ("parameter", "buffer"):
        return _as_dtype(_held(facts, value), like)
    if value.origin == "constant":
        assert value.tensor is not None
        return _as_dtype(value.tensor, like)
    call = facts.trace.calls[value.call]
    rule = facts.rules[call.index]
    if rule.kind == "filled":
        return torch.tensor(_number(call, rule.op), dtype=like.dtype if value.floating else None, device=like.device)
    return _as_dtype(_computed(call, value, lambda item: evaluated(facts, item, like), like), like)


def _held(facts: Facts, value: Value) -> Tensor:
    """Return the parameter or buffer as it is now."""
    model = facts.trace.model
    held = model.get_parameter(value.name) if value.origin == "parameter" else model.get_buffer(value.name)
    if held.is_meta:
        raise UsageError(f"{value.name} is on the meta device and has no values; give the model memory first")
    return held


def _computed(call: Call, result: Value, fill: Callable[[Value], Tensor], like: Tensor) -> Tensor:
    """Return one result of a call that is made again, on the device of ``like``."""
    kwargs = {name: item for name, item in call.kwargs.items() if name != "out"}
    args, kwargs = replaced((call.args, kwargs), Value, fill)
    args, kwargs = replaced((args, kwargs), torch.device, lambda _: like.device)
    given = leaves((args, kwargs), Tensor)
    returned = leaves(call.function(*args, **kwargs), Tensor)
    tensors: list[Tensor] = [*returned, *(given[place] for place in call.silent)]
    return tensors[call.results.index(result)]


def _as_dtype(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a copy: a call may write to it."""
    dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(device=like.device, dtype=dtype, copy=True)


def _number(call: Call, op: str) -> float | bool | int:
    if op in FILLED_WITH:
        found: float = call.kwargs.get("fill_value", call.kwargs.get("value", call.args[-1]))
        return found
    return 0 if "zero" in op else 1


def degree(facts: Facts, base: Value, calls: tuple[Call, ...]) -> int:
    """Return whether calls make a constant, an affine or another function of a value."""
    degrees = {base.number: AFFINE}
    for call in calls:
        degrees[call.results[0].number] = _degree(facts, call, degrees)
    return degrees[calls[-1].results[0].number]


def _degree(facts: Facts, call: Call, degrees: dict[int, int]) -> int:
    rule = facts.rules[call.index]
    of_each = [degrees.get(facts.resolved(value).number, CONSTANT) for value in call.tensors]
    highest = max(of_each)
    if rule.op in ("add", "sub", "rsub", "neg") or (rule.kind == "identity" and call.results[0].floating):
        return highest
    if rule.op == "mul":
        return min(sum(of_each), OTHER)
    by_a_constant = bool(call.args) and isinstance(call.args[0], Value) and max(of_each[1:], default=0) == CONSTANT
    if rule.op == "div" and by_a_constant and "rounding_mode" not in call.kwargs:
        return of_each[0]
    return CONSTANT if highest == CONSTANT else OTHER
