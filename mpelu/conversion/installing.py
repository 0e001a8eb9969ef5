"""Putting units in place, and taking them out again."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from torch import nn

from mpelu.conversion.interposing import OPERATIONS, TABLES, Table, taking_over
from mpelu.conversion.sites import Group
from mpelu.errors import UsageError
from mpelu.graph import Graph
from mpelu.graph.calls import Frame

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
"""Attributes that a unit takes over from the module whose place it takes; handles of these hooks work as before."""


class Installer:
    """Puts units into a model.

    Attributes:
        steps_back: Each takes back one change; the last one comes first.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.steps_back: list[Callable[[], None]] = []
        self._paths: dict[Group, str] = {}
        self._places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        for parent in model.modules():
            for name, child in parent._modules.items():
                self._places[id(child)].append((parent, name))

    def put(self, units: Mapping[Group, nn.Module], graphs: Mapping[bool, Graph]) -> None:
        """Put each unit in the place of its group."""
        names: dict[Group, str] = {}
        owners: dict[int, nn.Module] = {}
        for group, unit in units.items():
            holder = group.first.holder
            if group.first.frame is not None:
                self._paths[group] = group.first.frame.path
                self._replace(holder, unit)
            else:
                names[group] = self._add(holder, group.first.op, unit)
                self._paths[group] = f"{group.first.owner.path}.{names[group]}".lstrip(".")
                owners[id(holder)] = holder
        for owner in owners.values():
            self._take_over(owner, _table(owner, units, names, graphs))

    def path(self, group: Group) -> str:
        """Return where the unit of a group is."""
        return self._paths[group]

    def take_back(self) -> None:
        """Undo everything."""
        while self.steps_back:
            self.steps_back.pop()()

    def _replace(self, old: nn.Module, unit: nn.Module) -> None:
        places = self._places[id(old)]
        vars(unit).update({name: vars(old)[name] for name in HOOKS if name in vars(old)})
        for parent, name in places:
            parent._modules[name] = unit
            self._slow_path(parent)

        def back() -> None:
            changed = [name for parent, name in places if parent._modules.get(name) is not unit]
            if changed:
                raise UsageError(f"{', '.join(changed)} was replaced since the conversion, which cannot be undone now")
            old.training = unit.training
            for parent, name in places:
                parent._modules[name] = old

        self.steps_back.append(back)

    def _add(self, owner: nn.Module, operation: str, unit: nn.Module) -> str:
        name = next(name for number in count(1) if not hasattr(owner, name := f"{operation}_{number}"))
        owner.add_module(name, unit)

        def back() -> None:
            if owner._modules.get(name) is not unit:
                raise UsageError(f"{name} was replaced since the conversion, which cannot be undone now")
            del owner._modules[name]

        self.steps_back.append(back)
        return name

    def _take_over(self, owner: nn.Module, table: Table) -> None:
        before: Any = type(owner)
        after = taking_over(before)
        attributes = vars(owner)
        tables = attributes.get(TABLES)
        attributes[TABLES] = (*(tables or ()), table)
        owner.__class__ = after
        self._slow_path(owner)

        def back() -> None:
            if type(owner) is not after:
                raise UsageError(f"the class of a {before.__name__} was changed since the conversion; undo that first")
            owner.__class__ = before
            if tables is None:
                del attributes[TABLES]
            else:
                attributes[TABLES] = tables

        self.steps_back.append(back)

    def _slow_path(self, layer: nn.Module) -> None:
        """Keep torch's layer from computing ReLU or GELU itself, in a fused kernel, as it does for inference."""
        if not isinstance(layer, nn.TransformerEncoderLayer):
            return
        self._set(layer, "activation_relu_or_gelu", 0)
        for encoder in self._model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(item is layer for item in encoder.layers):
                self._set(encoder, "use_nested_tensor", False)

    def _set(self, module: nn.Module, name: str, value: int) -> None:
        attributes: dict[str, Any] = vars(module)
        before = attributes[name]
        attributes[name] = value
        self.steps_back.append(lambda: attributes.update({name: before}))


def _table(
    owner: nn.Module, units: Mapping[Group, nn.Module], names: Mapping[Group, str], graphs: Mapping[bool, Graph]
) -> Table:
    """Return for each mode which unit answers which call in the forward of a module."""
    operations = {group.first.op for group in names if group.first.holder is owner}
    by_mode: dict[bool, dict[str, tuple[str, ...]]] = {}
    for training, graph in graphs.items():
        frames = [frame for frame in graph.trace.frames if frame.module is owner]
        taken = {
            call.index: (names.get(group, ""), site.owner)
            for group in units
            for site in group.sites
            if site.training == training
            for call in site.calls
        }
        if frames:
            by_mode[training] = {
                operation: max((_answers(graph, frame, operation, taken) for frame in frames), key=_length)
                for operation in operations
            }
    known = next(iter(by_mode.values()))
    return {training: by_mode.get(training, known) for training in (False, True)}


def _length(answers: tuple[str, ...]) -> tuple[int, int]:
    return len(answers), sum(map(bool, answers))


def _answers(graph: Graph, frame: Frame, operation: str, taken: Mapping[int, tuple[str, Frame]]) -> tuple[str, ...]:
    """Return the unit for each call of a function in a forward; calls that another unit answers are not seen there."""
    found = []
    for call in graph.trace.calls[frame.start : frame.end]:
        if OPERATIONS.get(call.function) != operation:
            continue
        name, owner = taken.get(call.index, ("", frame))
        if owner is frame:
            found.append(name)
    return tuple(found)
