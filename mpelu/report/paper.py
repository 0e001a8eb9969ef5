"""The numbers that the paper gives, as its tables print them: an empty cell is one that its text does not give."""

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TypeAlias

from mpelu.report.grid import Cell

Line: TypeAlias = Mapping[str, str]
TABLES = tuple(f"table{number:02d}" for number in range(1, 13))


@cache
def lines(table: str) -> tuple[Line, ...]:
    """Return the lines of a table, each a mapping from its columns to text.

    Args:
        table: ``table01`` to ``table12``.

    Raises:
        ValueError: If there is no such table, or a line has more or fewer cells than there are columns.

    Example:
        >>> [line["activation"] for line in lines("table04")]
        ['ReLU', 'PReLU', 'ELU', 'MPELU']
    """
    if table not in TABLES:
        raise ValueError(f"a table of the paper is one of {TABLES[0]} to {TABLES[-1]}, got {table!r}")
    text = files("mpelu.report").joinpath("paper", f"{table}.csv").read_text(encoding="utf-8")
    head, *rows = csv.reader(text.splitlines())
    ragged = [number for number, row in enumerate(rows, start=2) if len(row) != len(head)]
    if ragged:
        raise ValueError(f"{table}.csv must have {len(head)} cells in each line, lines {ragged} do not: quote commas")
    return tuple(MappingProxyType(dict(zip(head, row, strict=True))) for row in rows)


def line(table: str, where: Mapping[str, str]) -> Line:
    """Return the one line of a table for which all of these columns have these values.

    Raises:
        ValueError: If there is none, or more than one.

    Example:
        >>> line("table05", {"activation": "ELU", "BN": "no", "init": "Eq. 22"})["top1"]
        '37.08'
    """
    columns = lines(table)[0].keys()
    unknown = [column for column in where if column not in columns]
    if unknown:
        raise ValueError(f"{table} has no column {', '.join(unknown)}; there are {', '.join(columns)}")
    found = [each for each in lines(table) if all(each[column] == value for column, value in where.items())]
    if len(found) != 1:
        raise ValueError(f"{dict(where)} must hold for one line of {table}, got {len(found)}")
    return found[0]


def printed(table: str, where: Mapping[str, str], column: str) -> Cell:
    """Return a cell with the paper's number and its source, for :func:`dataclasses.replace` to put ours beside it.

    Example:
        >>> printed("table05", {"activation": "ELU", "BN": "no", "init": "Eq. 22"}, "top1").paper
        '37.08'
    """
    found = line(table, where)
    if column not in found:
        raise ValueError(f"{table} has no column {column!r}; there are {', '.join(found)}")
    return Cell(paper=found[column], source=found["source"] if found[column] else "")
