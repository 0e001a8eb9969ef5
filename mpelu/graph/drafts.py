"""Which calls of a trace are one node, and in what order: nodes before they have an index and a name."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mpelu.graph.calls import Call, Frame, Value
from mpelu.graph.facts import Facts
from mpelu.graph.functions import bound
from mpelu.graph.meaning import Roles, local, meaning
from mpelu.graph.nodes import Place
from mpelu.graph.pointwise import AFFINE, Pointwise, degree

COMPARISONS = ("eq", "ne", "gt", "ge", "lt", "le", "logical_not", "bitwise_not")
SIDE_BY_SIDE = ("shape", "opaque")
"""Kinds whose further outputs come from what the first comes from; those of the others come from the first."""


@dataclass(eq=False)
class Draft:
    """A node before it has an index and a name; see :class:`mpelu.graph.Node`."""

    place: Place
    kind: str
    op: str
    value: Value
    reads: list[Value]
    """The values behind its inputs."""
    frame: Frame | None
    parameters: Roles = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    calls: tuple[Call, ...] = ()
    function: Pointwise | None = None
    output: int = 0
    """Position among the outputs that are used; the first has the parameters and the plain name."""
    name: str = ""
    source: nn.Module | None = None

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts nodes by execution."""
        if self.place.moment == "returned":
            assert self.frame is not None
            return self.frame.end - 1, 2, -self.frame.depth
        return self.place.index, 0 if self.place.moment == "arguments" else 1, self.place.position


class Drafts:
    """The nodes of a trace.

    Attributes:
        by_value: The node that makes a value, by the value's number.
        outputs: The nodes of what the model returns.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.by_value: dict[int, Draft] = {}
        trace = facts.trace
        for position, value in enumerate(trace.inputs):
            self._add(Draft(Place("inputs", -1, position), "input", "input", value, [], None))
        for call in facts.live_calls():
            if not facts.is_pointwise(call):
                self._call(call)
            elif call.results[0].number in facts.needed:
                self._pointwise(call)
        for frame in facts.opaque:
            self._module(frame)
        self.outputs: list[Draft] = []
        for position, value in enumerate(trace.outputs):
            place = Place("outputs", len(trace.calls), position)
            self.outputs.append(Draft(place, "output", "output", value, [self._signal(value, place)], None))

    def in_order(self) -> list[Draft]:
        """Return the nodes by execution, without those that nothing reads and that depend on no parameter."""
        drafts = sorted([*self.by_value.values(), *self.outputs], key=lambda draft: draft.order)
        read: set[int] = set()
        kept = []
        for draft in reversed(drafts):
            if draft.kind in ("input", "output") or draft.parameters or draft.value.number in read:
                kept.append(draft)
                read.update(value.number for value in draft.reads)
        return kept[::-1]

    def _add(self, draft: Draft) -> None:
        self.by_value[draft.value.number] = draft

    def _signal(self, value: Value, reader: Place) -> Value:
        """Return a value that a node reads; one without data becomes a node, just before its first reader."""
        facts, value = self._facts, self._facts.resolved(value)
        if value.number in facts.data or value.number in self.by_value:
            return value
        steps = [item for item in facts.origins(value) if isinstance(item, Call)]
        drawn = [facts.rules[step.index].op for step in steps if facts.rules[step.index].kind == "random"]
        names = facts.names(value)
        draft = Draft(
            place=reader if reader.moment == "outputs" else self._argument(value, reader.index),
            kind="constant",
            op=facts.rules[steps[0].index].op if steps else value.origin,
            value=value,
            reads=[],
            frame=steps[0].frame if steps else None,
            parameters={"value": names} if names else {},
            options={"random": drawn[-1]} if drawn else {},
            calls=tuple(sorted(steps, key=lambda step: step.index)),
        )
        self._add(draft)
        return value

    def _argument(self, value: Value, index: int) -> Place:
        """Return where a value is met among the arguments of a call."""
        tensors = [self._facts.resolved(item) for item in self._facts.trace.calls[index].tensors]
        return Place("arguments", index, tensors.index(value))

    def _result(self, call: Call, position: int) -> Place:
        """Return where a result is met; what changed by a write through shared memory, at its first reader."""
        if not call.synthetic:
            return Place("results", call.index, position)
        value, trace = call.results[position], self._facts.trace
        for reader in trace.calls[call.index + 1 :]:
            if not reader.synthetic and any(self._facts.resolved(item) is value for item in reader.tensors):
                return self._argument(value, reader.index)
        outputs = [self._facts.resolved(item) for item in trace.outputs]
        return Place("outputs", len(trace.calls), outputs.index(value) if value in outputs else 0)

    def _pointwise(self, call: Call) -> None:
        """Add a function, entry by entry, of one value."""
        facts, value = self._facts, call.results[0]
        base, calls = _stretch(facts, call)
        parameters: Roles = {}
        channels = set()
        for step in calls:
            for loose in (item for item in facts.read(step) if item.number not in facts.data):
                channels.add(facts.channel_of(loose, value.shape, facts.rules[step.index].op))
                for name in facts.names(loose):
                    role = name.rpartition(".")[2]
                    parameters[role] = tuple(dict.fromkeys((*parameters.get(role, ()), name)))
        channel = next((item for item in channels if isinstance(item, int)), None)
        options: dict[str, Any] = {} if channel is None else {"channel_dim": channel}
        drawn = [rule.op for step in calls if bound(step, rule := facts.rules[step.index]).get("training")]
        if drawn:
            options["random"] = drawn[0]
        self._add(
            Draft(
                place=self._result(call, 0),
                kind="scale" if degree(facts, base, calls) == AFFINE else "activation",
                op=_leading(facts, base, calls),
                value=value,
                reads=[base],
                frame=_common(calls),
                parameters=parameters,
                options=options,
                calls=calls,
                function=Pointwise(facts, base, calls, channel),
            )
        )

    def _call(self, call: Call) -> None:
        """Add the node, or a node for each result that is used, of a call that is a node by itself."""
        facts = self._facts
        found = meaning(facts, call)
        reads = [self._signal(value, Place("arguments", call.index, 0)) for value in found.reads]
        results = [value for value in call.results if value.number in facts.used] or call.results[:1]
        if found.kind not in SIDE_BY_SIDE and results[0] is not call.results[0]:
            results = [call.results[0], *results]
        for number, value in enumerate(results):
            position = call.results.index(value)
            self._add(
                Draft(
                    place=self._result(call, position),
                    kind=found.kind,
                    op=facts.rules[call.index].op,
                    value=value,
                    reads=reads if number == 0 or found.kind in SIDE_BY_SIDE else [results[0]],
                    frame=call.frame,
                    parameters=found.parameters if number == 0 else {},
                    options=found.options | ({"output": position} if len(call.results) > 1 else {}),
                    calls=(call,),
                    output=number,
                )
            )

    def _module(self, frame: Frame) -> None:
        """Add the nodes, one for each tensor that is used outside, of a module call that is opaque."""
        facts = self._facts
        calls = facts.trace.calls[frame.start : frame.end]
        outputs = [facts.resolved(value) for value in frame.outputs]
        inside = {value.number: value for value in outputs if value.number >= frame.born}
        inside |= {value.number: value for call in calls for value in call.results}
        values = [value for value in inside.values() if value.number in facts.used] or list(inside.values())[:1]
        for number, value in enumerate(values):
            if value in outputs:
                place = Place("returned", frame.index, outputs.index(value))
            else:
                place = self._result(facts.trace.calls[value.call], facts.trace.calls[value.call].results.index(value))
            self._add(
                Draft(
                    place=place,
                    kind="opaque",
                    op=type(frame.module).__name__.lower(),
                    value=value,
                    reads=facts.entering(frame),
                    frame=frame,
                    parameters={} if number else self._held(frame, calls),
                    options={"output": number} if len(values) > 1 else {},
                    calls=tuple(calls),
                    output=number,
                    source=None if number else frame.module,
                )
            )

    def _held(self, frame: Frame, calls: list[Call]) -> Roles:
        """Return the parameters and buffers that a module holds or uses, under the names that it has for them."""
        facts, model = self._facts, self._facts.trace.model
        used = [value for call in calls for value in call.tensors if not facts.is_data(value)]
        names = {name for value in used for name in facts.names(value)}
        here = {id(tensor) for tensor in (*frame.module.parameters(), *frame.module.buffers())}
        everywhere = (*model.named_parameters(), *model.named_buffers())
        names |= {name for name, tensor in everywhere if id(tensor) in here}
        return {local(name, frame.path) or name: (name,) for name in sorted(names)}


def _stretch(facts: Facts, call: Call) -> tuple[Value, tuple[Call, ...]]:
    """Return the nearest single value that a pointwise result follows from, and the calls between them in order."""
    calls, limit = facts.trace.calls, facts.base[call.results[0].number]
    steps: dict[int, Call] = {}
    ends: dict[int, Value] = {}
    waiting = [call]
    while True:
        while waiting:
            step = waiting.pop()
            steps[step.index] = step
            for value in facts.read(step):
                if value is limit or value.number in facts.needed:
                    ends[value.number] = value
                elif value.number in facts.data and value.call not in steps:
                    waiting.append(calls[value.call])
        if len(ends) == 1:
            return next(iter(ends.values())), tuple(steps[index] for index in sorted(steps))
        waiting.append(calls[ends.pop(max(ends)).call])  # several ends: go further back from the latest


def _leading(facts: Facts, base: Value, calls: tuple[Call, ...]) -> str:
    """Return the name of the first call that is not affine, or of the first."""
    for end, call in enumerate(calls, start=1):
        rule = facts.rules[call.index]
        if rule.kind == "pointwise" and rule.op not in COMPARISONS and degree(facts, base, calls[:end]) != AFFINE:
            return rule.op
    return facts.rules[calls[0].index].op


def _common(calls: tuple[Call, ...]) -> Frame:
    """Return the innermost module call that holds all calls."""
    frame = calls[0].frame
    for call in calls[1:]:
        other = call.frame
        while frame is not other:
            deeper = frame if frame.depth >= other.depth else other
            assert deeper.parent is not None
            frame, other = (deeper.parent, other) if deeper is frame else (frame, deeper.parent)
    return frame
