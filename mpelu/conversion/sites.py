"""Where a model computes activations: which calls, in which module, and what can be put in their place."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from mpelu.conversion.interposing import OPERATIONS
from mpelu.graph import Graph, Node
from mpelu.graph.calls import Call, Frame, Value
from mpelu.graph.functions import rule_of
from mpelu.graph.pointwise import Pointwise
from mpelu.nn import MPELU, SPELU, SReLU

TORCH_TYPES = tuple(
    kind
    for kind in vars(torch.nn.modules.activation).values()
    if isinstance(kind, type)
    and issubclass(kind, nn.Module)
    and kind.__module__ == torch.nn.modules.activation.__name__
)
TYPES: tuple[type[nn.Module], ...] = (*TORCH_TYPES, MPELU, SPELU, SReLU)
"""Modules that are activations by themselves."""
THROUGH = ("sum", "product", "concat", "pad", "pool", "dropout", "shape", "resize", "scale")
"""Kinds that stand between an activation and the weights that its input comes from."""


@dataclass(frozen=True, eq=False)
class Site:
    """One activation in one pass."""

    name: str
    """Of its node, where it is all of it."""
    op: str
    """Name of the function, of a module that computes several: the class in small letters."""
    node: Node
    graph: Graph
    training: bool
    """Mode of the model in that pass."""
    calls: tuple[Call, ...]
    frame: Frame | None
    """The call of the module that can be replaced; None for a function call."""
    owner: Frame
    """The call of the innermost module of the model that it is made in, that module itself included."""
    refusal: str = ""
    """Why nothing can be put in its place."""

    @property
    def holder(self) -> nn.Module:
        """The module that is replaced, or in which a function call is taken over."""
        return self.owner.module if self.frame is None else self.frame.module

    @cached_property
    def place(self) -> int:
        """How many calls of the same function come before it in the forward of its owner."""
        before = self.graph.trace.calls[self.owner.start : self.calls[0].index]
        return sum(OPERATIONS.get(call.function) == self.op for call in before)

    @cached_property
    def old(self) -> str:
        """What it is, as text: ``LeakyReLU(negative_slope=0.1)`` or ``leaky_relu(0.1)``."""
        if self.frame is not None:
            text = repr(self.frame.module)
            return text if "\n" not in text else type(self.frame.module).__name__
        call = self.calls[0]
        given = [f"{item:g}" for item in call.args if isinstance(item, float | int) and not isinstance(item, bool)]
        given += [f"{key}={item}" for key, item in call.kwargs.items() if not isinstance(item, Value | bool)]
        return f"{self.op}({', '.join(given)})"

    @property
    def in_place(self) -> bool:
        """True where its input is written over."""
        return any(call.written for call in self.calls)

    @property
    def function(self) -> Pointwise:
        """The function of its input."""
        return _function(self.node, self.calls)

    def prefix(self, x: Tensor) -> Tensor:
        """Return what the calls of its node that come before it make of the node's input."""
        if self._is_first:
            return x
        earlier = tuple(self.graph.trace.calls[index] for index in self.node.calls if index < self.calls[0].index)
        return _function(self.node, earlier)(x)

    @property
    def _is_first(self) -> bool:
        whole = pointwise(self.node)
        return whole.facts.resolved(_data(self.node, self.calls[0])) is whole.base

    @cached_property
    def makers(self) -> frozenset[str]:
        """The parameters of the nearest layers that its input comes from, with no other activation in between."""
        found: set[str] = set()
        if not self._is_first:
            return frozenset()
        waiting, seen = list(self.node.inputs), set()
        while waiting:
            node = self.graph.nodes[waiting.pop()]
            if node.index in seen:
                continue
            seen.add(node.index)
            names = [name for role in node.parameters.values() for name in role if name in self.graph.parameters]
            found.update(names)
            if not names and node.kind in THROUGH:
                waiting += node.inputs
        return frozenset(found)


@dataclass(eq=False)
class Group:
    """The sites that have one unit: all uses of a module, or those of a call in the forward of one."""

    sites: list[Site] = field(default_factory=list)

    @property
    def first(self) -> Site:
        """The site that it is named after."""
        return self.sites[0]


def pointwise(node: Node) -> Pointwise:
    """Return the function of an activation node with what it is made of."""
    assert isinstance(node.function, Pointwise)
    return node.function


def _function(node: Node, calls: tuple[Call, ...]) -> Pointwise:
    whole = pointwise(node)
    base = whole.facts.resolved(_data(node, calls[0]))
    own = {whole.facts.channel_of(value, base.shape, rule_of(call.function).op) for call, value in _loose(node, calls)}
    channel = next((dim for dim in own if isinstance(dim, int)), None)
    return Pointwise(whole.facts, base, calls, channel)


def _data(node: Node, call: Call) -> Value:
    facts = pointwise(node).facts
    return next(value for value in facts.read(call) if facts.is_data(value))


def _loose(node: Node, calls: tuple[Call, ...]) -> Iterator[tuple[Call, Value]]:
    """Yield the calls with the values that they read and that do not depend on the input of the model."""
    facts = pointwise(node).facts
    for call in calls:
        yield from ((call, value) for value in facts.read(call) if not facts.is_data(value))


class Finder:
    """Finds the sites of a graph.

    Args:
        graph: Of the model in one mode.
        training: That mode.
        types: Modules that count as one activation each, beside those of torch.
    """

    def __init__(self, graph: Graph, *, training: bool, types: tuple[type[nn.Module], ...]) -> None:
        self._graph = graph
        self._training = training
        self._types = types
        self._registered = {id(module) for module in graph.trace.model.modules()}
        self._live: set[int] = set()

    def find(self) -> list[Site]:
        """Return the sites in execution order."""
        nodes = [node for node in self._graph.nodes if node.kind == "activation"]
        if nodes:
            self._live = {call.index for call in pointwise(nodes[0]).facts.live_calls()}
        found = [site for node in nodes for site in self._of(node)]
        return sorted(found, key=lambda site: site.calls[0].index)

    def _of(self, node: Node) -> list[Site]:
        calls = tuple(self._graph.trace.calls[index] for index in node.calls)
        chains = [self._modules(call, node) for call in calls]
        frames = [self._frame(chain) for chain in chains]
        by_frame: dict[int, list[Call]] = {}
        for call, frame in zip(calls, frames, strict=True):
            if frame is not None:
                by_frame.setdefault(frame.index, []).append(call)
        loose = [call for call, frame in zip(calls, frames, strict=True) if frame is None]
        if len(loose) == len(calls):
            whole = next((frame for frame in chains[0] if frame.module is node.source), None)
            if whole is not None and _uses_all(whole.module, node, self._graph):
                return [self._module(node, whole, list(calls), alone=True)]
        single = [call for call in loose if call.function in OPERATIONS] if _in_series(node) else []
        alone = len(by_frame) + len(single) == 1
        found = [self._module(node, self._graph.trace.frames[index], own, alone) for index, own in by_frame.items()]
        found += [self._call(node, call, alone) for call in single]
        return found or [self._written_out(node, calls)]

    def _modules(self, call: Call, node: Node) -> list[Frame]:
        """Return the calls of modules, from the inside, that do nothing but what is part of a node."""
        found = []
        frame: Frame | None = call.frame
        while frame is not None and frame.path and self._is_within(frame, node):
            if id(frame.module) in self._registered:
                found.append(frame)
            frame = frame.parent
        return found

    def _is_within(self, frame: Frame, node: Node) -> bool:
        return all(index in node.calls for index in range(frame.start, frame.end) if index in self._live)

    def _frame(self, chain: list[Frame]) -> Frame | None:
        for types in (self._types, TYPES):
            for frame in chain:
                if isinstance(frame.module, types):
                    return frame
        return None

    def _owner(self, frame: Frame) -> Frame:
        while id(frame.module) not in self._registered and frame.parent is not None:
            frame = frame.parent
        return frame

    def _module(self, node: Node, frame: Frame, calls: list[Call], alone: bool) -> Site:
        suffix = f"#{frame.count}" if frame.count > 1 else ""
        op = rule_of(calls[0].function).op if len(calls) == 1 else type(frame.module).__name__.lower()
        name = node.name if alone else frame.path + suffix
        refusal = _drawn(calls)
        if frame.parent is not None and isinstance(frame.parent.module, torch.jit.ScriptModule):
            refusal = "it is held by a TorchScript module, whose parts cannot be replaced"
        return self._site(name, op, node, tuple(calls), frame, frame, refusal)

    def _call(self, node: Node, call: Call, alone: bool) -> Site:
        owner = self._owner(call.frame)
        op = rule_of(call.function).op
        name = node.name if alone else f"{owner.path}.{op}".lstrip(".")
        refusal = _drawn([call])
        if "out" in call.kwargs:
            refusal = "it writes into a tensor that it is given (out=)"
        elif "forward" in vars(owner.module):
            refusal = f"the forward of {owner.path or 'the model'} was replaced on the object, not in its class"
        return self._site(name, op, node, (call,), None, owner, refusal)

    def _written_out(self, node: Node, calls: tuple[Call, ...]) -> Site:
        steps = ", ".join(rule_of(call.function).op for call in calls)
        refusal = (
            f"it is written out in {len(calls)} steps ({steps}); put it into a module of its own"
            if len(calls) > 1
            else f"{steps} is no function that is taken over here; put it into a module of its own"
        )
        return self._site(node.name, node.op, node, calls, None, self._owner(calls[0].frame), refusal)

    def _site(
        self,
        name: str,
        op: str,
        node: Node,
        calls: tuple[Call, ...],
        frame: Frame | None,
        owner: Frame,
        refusal: str,
    ) -> Site:
        return Site(name, op, node, self._graph, self._training, calls, frame, owner, refusal)


def _uses_all(module: nn.Module, node: Node, graph: Graph) -> bool:
    """True where a module holds no more than a node uses: nothing is lost with it, on no other path either."""
    model = graph.trace.model
    used = {
        id(model.get_parameter(name) if name in graph.parameters else model.get_buffer(name))
        for names in node.parameters.values()
        for name in names
    }
    return all(id(tensor) in used for tensor in (*module.parameters(), *module.buffers()))


def _in_series(node: Node) -> bool:
    """True where each call of a node reads what the one before it made, and nothing else that depends on the input."""
    facts = pointwise(node).facts
    calls = [facts.trace.calls[index] for index in node.calls]
    return all(sum(facts.is_data(value) for value in facts.read(call)) == 1 for call in calls)


def _drawn(calls: Iterable[Call]) -> str:
    drawn = any(rule_of(call.function).op == "rrelu" for call in calls)
    return "it draws its slopes at random in training" if drawn else ""


def grouped(sites: list[Site]) -> list[Group]:
    """Return the sites by the unit that they will have, in order.

    All uses of a module have one. So have the calls of a function that come at the same place in the forward of a
    module, in each of its calls, and those whose inputs come from the same weights: steps in time, not layers.
    """
    groups: dict[int, Group] = {}
    known: dict[tuple[object, ...], Group] = {}
    for site in sites:
        keys: list[tuple[object, ...]] = [(id(site.holder), "module")]
        if site.frame is None:
            keys = [(id(site.holder), site.op, site.training, site.place)]
            if site.refusal:
                keys = [(id(site.holder), site.op, site.name)]
            elif site.makers:
                keys.append((id(site.holder), site.op, site.old, site.makers))
            else:
                keys.append((id(site.holder), site.op, site.old, site.place))
        group = next((known[key] for key in keys if key in known), None) or Group()
        groups.setdefault(id(group), group)
        group.sites.append(site)
        known.update((key, group) for key in keys)
    return list(groups.values())
