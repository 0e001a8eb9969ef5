"""Which activations a source means."""

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from mpelu.conversion.sites import Group, Site
from mpelu.errors import UsageError
from mpelu.graph import Node
from mpelu.graph.functions import rule_of

Source = type[nn.Module] | str | Callable[..., Any]
"""A module type, a function of torch, a name or name pattern, or a predicate on nodes."""


class Chosen:
    """Says of each site whether one of the sources means it.

    Args:
        source: One source or a sequence of them.
    """

    def __init__(self, source: Source | Collection[Source]) -> None:
        sources: list[Any] = list(source) if isinstance(source, list | tuple | set | frozenset) else [source]
        wrong = [item for item in sources if not _is_source(item)]
        if wrong or not sources:
            raise UsageError(
                f"a source is a module type (nn.ReLU), a function of torch (F.relu), a name or name pattern ('relu', "
                f"'layer1.*') or a predicate on nodes, or a list of these; got {', '.join(map(repr, wrong)) or 'none'}"
            )
        self.types = tuple(item for item in sources if isinstance(item, type))
        self._patterns = [item for item in sources if isinstance(item, str)]
        functions = [item for item in sources if not isinstance(item, str | type)]
        self._operations = {rule_of(item).op for item in functions if rule_of(item).kind != "opaque"}
        self._predicates: list[Callable[[Node], bool]] = [item for item in functions if rule_of(item).kind == "opaque"]

    def __call__(self, site: Site) -> bool:
        """Return whether a site is meant."""
        if site.frame is not None and isinstance(site.frame.module, self.types):
            return True
        if site.frame is None and site.op in self._operations:
            return True
        names = (site.name, site.name.partition("#")[0])
        if any(pattern == site.op or any(fnmatchcase(name, pattern) for name in names) for pattern in self._patterns):
            return True
        return any(predicate(site.node) for predicate in self._predicates)

    def reason(self, group: Group) -> str:
        """Return why a group is not converted that not every source means; "" where it is."""
        meant = [self(site) for site in group.sites]
        if all(meant):
            return ""
        if any(meant):
            pairs = zip(group.sites, meant, strict=True)
            others = ", ".join(dict.fromkeys(site.name for site, chosen in pairs if not chosen))
            return f"it is used in several places, and not all of them were asked for: {others}"
        site = group.first
        if site.frame is None and any(site.op == kind.__name__.lower() for kind in self.types):
            return f"a function call, and a module type was asked for; {site.op!r} means both"
        if site.frame is not None and site.op in self._operations:
            return f"a module, and a function was asked for; {site.op!r} means both"
        return "not asked for"


def _is_source(item: object) -> bool:
    if isinstance(item, type):
        return issubclass(item, nn.Module)
    return isinstance(item, str) or (callable(item) and not isinstance(item, nn.Module))
