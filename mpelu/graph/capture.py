"""Running a model once so that its calls are recorded and nothing about it changes."""

import gc
import random
import sys
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mpelu.errors import UsageError
from mpelu.graph.calls import Recorder, Trace, leaves, memory_of, name_of, replaced

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
META = torch.device("meta")
TRANSFERS = (Tensor.cpu, Tensor.cuda)
CONTAINERS = (dict, OrderedDict, list, set, deque)


def capture(model: nn.Module, example: Example, *, on_meta: bool = True) -> Trace:
    """Record one forward pass; the arguments and errors are those of :func:`mpelu.graph.read`."""
    if not isinstance(example, Tensor | tuple | Mapping):
        raise UsageError(
            f"an example is a tensor, a tuple of positional arguments or a dict of keyword arguments, "
            f"got {type(example).__name__}"
        )
    example = dict(example) if isinstance(example, Mapping) else example
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise UsageError(f"{', '.join(lazy)} have no shape yet; run the model once on an example before it is read")
    has_values = not any(parameter.is_meta for parameter in model.parameters())
    attempts: list[tuple[type[OnMeta | ForReal], bool]] = [(OnMeta, False)] if on_meta or not has_values else []
    if has_values:
        attempts += [(ForReal, False), (ForReal, True)]  # with gradients, for a forward that differentiates something
    refusals: list[Exception] = []
    with _undisturbed(model):
        for world, gradients in attempts:
            refusals.clear()
            for given in _batches(example):
                try:
                    with torch.set_grad_enabled(gradients):
                        return _record(model, given, world())
                except Exception as error:  # the forward is the user's: it may raise anything
                    refusals.append(error)
    raise _refused(model, example, refusals[0]) from refusals[0]


def call(model: nn.Module, example: Example) -> Any:
    """Call a model with a tensor, positional arguments or keyword arguments."""
    if isinstance(example, Tensor):
        return model(example)
    return model(**example) if isinstance(example, Mapping) else model(*example)


@contextmanager
def eagerly() -> Iterator[None]:
    """Let what torch.compile has compiled run as it was written, call by call."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes a second
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        # what it warns of, a hook that sees the compiled module and the module in it, does no harm here
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
        yield


def input_names(example: Example) -> list[str]:
    """Name the tensors of an example: by keyword, or ``input``, ``input_2``, ..."""
    names: list[str] = []
    for key, item in example.items() if isinstance(example, Mapping) else [("input", example)]:
        count = len(leaves(item, Tensor))
        names += [key if place == 1 else f"{key}_{place}" for place in range(1, count + 1)]
    return names


class OnMeta:
    """A world without values: each tensor is replaced by one of its shape on the meta device.

    The shape that a function gives is worked out once for each combination of arguments, since the blocks of a deep
    net are alike: torch takes 2 ms for that of one batch normalization.
    """

    def __init__(self) -> None:
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: set[int] = set()
        self._layouts: dict[Any, tuple[Any, ...]] = {}

    def replace(self, tensor: Tensor) -> Tensor:
        """Return the stand-in of a tensor from now on, even if it is on the meta device itself."""
        if tensor.layout is torch.strided:
            twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
        else:
            twin = torch.empty_like(tensor, device=META)
        self._stand_ins[id(tensor)] = tensor, twin  # the tensor is kept, so that no other can get its id
        self._own.add(id(twin))
        return twin

    def stand_in(self, tensor: Tensor) -> Tensor:
        entry = self._stand_ins.get(id(tensor))
        if entry is not None:
            return entry[1]
        return tensor if tensor.is_meta else self.replace(tensor)

    def restore(self) -> None:
        """Do nothing: no value was written to."""

    def is_older(self, tensor: Tensor) -> bool:
        return not tensor.is_meta  # all that is computed here is on the meta device

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = leaves((args, kwargs), Tensor)
        kwargs.pop("generator", None)
        if kwargs.get("device") is not None:
            kwargs["device"] = META
        if not tensors:
            with META:
                return function(*args, **kwargs)
        if function in TRANSFERS:
            return args[0]
        if function is Tensor.to:
            args = (args[0], *(META if _is_device(item) else item for item in args[1:]))
        if torch.is_grad_enabled():  # the results are to have a history
            return function(*args, **kwargs)
        try:
            key = function, _signature(args), _signature(kwargs)
            layout = self._layouts.get(key)
        except TypeError:  # an argument has no hash
            return function(*args, **kwargs)
        if layout is not None:
            return torch.empty_strided(layout[0], layout[1], dtype=layout[2], device=META)
        versions = [tensor._version for tensor in tensors if id(tensor) not in self._own]
        result = function(*args, **kwargs)
        unchanged = versions == [tensor._version for tensor in tensors if id(tensor) not in self._own]
        if type(result) is Tensor and unchanged and memory_of(result) not in map(memory_of, tensors):
            self._layouts[key] = result.shape, result.stride(), result.dtype
        return result


class ForReal:
    """A world with values: buffers, and all other tensors from before, are cloned, so that writes do not reach them.

    Parameters are not, since they may be large; one is copied before it is written to, and put back by ``restore``.
    """

    def __init__(self) -> None:
        self._clones: dict[int, tuple[Tensor, Tensor]] = {}
        self._older = {id(item): ref(item) for item in gc.get_objects() if issubclass(type(item), Tensor)}
        self._parameters: dict[int, Tensor] = {}
        self._before: dict[int, Tensor] = {}

    def replace(self, tensor: Tensor) -> Tensor:
        """Return the clone that is used from now on."""
        if isinstance(tensor, nn.Parameter):
            twin: Tensor = tensor
            self._parameters[memory_of(tensor)] = tensor
        else:
            twin = tensor.detach().clone()
        self._clones[id(tensor)] = tensor, twin
        return twin

    def stand_in(self, tensor: Tensor) -> Tensor:
        entry = self._clones.get(id(tensor))
        if entry is not None:
            return entry[1]
        return self.replace(tensor) if self.is_older(tensor) else tensor

    def is_older(self, tensor: Tensor) -> bool:
        found = self._older.get(id(tensor))
        return found is not None and found() is tensor

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(kwargs.get("generator"), torch.Generator):
            kwargs["generator"] = kwargs["generator"].clone_state()
        if name_of(function).endswith("_") or {"out", "max_norm"} & kwargs.keys() or function is F.embedding:
            for memory in map(memory_of, leaves((args, kwargs), Tensor)):
                if memory in self._parameters and memory not in self._before:
                    self._before[memory] = self._parameters[memory].detach().clone()
        return function(*args, **kwargs)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the former values back into the parameters that were written to."""
        for memory, value in self._before.items():
            if not torch.equal(self._parameters[memory], value):
                self._parameters[memory].copy_(value)


def _is_device(item: Any) -> bool:
    return isinstance(item, str | int | torch.device) and not isinstance(item, bool)


def _record(model: nn.Module, example: Example, world: OnMeta | ForReal) -> Trace:
    recorder = Recorder(model, world)
    for tensor in _held(model):
        world.replace(tensor)
        if recorder.known(tensor) is None:
            recorder.name(tensor, "constant")
    fresh = OnMeta().replace if isinstance(world, OnMeta) else torch.clone
    own = replaced(example, Tensor, fresh)
    inputs = [
        recorder.name(tensor, "input", name)
        for tensor, name in zip(leaves(own, Tensor), input_names(example), strict=True)
    ]
    try:
        with recorder.recording():
            call(model, own)
    finally:
        world.restore()
    return Trace(model, recorder.calls, recorder.frames, inputs, recorder.frames[0].outputs)


def _held(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that the modules hold: parameters, buffers, and attributes that are neither."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (item for item in vars(module).values() if isinstance(item, Tensor))


def _batches(example: Example) -> Iterator[Example]:
    """Yield the example, and a batch of one also twice: batch normalization refuses one in training mode."""
    yield example
    if any(tensor.dim() > 1 and len(tensor) == 1 for tensor in leaves(example, Tensor)):
        yield replaced(
            example,
            Tensor,
            lambda tensor: tensor.repeat_interleave(2, 0) if tensor.dim() and len(tensor) == 1 else tensor,
        )


def _refused(model: nn.Module, example: Example, error: Exception) -> UsageError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    name = type(model).__name__
    if "meta" in reason.lower() and any(parameter.is_meta for parameter in model.parameters()):
        return UsageError(
            f"the forward of {name} needs values, and the model is on the meta device ({reason}); "
            f"give it memory first: model.to_empty(device='cpu')"
        )
    given = ", ".join(f"shape {tuple(tensor.shape)} and dtype {tensor.dtype}" for tensor in leaves(example, Tensor))
    return UsageError(f"{name} does not accept an example of {given or 'no tensors'}: {reason}")


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass may change: attributes, modes, gradients, and the state of random numbers."""
    gpus = {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}
    saved = [_attributes(module) for module in model.modules()]
    scripted = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    buffers = [(buffer, buffer.clone()) for module in scripted for buffer in module.buffers()]
    gradients = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    state = random.getstate()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(gpus)))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(eagerly())
        try:
            yield
        finally:
            random.setstate(state)
            for attributes, containers in saved:
                _restore(*attributes)
                for container in containers:
                    _restore(*container)
            for buffer, value in buffers:
                buffer.copy_(value)
            for parameter, requires_grad, grad in gradients:
                if parameter.requires_grad != requires_grad or parameter.grad is not grad:
                    parameter.requires_grad_(requires_grad).grad = grad


def _attributes(module: nn.Module) -> tuple[tuple[Any, Any], list[tuple[Any, Any]]]:
    """Return the attributes of a module with a copy of them, and the same for each attribute that is a container."""
    attributes = vars(module)
    containers = [(item, item.copy() if item else ()) for item in attributes.values() if type(item) in CONTAINERS]
    return (attributes, attributes.copy()), containers


def _restore(container: Any, before: Any) -> None:
    if container or before:
        container.clear()
        (container.extend if isinstance(container, list | deque) else container.update)(before)


def _signature(structure: Any) -> Any:
    """Return what the shape of a result may depend on, as a key of a dict; a TypeError where something has no hash."""
    if isinstance(structure, Tensor):
        return type(structure), structure.shape, structure.stride(), structure.dtype
    if isinstance(structure, tuple | list):
        return type(structure), tuple([_signature(item) for item in structure])
    if isinstance(structure, dict):
        return tuple([(key, _signature(item)) for key, item in structure.items()])
    return type(structure), structure
