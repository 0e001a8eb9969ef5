"""The studies by what they answer: ``claim21``, ``table5``, ``figure2``. A new study is one file and one row here."""

import difflib
from importlib import import_module

from mpelu.errors import UsageError
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
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(
        f"nothing of the paper is called {name!r}{hint}; there are table1 to table12, figure1 to figure5, claim1 to "
        f"claim52 and all"
    )
