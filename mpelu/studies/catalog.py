"""The studies by what they answer: ``claim21``, ``table5``, ``figure2``. A new study is one file and one row here."""

import difflib
import re
from collections.abc import Iterable
from importlib import import_module

from mpelu.errors import UsageError
from mpelu.recipes.catalog import closest
from mpelu.studies.study import Claim, Exhibit

STUDIES: tuple[str, ...] = (
    "function",
    "starting",
    "blocks",
    "nin",
    "fifteen",
    "thirty",
    "converging",
    "initialization",
    "swapped",
    "nonbottleneck",
    "bottleneck",
    "others",
)
"""Modules of :mod:`mpelu.studies`; each holds ``CLAIMS`` and ``EXHIBITS``."""


def claims() -> tuple[Claim, ...]:
    """Return all claims by number."""
    found = [claim for study in STUDIES for claim in import_module(f"mpelu.studies.{study}").CLAIMS]
    return tuple(sorted(found, key=lambda claim: claim.number))


def exhibits() -> tuple[Exhibit, ...]:
    """Return all tables, then all figures, by number."""
    found = [exhibit for study in STUDIES for exhibit in import_module(f"mpelu.studies.{study}").EXHIBITS]
    return tuple(sorted(found, key=lambda exhibit: (exhibit.name[0] == "f", len(exhibit.name), exhibit.name)))


def find(name: str) -> tuple[Claim | Exhibit, ...]:
    """Return what a name stands for: one claim, table or figure, or everything for ``all``.

    Raises:
        UsageError: If there is no such thing.
    """
    items: list[Claim | Exhibit] = [*exhibits(), *claims()]
    known = {item.name: item for item in items}
    if name == "all":
        return tuple(known.values())
    if name in known:
        return (known[name],)
    raise UsageError(
        f"nothing of the paper is called {name!r}{_hint(name, known)}; there are table1 to table12, figure1 to "
        f"figure5, claim1 to claim52 and all"
    )


def _hint(name: str, known: Iterable[str]) -> str:
    """Say what was meant: a misspelled name, or a recipe; nothing where a number is out of range."""
    if re.fullmatch(r"(claim|table|figure)\d+", name):
        return ""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    recipe = closest(name)
    return f"; {recipe} is a recipe: 'mpelu train --recipe {recipe}' runs it" if recipe else ""
