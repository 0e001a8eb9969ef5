"""Recording: every torch function that a forward pass calls, with values in place of tensors.

Nothing here knows what a function means. A tensor that a call returns, or writes to, is a new value; so a value never
changes, and an operation in place needs no special care later.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

# remove() of torch 2.13 leaves an entry here, and torch then believes that there are hooks on all modules
_HOOKS_WITH_KWARGS: dict[int, bool] = getattr(torch.nn.modules.module, "_global_forward_hooks_with_kwargs", {})


@dataclass(slots=True, eq=False)
class Value:
    """What a tensor held at one time.

    ``origin`` is "input", "parameter", "buffer", "constant" (made before the pass), "call" or "hidden" (made during the
    pass by something that is no torch function).
    """

    number: int
    shape: tuple[int, ...]
    floating: bool
    origin: str
    name: str = ""
    tensor: Tensor | None = None
    """The tensor itself where nothing else can tell what is in it: a constant."""
    call: int = -1
    """Position of the call that made it."""

    def __repr__(self) -> str:
        return f"%{self.number}{list(self.shape)}"


@dataclass(slots=True, eq=False)
class Frame:
    """One call of a module, and the calls [start, end) that were made in it."""

    index: int
    path: str
    module: nn.Module
    count: int
    """1 at the first call of this module, 2 at the second, ..."""
    parent: "Frame | None"
    depth: int
    start: int
    born: int
    """Values of this number and above were made in it or after it."""
    end: int = -1
    arguments: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    hidden: str = ""
    """What was seen in it, or came out of it, that no recorded call had made; "" where there was nothing."""


@dataclass(slots=True, eq=False)
class Call:
    """One torch function, its arguments with values in place of tensors, and the values it made."""

    index: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    frame: Frame
    results: list[Value]
    tensors: list[Value]
    """The values among the arguments, in order."""
    written: list[int]
    """Positions in ``tensors`` that it wrote to, parameters and buffers left out."""
    silent: list[int]
    """Those of them that it did not return; their new values stand last in ``results``."""
    synthetic: bool = False
    """True where no function was called: a write through one tensor changed another that shares its memory."""


@dataclass(frozen=True, eq=False)
class Trace:
    """A whole forward pass."""

    model: nn.Module
    calls: list[Call]
    frames: list[Frame]
    inputs: list[Value]
    outputs: list[Value]


class World(Protocol):
    """How a recorded pass computes: on meta tensors, or for real without a trace being left."""

    def stand_in(self, tensor: Tensor) -> Tensor:
        """Return the tensor that is computed with instead of this one."""
        ...

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function; the tensors are stand-ins."""
        ...

    def is_older(self, tensor: Tensor) -> bool:
        """True where a tensor that no call made has been there before the pass: a constant."""
        ...


def written_through(whole: Any, part: Any = None) -> None:  # noqa: ARG001
    """Mark a value that changed because memory it shares was written to; never called."""
    raise AssertionError


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a torch function; that of a property is the property's."""
    name = getattr(function, "__name__", type(function).__name__)
    return str(getattr(getattr(function, "__self__", None), "__name__", name)) if name == "__get__" else name


def replaced(structure: Any, kind: type, replace: Callable[[Any], Any]) -> Any:
    """Return nested tuples, lists, dicts and dataclasses with each leaf of a kind replaced, in order."""
    if isinstance(structure, kind):
        return replace(structure)
    if isinstance(structure, tuple):
        items = [replaced(item, kind, replace) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else _like(structure, items)
    if isinstance(structure, list):
        return [replaced(item, kind, replace) for item in structure]
    if isinstance(structure, dict):
        by_key = {key: replaced(item, kind, replace) for key, item in structure.items()}
        return by_key if type(structure) is dict else _with(structure, type(structure).__setitem__, by_key)
    if hasattr(structure, "__dataclass_fields__") and not isinstance(structure, type | Value):
        fields = {name: replaced(getattr(structure, name), kind, replace) for name in structure.__dataclass_fields__}
        return _with(structure, object.__setattr__, fields)
    return structure


def _like(structure: tuple[Any, ...], items: list[Any]) -> Any:
    """Return a tuple again; torch.return_types take one sequence, and torch.Size holds no tensors."""
    if type(structure) is tuple:
        return tuple(items)
    return structure if isinstance(structure, torch.Size) else type(structure)(items)


def _with(structure: Any, put: Callable[..., None], items: dict[Any, Any]) -> Any:
    """Return a copy with other items: a model may return a dict or a dataclass of its own."""
    result = copy(structure)
    for key, item in items.items():
        put(result, key, item)
    return result


def leaves(structure: Any, kind: type) -> list[Any]:
    """Return the leaves of a kind in nested tuples, lists, dicts and dataclasses, in order."""
    found: list[Any] = []
    _gather(structure, kind, found)
    return found


def _gather(structure: Any, kind: type, found: list[Any]) -> None:
    if isinstance(structure, kind):
        found.append(structure)
    elif isinstance(structure, tuple | list):
        for item in structure:
            _gather(item, kind, found)
    elif isinstance(structure, dict):
        for item in structure.values():
            _gather(item, kind, found)
    elif hasattr(structure, "__dataclass_fields__") and not isinstance(structure, type | Value):
        for name in structure.__dataclass_fields__:
            _gather(getattr(structure, name, None), kind, found)


INSIDE_TORCH = ("torch._decomp", "torch._refs", "torch._prims", "torch._meta_registrations", "torch._subclasses")
BETWEEN = ("torch", "torch._ops", "torch.overrides", "torch.utils._pytree")


def called_by_torch() -> bool:
    """True where torch itself, in working out a function of which nothing was seen, calls the present function.

    The shapes of many functions are worked out in Python, and what TorchScript calls arrives there unseen.
    """
    frame = sys._getframe(2)
    name = frame.f_globals["__name__"]
    while name in BETWEEN and frame.f_back is not None:
        frame = frame.f_back
        name = frame.f_globals["__name__"]
    return bool(name.startswith(INSIDE_TORCH))


def is_recorded(function: Callable[..., Any], result: Any) -> bool:
    """True for calls that give a tensor, and for the one that writes to a tensor and returns nothing."""
    if isinstance(result, Tensor):
        return True
    if isinstance(result, tuple | list):
        return not isinstance(result, torch.Size) and bool(leaves(result, Tensor))
    return function is Tensor.__setitem__


class Recorder(TorchFunctionMode):
    """While it is entered: notes the torch functions that a model calls, and in which of its modules."""

    def __init__(self, model: nn.Module, world: World) -> None:
        super().__init__()
        self.world = world
        self.calls: list[Call] = []
        self.frames: list[Frame] = []
        self._stack: list[Frame] = []
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._counts: dict[str, int] = {}
        self._numbers = 0
        self._known: dict[int, tuple[Callable[[], Tensor | None], Value]] = {}
        self._memory: dict[int, list[Callable[[], Tensor | None]]] = {}
        self._thread = threading.get_ident()
        for name, buffer in model.named_buffers():
            self.name(buffer, "buffer", name)
        for name, parameter in model.named_parameters():
            self.name(parameter, "parameter", name)

    def name(self, tensor: Tensor, origin: str, name: str = "") -> Value:
        """Make a value of a tensor that is there before the pass."""
        value = self._new(tensor, origin, name)
        if origin == "constant":
            value.tensor = tensor
        return value

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Enter, with hooks that follow the modules; they are removed at the end."""
        hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, with_kwargs=True),
        ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()
                _HOOKS_WITH_KWARGS.pop(hook.id, None)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if called_by_torch():
            return func(*args, **(kwargs or {}))
        given: list[Tensor] = []
        used: list[Tensor] = []

        def stand_in(tensor: Tensor) -> Tensor:
            given.append(tensor)
            used.append(self.world.stand_in(tensor))
            return used[-1]

        actual = replaced(args, Tensor, stand_in)
        actual_kwargs = replaced(dict(kwargs), Tensor, stand_in) if kwargs else {}
        versions = [tensor._version for tensor in used]
        result = self.world.call(func, actual, actual_kwargs)
        if is_recorded(func, result) and self._stack:
            for original, twin in zip(given, used, strict=True):
                if result is twin:  # a stand-in must not be seen outside: what is written to it is found through it
                    result = original
            written = [place for place, tensor in enumerate(used) if tensor._version != versions[place]]
            self._note(func, args, dict(kwargs or {}), given, written, result)
        return result

    def _note(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
        written: list[int],
        result: Any,
    ) -> None:
        path = self._stack[-1].path
        reader = name_of(function) + (f" in module {path!r}" if path else "")
        values = [self.value(tensor, reader) for tensor in given]
        in_turn = iter(values)
        returned = leaves(result, Tensor)
        # tensors that share memory share the counter of writes: meant is the one that is returned, or the first
        written.sort(key=lambda place: not any(given[place] is tensor for tensor in returned))
        written = list({memory_of(given[place]): place for place in reversed(written)}.values())[::-1]
        written = [place for place in written if values[place].origin not in ("parameter", "buffer")]
        silent = [place for place in written if not any(given[place] is tensor for tensor in returned)]
        call = Call(
            len(self.calls),
            function,
            replaced(args, Tensor, lambda _: next(in_turn)),
            replaced(kwargs, Tensor, lambda _: next(in_turn)) if kwargs else {},
            self._stack[-1],
            [],
            values,
            written,
            silent,
        )
        self.calls.append(call)
        for tensor in [*returned, *(given[place] for place in silent)]:
            call.results.append(self._new(tensor, "call", call=call.index))
        for place in written:
            self._write_through(given[place], call.frame)

    def _write_through(self, tensor: Tensor, frame: Frame) -> None:
        """Give new values to the other tensors that share the memory of one that was written to."""
        memory = memory_of(tensor)
        others = {id(other): other for found in self._memory[memory] if (other := found()) is not None}
        covered = tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
        for other in others.values():
            if other is tensor or self._known[id(other)][1].origin in ("parameter", "buffer"):
                continue
            before = self.value(other)
            whole = self.value(tensor)
            args = (whole,) if covered else (before, whole)
            call = Call(len(self.calls), written_through, args, {}, frame, [], list(args), [], [], synthetic=True)
            self.calls.append(call)
            call.results.append(self._new(other, "call", call=call.index))

    def _new(self, tensor: Tensor, origin: str, name: str = "", call: int = -1) -> Value:
        value = Value(
            self._numbers,
            tuple(tensor.shape),
            tensor.is_floating_point() or tensor.is_complex(),
            origin,
            name,
            call=call,
        )
        self._numbers += 1
        found = ref(tensor)
        self._known[id(tensor)] = found, value
        if origin in ("input", "call", "hidden"):
            self._memory.setdefault(memory_of(tensor), []).append(found)
        return value

    def known(self, tensor: Tensor) -> Value | None:
        """Return the value of a tensor that was seen before."""
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def value(self, tensor: Tensor, reader: str = "") -> Value:
        """Return the value of a tensor; one that nobody made is a constant, or hidden in the present module."""
        value = self.known(tensor)
        if value is not None:
            return value
        if self.world.is_older(tensor):
            return self.name(tensor, "constant")
        return self._hide(tensor, self._stack[-1], reader)

    def _hide(self, tensor: Tensor, frame: Frame, reader: str) -> Value:
        frame.hidden = frame.hidden or f"a tensor of shape {tuple(tensor.shape)}, read by {reader},"
        return self._new(tensor, "hidden")

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        parent = self._stack[-1] if self._stack else None
        path = self._paths.get(id(module))
        if path is None:
            path = ".".join(filter(None, (parent.path if parent else "", type(module).__name__)))
        self._counts[path] = self._counts.get(path, 0) + 1
        arguments = []
        if parent is not None:  # what comes in unknown was made by the code around this module
            arguments = [self.value(tensor, f"module {path!r}") for tensor in leaves(args, Tensor)]
        place, depth, count = len(self.frames), len(self._stack), self._counts[path]
        frame = Frame(place, path, module, count, parent, depth, len(self.calls), self._numbers, arguments=arguments)
        self._stack.append(frame)
        self.frames.append(frame)

    def _leave_module(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG002
        if threading.get_ident() != self._thread or not any(frame.module is module for frame in self._stack):
            return
        while True:  # a module that raised, with the error caught by the model, has not left
            frame = self._stack.pop()
            frame.end = len(self.calls)
            if frame.module is module:
                break
        for tensor in leaves(kwargs, Tensor):  # hooks see keyword arguments only now
            value = self.known(tensor)
            if value is None:
                continue
            frame.arguments.append(value)
            if value.origin == "hidden" and value.number >= frame.born and frame.parent:
                frame.parent.hidden = frame.hidden or frame.parent.hidden
        for tensor in leaves(output, Tensor):
            value = self.known(tensor)
            if value is None:
                older = self.world.is_older(tensor)
                value = self.name(tensor, "constant") if older else self._hide(tensor, frame, "its caller")
            frame.outputs.append(value)


def memory_of(tensor: Tensor) -> int:
    """Return what two tensors have in common where a write to one may change the other."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, nested and batched tensors have no one storage
        return id(tensor)
