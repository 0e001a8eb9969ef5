"""What each value of a trace depends on: on the inputs, or only on parameters and constants; alone or with others."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mpelu.graph.calls import Call, Frame, Trace, Value, leaves, written_through
from mpelu.graph.functions import PER_CHANNEL, Rule, bound, rule_of
from mpelu.graph.nodes import UnknownNodeError

STRUCTURAL = ("conv", "linear", "bilinear", "embedding")
"""Beginnings of the functions, beside attention and recurrence, that make a signal even out of parameters alone."""
FILLED_WITH = ("full", "full_like", "new_full", "fill")
"""The functions that are given the number that they fill with."""
SIGNALS = {"weight": ("input", "input1", "input2"), "attention": ("query", "key", "value"), "recurrent": ("input",)}
"""The arguments that are signals and no parameters, by kind."""


class Facts:
    """The calls of a trace with what is known of them; the work is done when it is made.

    Attributes:
        rules: The rule of each call.
        opaque: The module calls that are nodes as a whole.
        base: Of each value that follows from ONE value entry by entry: that value.
        needed: Numbers of the values that something reads otherwise than entry by entry.
        used: Numbers of the values that anything reads.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.rules = [_adjusted(rule_of(call.function), call) for call in trace.calls]
        self.opaque = _opaque_frames(trace)
        self._inside = _calls_inside(self.opaque, len(trace.calls))
        self._same: dict[int, Value] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self.data: set[int] = set()
        self._find_data()
        self.base: dict[int, Value] = {}
        self.channel: dict[int, int | None] = {}
        self.needed: set[int] = set()
        self.used: set[int] = set()
        self._find_bases()

    def live_calls(self) -> list[Call]:
        """Return the calls that depend on the inputs and are no part of an opaque module, but for identities."""
        return [
            call
            for call in self.trace.calls
            if not self._inside[call.index]
            and call.results[0].number in self.data
            and call.results[0].number not in self._same
        ]

    def resolved(self, value: Value) -> Value:
        """Return the value that this one is the same as."""
        while value.number in self._same:
            value = self._same[value.number]
        return value

    def is_data(self, value: Value) -> bool:
        """True where a value depends on the inputs."""
        return self.resolved(value).number in self.data

    def read(self, call: Call) -> list[Value]:
        """Return the values that the result of a call depends on."""
        rule = self.rules[call.index]
        out = leaves(call.kwargs.get("out"), Value)
        tensors = [value for value in call.tensors if value not in out]
        if rule.kind == "filled":
            filler = [call.kwargs.get("fill_value"), call.kwargs.get("value"), *call.args[1:2]]
            tensors = [value for value in tensors if rule.op in FILLED_WITH and value in filler]
        elif rule.op.endswith("_as"):
            tensors = tensors[:1]
        elif rule.op == "copy" or (rule.kind == "random" and _is_template(call, rule)):
            tensors = tensors[1:]
        return [self.resolved(value) for value in tensors]

    def origins(self, value: Value) -> Iterator[Value | Call]:
        """Yield what a value without data is computed from: values that are there before the pass, and calls."""
        waiting, seen = [self.resolved(value)], set()
        while waiting:
            value = waiting.pop()
            if value.number in seen:
                continue
            seen.add(value.number)
            if value.origin != "call":
                yield value
                continue
            call = self.trace.calls[value.call]
            yield call
            waiting += [item for item in self.read(call) if item.number not in self.data]

    def names(self, value: Value) -> tuple[str, ...]:
        """Return the names of the parameters and buffers that a value without data is computed from."""
        value = self.resolved(value)
        if value.number not in self._names:
            found = [item.name for item in self.origins(value) if isinstance(item, Value) and item.name]
            self._names[value.number] = tuple(sorted(set(found)))
        return self._names[value.number]

    def is_uniform(self, value: Value) -> bool:
        """True for a value without data whose entries are all one number: those of zeros_like, say."""
        value = self.resolved(value)
        if not value.shape:
            return True
        if value.origin != "call":
            return False
        call = self.trace.calls[value.call]
        rule = self.rules[call.index]
        if rule.kind == "filled":
            return "empty" not in rule.op and not self.read(call)
        return rule.kind in ("pointwise", "identity") and all(self.is_uniform(item) for item in self.read(call))

    def is_pointwise(self, call: Call) -> bool:
        """True where each entry of the result follows from the entries at its place in one value."""
        return self.base.get(call.results[0].number) is not None

    def channel_of(self, value: Value, shape: tuple[int, ...], op: str) -> int | str | None:
        """Return the dim along which a value without data changes when it meets one of a shape.

        None where it is one number, and "other" where it changes along the batch or several dims.
        """
        value = self.resolved(value)
        sizes = value.shape
        if op in PER_CHANNEL and len(sizes) == 1 and sizes[0] > 1:
            return 1 if len(shape) > 1 else "other"
        if self.is_uniform(value):
            return None
        if any(isinstance(item, Call) and item.synthetic for item in self.origins(value)):
            return "other"  # it cannot be worked out again
        offset = len(shape) - len(sizes)
        dims = [dim + offset for dim, size in enumerate(sizes) if size > 1]
        if not dims:
            return None
        return dims[0] if len(dims) == 1 and dims[0] > 0 else "other"

    def _find_data(self) -> None:
        forced: set[int] = set()
        while True:
            self._spread(forced)
            found = {
                call.index
                for value in self._loose_signals()
                for call in self.origins(value)
                if isinstance(call, Call) and self._makes_a_signal(call)
            }
            if found <= forced:
                return
            forced |= found

    def _makes_a_signal(self, call: Call) -> bool:
        rule = self.rules[call.index]
        return rule.kind in ("attention", "recurrent") or rule.op.startswith(STRUCTURAL)

    def _spread(self, forced: set[int]) -> None:
        """Mark what depends on the inputs, and which values are the same."""
        self._same.clear()
        self._names.clear()
        self.data = {value.number for value in self.trace.inputs}
        for frame in self.opaque:
            self.data.update(value.number for value in frame.outputs if value.origin == "hidden")
        for call in self.trace.calls:
            inside = self._inside[call.index]
            read = self.read(call)
            if inside or call.index in forced or any(value.number in self.data for value in read):
                self.data.update(value.number for value in call.results)
            if not inside:
                same = self._unchanged(call)
                if same is not None:
                    self._same[call.results[0].number] = self.resolved(same)

    def _unchanged(self, call: Call) -> Value | None:
        """Return the argument that a call passes on as it is, if it does."""
        rule = self.rules[call.index]
        if not call.tensors or not call.results:
            return None
        value, result = call.tensors[0], call.results[0]
        if rule.op == "copy":
            value = call.tensors[-1]
        if value.shape != result.shape or value.floating != result.floating:
            return None
        if rule.kind == "identity" or (call.function is written_through and len(call.args) == 1):
            return value
        if rule.kind == "dropout" and _drops_nothing(call, rule):
            return value
        return value if rule.kind == "pointwise" and len(call.tensors) == 1 and _is_neutral(call, rule) else None

    def signals(self, call: Call, arguments: Mapping[str, Any]) -> list[Value]:
        """Return the values among the named arguments of a call that are signals, whatever they depend on."""
        items = [arguments.get(name) for name in SIGNALS.get(self.rules[call.index].kind, ())]
        return [self.resolved(item) for item in items if isinstance(item, Value)]

    def _loose_signals(self) -> Iterator[Value]:
        """Yield the values without data that are used as signals: added, put beside others, attended to, returned."""
        for call in self.live_calls():
            rule = self.rules[call.index]
            loose = [value for value in self.read(call) if value.number not in self.data]
            if not loose:
                continue
            if rule.kind == "pointwise":
                shape = call.results[0].shape
                yield from (value for value in loose if self.channel_of(value, shape, rule.op) == "other")
            elif rule.kind == "concat":
                yield from loose
            elif rule.kind in SIGNALS:
                yield from (value for value in self.signals(call, bound(call, rule)) if value in loose)
        yield from (value for value in self.trace.outputs if not self.is_data(value))

    def _find_bases(self) -> None:
        for call in self.live_calls():
            data = [value for value in self.read(call) if value.number in self.data]
            self.used.update(value.number for value in data)
            rule = self.rules[call.index]
            if rule.kind in ("pointwise", "identity") and rule.op != "copy" and self._follows_one(call, rule, data):
                continue
            self.needed.update(value.number for value in data)
        self._need(self.trace.outputs)
        for frame in self.opaque:
            self._need(self.entering(frame))

    def _need(self, values: Iterable[Value]) -> None:
        numbers = {self.resolved(value).number for value in values}
        self.needed |= numbers
        self.used |= numbers

    def _follows_one(self, call: Call, rule: Rule, data: list[Value]) -> bool:
        """Find out whether a call is a function, entry by entry, of one value, and note which and along which dim."""
        result = call.results[0]
        bases = {self.base.get(value.number, value).number: self.base.get(value.number, value) for value in data}
        if len(bases) != 1 or len(call.results) != 1 or any(value.shape != result.shape for value in data):
            return False
        loose = [value for value in self.read(call) if value.number not in self.data]
        if any(self.is_random(value) for value in loose):
            return False
        own = {self.channel_of(value, result.shape, rule.op) for value in loose} - {None}
        before = {self.channel.get(value.number) for value in data} - {None}
        if "other" in own or len(own) > 1:
            return False
        base = next(iter(bases.values()))
        if len(own | before) > 1:  # parameters along another dim than before: the function begins anew
            if len(data) > 1:
                return False
            base, before = data[0], set()
            self.needed.add(base.number)
        self.base[result.number] = base
        channel = next(iter(own | before), None)
        assert not isinstance(channel, str)
        self.channel[result.number] = channel
        return True

    def is_random(self, value: Value) -> bool:
        """True for a value without data that is drawn."""
        return any(isinstance(item, Call) and self.rules[item.index].kind == "random" for item in self.origins(value))

    def entering(self, frame: Frame) -> list[Value]:
        """Return the values with data that go into an opaque module call."""
        found: dict[int, Value] = {}
        inner = [value for call in self.trace.calls[frame.start : frame.end] for value in call.tensors]
        for value in [*frame.arguments, *inner]:
            value = self.resolved(value)
            if value.number in self.data and value.number < frame.born:
                found[value.number] = value
        return list(found.values())


def _adjusted(rule: Rule, call: Call) -> Rule:
    """Return the rule of a call where the arguments decide what the function does."""
    if rule.op in ("max", "min") and len(call.tensors) == 2:
        return Rule("pointwise", f"{rule.op}imum", ())
    if rule.op == "where" and len(call.tensors) + len(call.args) == 2:
        return replace(rule, kind="opaque")
    if call.function is written_through and len(call.args) == 2:
        return Rule("concat", "setitem", ())
    return rule


def _is_template(call: Call, rule: Rule) -> bool:
    """True where the first tensor only says of which shape the result is."""
    return bool(call.written) or rule.op.endswith("_like") or rule.op.startswith("new_")


def _drops_nothing(call: Call, rule: Rule) -> bool:
    arguments = bound(call, rule)
    return arguments["training"] is False or arguments["p"] == 0


def _is_neutral(call: Call, rule: Rule) -> bool:
    """True for x + 0, x - 0, x * 1 and x / 1 with plain numbers."""
    neutral = {"add": 0, "sub": 0, "mul": 1, "div": 1}.get(rule.op)
    numbers = [item for item in [*call.args, *call.kwargs.values()] if not isinstance(item, Value)]
    return neutral is not None and len(numbers) == 1 and isinstance(numbers[0], int | float) and numbers[0] == neutral


def _opaque_frames(trace: Trace) -> list[Frame]:
    """Return the outermost module calls in which something happened that was not recorded."""
    found: list[Frame] = []
    for frame in trace.frames:
        if not frame.hidden or any(_is_in(frame, outer) for outer in found):
            continue
        if frame.parent is None:
            raise UnknownNodeError(
                f"the forward of {type(frame.module).__name__} makes {frame.hidden} by something that is no torch "
                f"function (NumPy, TorchScript, an extension); write it with torch functions, or put it into a module "
                f"of its own, so that it becomes a node by itself"
            )
        found.append(frame)
    return found


def _is_in(frame: Frame, outer: Frame) -> bool:
    inner: Frame | None = frame
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


def _calls_inside(frames: list[Frame], count: int) -> bytearray:
    inside = bytearray(count)
    for frame in frames:
        inside[frame.start : frame.end] = b"\1" * (frame.end - frame.start)
    return inside
