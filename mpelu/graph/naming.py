"""Names for nodes: the path of a module where a node is all that it does, else the path and the function."""

from collections import Counter

from mpelu.graph.calls import Frame
from mpelu.graph.drafts import Draft
from mpelu.graph.facts import Facts


class Names:
    """Names the nodes of a trace so that each name is unique and can be found in the code of the model."""

    def __init__(self, facts: Facts) -> None:
        live = {call.index for call in facts.live_calls()}
        self._live_before = [0]
        for index in range(len(facts.trace.calls)):
            self._live_before.append(self._live_before[-1] + (index in live))
        self._first: dict[tuple[str, int], str] = {}
        self._taken: set[str] = set()
        self._functions: Counter[tuple[int, str]] = Counter()

    def give(self, drafts: list[Draft]) -> None:
        """Set the name of each draft, and the module that it is the whole call of."""
        weighty = Counter(id(draft.frame) for draft in drafts if draft.parameters and draft.kind != "constant")
        for draft in drafts:
            draft.name = self._unique(self._name(draft, weighty[id(draft.frame)]))
            if not draft.output:
                self._first[draft.place.moment, draft.place.index] = draft.name

    def _name(self, draft: Draft, weighty: int) -> str:
        frame = draft.frame
        if draft.kind == "input":
            return draft.value.name
        if draft.output:
            return f"{self._first[draft.place.moment, draft.place.index]}[{draft.options['output']}]"
        names = draft.parameters.get("value", ())
        if draft.kind == "constant" and len(names) == 1:
            return names[0]
        if frame is None or not frame.path:
            return self._function(draft, 0, "")
        suffix = f"#{frame.count}" if frame.count > 1 else ""
        alone = weighty == 1 and bool(draft.parameters) and type(frame.module).__module__.startswith("torch.nn")
        if draft.kind != "constant" and (draft.source is not None or alone or self._is_whole(draft, frame)):
            draft.source = frame.module
            if len(draft.calls) > 1:
                draft.op = type(frame.module).__name__.lower()
            return frame.path + suffix
        return self._function(draft, id(frame), f"{frame.path}.") + suffix

    def _is_whole(self, draft: Draft, frame: Frame) -> bool:
        """True where the calls of a node are all that a module does with its input."""
        return self._live_before[frame.end] - self._live_before[frame.start] == len(draft.calls)

    def _function(self, draft: Draft, frame: int, prefix: str) -> str:
        self._functions[frame, draft.op] += 1
        count = self._functions[frame, draft.op]
        return f"{prefix}{draft.op}" + (f"_{count}" if count > 1 else "")

    def _unique(self, name: str) -> str:
        count, candidate = 1, name
        while candidate in self._taken:
            count += 1
            candidate = f"{name}#{count}"
        self._taken.add(candidate)
        return candidate
