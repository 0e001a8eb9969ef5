"""One step of training, seen by hooks that stay for this step only: what :func:`mpelu.watch` records."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from mpelu.diagnostics.records import LayerRecord
from mpelu.graph.calls import leaves

EXAMPLES = 32
"""Of a batch, the first so many are looked at in the forward pass."""
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "_FabricModule": "_forward_module",
}
"""Modules that only hold another one, by the name of their class, and where: names start below them."""
NOT_MEASURED = float("nan")


@dataclass(frozen=True)
class Layer:
    """A module that is watched."""

    name: str
    module: nn.Module
    weight: str | None
    """Name of its own parameter that it multiplies with."""

    def parameter(self, name: str) -> nn.Parameter:
        """Return one of its own parameters."""
        found = self.module._parameters[name]
        assert found is not None
        return found

    @property
    def curved(self) -> bool:
        """True where it has an alpha and a beta."""
        return all(isinstance(self.module._parameters.get(name), Tensor) for name in ("alpha", "beta"))

    @property
    def opaque(self) -> bool:
        """True for a part of the model that is compiled as a whole."""
        return type(self.module).__name__ == "OptimizedModule"

    @property
    def kind(self) -> str:
        """One of :data:`mpelu.graph.KINDS`."""
        return "opaque" if self.opaque else "activation" if self.curved else "weight"


@dataclass(frozen=True)
class Layers:
    """Which modules are watched: those that hooks see, and those inside of compiled ones."""

    seen: tuple[Layer, ...]
    hidden: tuple[Layer, ...]


def layers_of(model: nn.Module, chosen: Callable[[str, nn.Module], bool] | None) -> Layers:
    """Return the modules of a model to watch: those of ``chosen``, or those with a weight, or with alpha and beta."""
    seen: list[Layer] = []
    hidden: list[Layer] = []
    for name, module, compiled in _named(model):
        layer = Layer(name, module, _weight(module))
        wanted = _is_layer(layer) if chosen is None else chosen(name, module)
        if wanted:
            (hidden if compiled else seen).append(layer)
    return Layers(tuple(seen), tuple(hidden))


def compiled_in_place(module: nn.Module) -> bool:
    """Say whether ``module.compile()`` was called: then its hooks are part of what is compiled."""
    return getattr(module, "_compiled_call_impl", None) is not None


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield each module once, with its name without wrappers, and whether it is inside of a compiled one.

    A compiled module that is called from outside is itself not inside.
    """
    met: set[int] = set()

    def walk(module: nn.Module, path: tuple[str, ...], compiled: bool) -> Iterator[tuple[str, nn.Module, bool]]:
        if id(module) in met:
            return
        met.add(id(module))
        inside = WRAPPERS.get(type(module).__name__)
        compiled = compiled or compiled_in_place(module) or isinstance(module, torch.jit.ScriptModule)
        if inside is not None:
            compiling = type(module).__name__ == "OptimizedModule"
            if compiling and path:
                yield ".".join(path), module, compiled
            yield from walk(getattr(module, inside), path, compiled or compiling)
            return
        yield ".".join(path), module, compiled
        for name, child in module._modules.items():
            if child is not None:
                yield from walk(child, (*path, name), compiled)

    yield from walk(model, (), False)


def _weight(module: nn.Module) -> str | None:
    """Return the name of the parameter that a module multiplies with: ``weight``, or its first with two dimensions."""
    own = {name: value for name, value in module._parameters.items() if value is not None and value.dim() >= 2}
    return "weight" if "weight" in own else next(iter(own), None)


def _is_layer(layer: Layer) -> bool:
    parametrized = parametrize.is_parametrized(layer.module, "weight")
    return layer.weight is not None or layer.curved or parametrized or layer.opaque


class Draft:
    """The record of one step while it is made."""

    def __init__(self, step: int, layers: Layers, optimizer: torch.optim.Optimizer | None) -> None:
        self.step = step
        self.running = False
        """True during the forward pass."""
        self.complete = False
        """True after a forward pass without an error."""
        self._layers, self._optimizer = layers, optimizer
        self._found: list[tuple[Layer, dict[str, Any]]] = []
        self._numbers: list[tuple[dict[str, Any], str, Tensor]] = []
        self._with_gradient: set[int] = set()
        """Indices in what was found of the outputs whose gradient will be seen."""
        self._handles: list[RemovableHandle] = []
        self._depth = 0

    def attach(self, model: nn.Module) -> None:
        """Listen to the layers during the forward pass that begins now."""
        self.running = True
        for layer in self._layers.seen:
            self._handles.append(layer.module.register_forward_hook(self._listener(layer)))
        self._handles.append(model.register_forward_hook(self._after_forward, always_call=True))

    def finish(self) -> tuple[LayerRecord, ...]:
        """Stop listening, fetch the numbers, and return the records."""
        self._detach()
        for device in {number.device for _, _, number in self._numbers}:
            here = [item for item in self._numbers if item[2].device == device]
            fetched = torch.stack([number.float() for _, _, number in here]).tolist()  # waits for the device once
            for (values, key, _), number in zip(here, fetched, strict=True):
                values[key] = number
        self._numbers.clear()
        for _, values in self._found:
            if math.isnan(values.get("correlation", 0.0)):
                del values["correlation"]
        return tuple(LayerRecord(**values) for _, values in self._found)

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _listener(self, layer: Layer) -> Callable[..., None]:
        def listen(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
            tensor = next((value for value in leaves(output, Tensor) if value.is_floating_point()), None)
            if self.running:
                values = self._begin(layer, () if tensor is None else tuple(tensor.shape))
                if tensor is not None:
                    self._measure(values, tensor)
                index = len(self._found) - 1
            else:
                index = self._index_of(layer)
            if tensor is not None and tensor.requires_grad and not layer.curved:
                self._await_gradient(index, tensor)

        return listen

    def _begin(self, layer: Layer, shape: tuple[int, ...]) -> dict[str, Any]:
        uses = sum(other is layer for other, _ in self._found)
        self._depth += layer.kind == "weight"
        values: dict[str, Any] = {
            "name": layer.name if not uses else f"{layer.name}#{uses + 1}",
            "kind": layer.kind,
            "op": "compiled" if layer.opaque else type(layer.module).__name__.lower(),
            "depth": self._depth,
            "shape": shape,
            "mean": NOT_MEASURED,
            "second_moment": NOT_MEASURED,
        }
        self._found.append((layer, values))
        return values

    def _index_of(self, layer: Layer) -> int:
        """Return where the one call of a layer stands, which a reentrant checkpoint repeats; -1 if there are more."""
        found = [index for index, (other, _) in enumerate(self._found) if other is layer]
        return found[0] if len(found) == 1 else -1

    def _measure(self, values: dict[str, Any], tensor: Tensor) -> None:
        with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
            some = tensor.detach()[:EXAMPLES] if tensor.dim() else tensor.detach()[None]
            rows = _at_least_float32(some).reshape(len(some), -1)
            products = rows @ rows.T / rows.shape[1]
            squares = products.diagonal()
            self._note(values, "mean", rows.mean())
            self._note(values, "second_moment", squares.mean())
            # on a CPU the mask takes ten times as long as the rest, and nothing has to be waited for
            if rows.device.type != "cpu" or not squares.isfinite().all():
                self._note(values, "non_finite", rows.isfinite().logical_not().float().mean())
            if len(rows) > 1:
                lengths = squares.sqrt()
                cosines = products / lengths.outer(lengths)
                pairs = torch.ones_like(cosines, dtype=torch.bool).triu(1)
                self._note(values, "correlation", cosines[pairs].nanmean())

    def _await_gradient(self, index: int, tensor: Tensor) -> None:
        if index < 0 or index in self._with_gradient:
            return
        self._with_gradient.add(index)
        values = self._found[index][1]
        tensor.register_hook(self._norm_noter(values, "gradient_norm"))  # type: ignore[no-untyped-call]  # untyped in torch

    def _norm_noter(self, values: dict[str, Any], key: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            with torch.no_grad():
                self._note(values, key, _norm(gradient))

        return note

    def _after_forward(self, model: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        self.running = False
        reentrant = len(self._with_gradient) < sum(not layer.curved for layer, _ in self._found)
        if not reentrant:
            self._detach()
        if output is None:  # an error on the way
            return
        for layer in self._layers.hidden:
            self._begin(layer, ())
        with torch.no_grad():
            for index, (layer, values) in enumerate(self._found):
                if all(layer is not other for other, _ in self._found[:index]):
                    self._look_at_parameters(layer, values)
        self._watch_optimizer()
        self.complete = True

    def _look_at_parameters(self, layer: Layer, values: dict[str, Any]) -> None:
        if layer.curved:
            for name in ("alpha", "beta"):
                self._note(values, name, layer.parameter(name).mean())
        if layer.weight is not None:
            weight = layer.parameter(layer.weight)
            values["weight"] = f"{layer.name}.{layer.weight}".removeprefix(".")
            self._note(values, "weight_norm", _norm(weight))
            if weight.requires_grad:
                noter = self._norm_noter(values, "weight_gradient_norm")
                self._handles.append(weight.register_hook(noter))  # type: ignore[no-untyped-call]  # untyped in torch

    def _watch_optimizer(self) -> None:
        """Compare the weights before and after the step that the optimizer takes next."""
        if self._optimizer is None:
            return
        weights = [
            (values, layer.parameter(layer.weight))
            for layer, values in self._found
            if layer.weight is not None and "weight" in values
        ]
        before: list[Tensor] = []

        def remember(*_: Any) -> None:
            before[:] = [weight.detach().clone() for _, weight in weights]

        def compare(*_: Any) -> None:
            with torch.no_grad():
                for (values, weight), old in zip(weights, before, strict=False):
                    self._note(values, "update_ratio", _norm(weight - old) / _norm(old))
            before.clear()
            after.remove()
            first.remove()

        first = self._optimizer.register_step_pre_hook(remember)
        after = self._optimizer.register_step_post_hook(compare)
        self._handles += [first, after]

    def _note(self, values: dict[str, Any], key: str, number: Tensor) -> None:
        """Note a number without waiting for the device that computes it."""
        self._numbers.append((values, key, number.detach()))


def _norm(tensor: Tensor) -> Tensor:
    entries = tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()
    norm: Tensor = torch.linalg.vector_norm(entries, dtype=torch.float32 if entries.element_size() < 4 else None)
    return norm


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 4 else tensor
