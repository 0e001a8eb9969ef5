"""Function calls in a forward that a module takes over: ``F.relu(x)`` is answered by a unit of the module.

A class is made of the module's own that runs the same forward under a ``TorchFunctionMode``. In it, the k-th call of a
function, counted anew in each forward, is answered by the unit that belongs to it; every other call passes. So it does
not matter how the call is spelled or what Python does in between, and torch.compile traces it as ordinary code. Other
ways reach less: a rewritten source does not see functions that are held as attributes or called in helpers, torch.fx
stops at control flow, and names that are replaced in the forward's globals leave ``x.relu()`` as it is.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpelu.errors import UsageError
from mpelu.graph.functions import rule_of

NAMES = """relu relu6 elu selu celu gelu silu mish hardswish hardsigmoid hardtanh hardshrink softshrink tanhshrink
    softsign softplus logsigmoid log_sigmoid leaky_relu prelu rrelu threshold _threshold tanh sigmoid expit clamp
    clamp_min clip abs sin cos"""
NAMESPACES = (F, torch, Tensor, torch.special, torch._C._nn)


def _operations() -> dict[Callable[..., Any], str]:
    found: dict[Callable[..., Any], str] = {}
    for name in NAMES.split():
        for spelling in (name, f"{name}_"):
            functions = [getattr(namespace, spelling, None) for namespace in NAMESPACES]
            found.update((function, rule_of(function).op) for function in functions if function is not None)
    return found


OPERATIONS = _operations()
"""The functions whose calls can be taken over, in every spelling, to their name."""
TABLES = "_interposed"
"""Attribute of a module with a table for each time that it was converted."""

Table = Mapping[bool, Mapping[str, tuple[str, ...]]]
"""Training mode, to the name of a function, to the attribute with the unit for each of its calls; "" for none."""


class _Calls(TorchFunctionMode):
    """Answers the calls in one forward of a module."""

    def __init__(self, owner: nn.Module, level: int) -> None:
        super().__init__()
        self._owner = owner
        self._table: Mapping[str, tuple[str, ...]] = getattr(owner, TABLES)[level][owner.training]
        self._met = dict.fromkeys(self._table, 0)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        operation = OPERATIONS.get(func, "")
        if operation not in self._table:
            return func(*args, **(kwargs or {}))
        place = self._met[operation]
        self._met[operation] = place + 1
        name = self._unit(operation, place)
        if not name:
            return func(*args, **(kwargs or {}))
        return getattr(self._owner, name)(args[0] if args else (kwargs or {})["input"])

    def _unit(self, operation: str, place: int) -> str:
        units = self._table[operation]
        if place < len(units):
            return units[place]
        last: str = units[-1]
        if last in units[-2:-1]:  # a loop over time steps that is longer now
            return last
        raise UsageError(
            f"{type(self._owner).__name__} was converted on an example for which its forward calls {operation} "
            f"{len(units)} times, and now calls it once more. Convert it on an example that takes this path"
        )


@cache
def taking_over(base: Any) -> Any:
    """Return the class that answers function calls in the forward of ``base`` by the newest table of the module.

    It has the name of its base and is made again when an object is copied or loaded, so that only the base has to be
    importable.
    """
    level: int = getattr(base, "_interposed_level", -1) + 1

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Calls(self, level):
            return base.forward(self, *args, **kwargs)

    def reduced(self: nn.Module, protocol: Any) -> Any:
        function, arguments, *rest = base.__reduce_ex__(self, protocol)
        if function is remade:  # the base is such a class itself
            return (remade, (arguments[0], level + 1, *arguments[2:]), *rest)
        return (remade, (base, 1, *arguments[1:]), *rest)

    members = {
        "forward": forward,
        "__reduce_ex__": reduced,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_interposed_level": level,
    }
    return type(base.__name__, (base,), members)


def remade(base: Any, levels: int, *arguments: Any) -> nn.Module:
    """Return an empty module of a class that takes calls over, as unpickling wants it."""
    for _ in range(levels):
        base = taking_over(base)
    module: nn.Module = base.__new__(base, *arguments)
    return module
