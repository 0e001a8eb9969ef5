"""From a trace to a graph."""

from torch import nn

from mpelu.graph.calls import Trace
from mpelu.graph.drafts import Drafts
from mpelu.graph.facts import Facts
from mpelu.graph.naming import Names
from mpelu.graph.nodes import Graph, Node
from mpelu.graph.norms import merge_norms


def merge(trace: Trace) -> Graph:
    """Return the graph of a trace.

    Raises:
        UnknownNodeError: If the model itself makes a tensor by something that was not recorded.
    """
    facts = Facts(trace)
    found = Drafts(facts)
    merge_norms(found)
    drafts = found.in_order()
    Names(facts).give(drafts)
    index = {draft.value.number: place for place, draft in enumerate(drafts) if draft.kind != "output"}
    nodes = tuple(
        Node(
            index=place,
            kind=draft.kind,
            name=draft.name,
            op=draft.op,
            inputs=tuple(index[value.number] for value in draft.reads),
            shape=draft.value.shape,
            module=draft.frame.path if draft.frame else "",
            parameters=draft.parameters,
            options=draft.options,
            function=draft.function,
            source=draft.source,
            calls=tuple(call.index for call in draft.calls),
        )
        for place, draft in enumerate(drafts)
    )
    return Graph(nodes, _users(trace.model, nodes), trace, tuple(draft.place for draft in drafts))


def _users(model: nn.Module, nodes: tuple[Node, ...]) -> dict[str, tuple[int, ...]]:
    """Return the nodes that use each parameter."""
    users: dict[str, list[int]] = {name: [] for name, _ in model.named_parameters()}
    for node in nodes:
        for name in {name for names in node.parameters.values() for name in names} & users.keys():
            users[name].append(node.index)
    return {name: tuple(found) for name, found in users.items()}
