"""A model as it is before a conversion: its activations, what they are given, and what is written over."""

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property

import torch
from torch import nn

from mpelu.conversion.choosing import Chosen
from mpelu.conversion.fit import Inputs, assumed, observed
from mpelu.conversion.passes import has_values, in_mode, samples, written_over
from mpelu.conversion.record import Left
from mpelu.conversion.sites import TYPES, Finder, Group, Site, grouped
from mpelu.errors import MpeluError
from mpelu.graph import Example, Graph, read

INSIDE = {
    "recurrent": "its gates are computed inside of one function of torch",
    "attention": "it is one function of torch, with a softmax and no activation",
    "softmax": "it is no function entry by entry",
    "opaque": "it computes outside of torch's functions, or by one that is not known",
}
"""Kinds of nodes in which an activation may be that cannot be reached."""


class Survey:
    """Reads a model in both modes and looks at the activations that a source means.

    In training mode it may have further ones, those of auxiliary heads. A model that cannot be read in training mode,
    because it wants targets then for instance, is converted as it is in eval mode.

    Attributes:
        graphs: Training mode to the graph.
        groups: The activations, by the unit that they will have.
        reasons: Why a group is not converted, "" where it may be.
    """

    def __init__(self, model: nn.Module, example: Example, chosen: Chosen) -> None:
        self._model = model
        self._example = example
        self._chosen = chosen
        self.has_values = has_values(model, example)
        self.graphs = {False: self._read(training=False)}
        with suppress(MpeluError):
            self.graphs[True] = self._read(training=True)
        sites = [site for training, graph in self.graphs.items() for site in self._sites(graph, training)]
        self.groups = grouped(sites)
        self.reasons = {group: self._reason(group) for group in self.groups}

    def _read(self, *, training: bool) -> Graph:
        with in_mode(self._model, training=training):
            return read(self._model, self._example)

    def _sites(self, graph: Graph, training: bool) -> list[Site]:
        return Finder(graph, training=training, types=self._chosen.types).find()

    def _reason(self, group: Group) -> str:
        return self._chosen.reason(group) or next((site.refusal for site in group.sites if site.refusal), "")

    @cached_property
    def _samples(self) -> dict[int, torch.Tensor]:
        """What the nodes of the activations that are meant are given, by the index of the node."""
        wanted = {
            site.node.index: site.prefix
            for group, reason in self.reasons.items()
            for site in group.sites
            if not reason and not site.training
        }
        return samples(self._model, self._example, self.graphs[False], wanted) if self.has_values else {}

    def inputs(self, group: Group) -> Inputs:
        """Return what the activations of a group are given in eval mode."""
        found = [self._samples[site.node.index] for site in group.sites if site.node.index in self._samples]
        found = found if any(not site.training for site in group.sites) else []
        return observed(torch.cat(found)) if found else assumed()

    @cached_property
    def _written(self) -> tuple[set[int], set[int]]:
        calls = {
            call.index
            for group, reason in self.reasons.items()
            for site in group.sites
            for call in site.calls
            if not reason and not site.training
        }
        return written_over(self._model, self._example, self.graphs[False], calls)

    def writes_back(self, group: Group) -> bool:
        """True where the model relies on it that an activation writes over its input."""
        return any(
            site.in_place if site.training else any(call.index in self._written[0] for call in site.calls)
            for site in _as_run(group)
        )

    def is_overwritten(self, group: Group) -> bool:
        """True where the input of an activation is written to afterwards."""
        return any(site.calls[0].index in self._written[1] for site in group.sites if not site.training)

    def others(self) -> Iterator[Left]:
        """Yield what may hold an activation and is none in the graph, and the activations that no pass reaches."""
        reached: set[int] = set()
        found: dict[str, Left] = {}
        for graph in self.graphs.values():
            reached.update(id(frame.module) for frame in graph.trace.frames)
            for node in graph.nodes:
                if node.kind in INSIDE:
                    name = node.name.partition("[")[0]
                    found.setdefault(name, Left(name, node.op, INSIDE[node.kind]))
        yield from found.values()
        for path, module in self._model.named_modules():
            if isinstance(module, (*TYPES, *self._chosen.types)) and id(module) not in reached:
                yield Left(path, type(module).__name__, "no pass on this example reaches it")


def _as_run(group: Group) -> list[Site]:
    """Return the sites in eval mode, and those in training mode where there are no others."""
    return [site for site in group.sites if not site.training] or group.sites
