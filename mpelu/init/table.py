"""A plan as text: a table of its weights, as wide as the terminal, and a line for each fate of the other parameters."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpelu.init.rows import InitPlan, PlanRow

HEAD = ("weight", "layer", "fed by", "fan", "gain", "std", "q", "equation")
NARROWEST = (8, 8, 6, 1, 1, 1, 1, 8)
"""Width below which a column is not cut; those of numbers are not cut at all."""
FIRST, LAST = 60, 10
"""Weights that a table shows at most, from the start and from the end."""


def table(plan: "InitPlan", width: int) -> str:
    """Return a plan as lines of at most ``width`` characters (30, if that is less)."""
    width = max(30, width)
    weights = [row for row in plan.rows if row.fan is not None]
    left_out = max(0, len(weights) - FIRST - LAST)
    shown = weights[:FIRST] + weights[FIRST + left_out :] if left_out else weights
    cells = [HEAD, *(_cells(row) for row in shown)]
    widths = _widths(cells, width)
    lines = ["  ".join(_cut(cell, size) for cell, size in zip(line, widths, strict=True)) for line in cells]
    lines = [line[:width].rstrip() for line in lines]
    if left_out:
        lines.insert(1 + FIRST, f"... {left_out} more; to_json() has all"[:width])
    return "\n".join([*lines, *_rest(plan, width)])


def _cells(row: "PlanRow") -> tuple[str, ...]:
    assert row.fan is not None
    return (
        row.parameter.removesuffix(".weight"),
        row.layer,
        row.fed_by,
        f"{row.fan:.4g}",
        "-" if row.gain is None else f"{row.gain:.4f}",
        row.fill if row.std is None else f"{row.std:.5f}",
        "-" if row.second_moment is None else f"{row.second_moment:.3g}",
        row.equation,
    )


def _widths(cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the width of each column; what is too much is taken from the widest that may be cut."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        spare = [size - least if least > 1 else 0 for size, least in zip(widths, NARROWEST, strict=True)]
        if max(spare) <= 0:
            break
        widest = max((column for column, left in enumerate(spare) if left > 0), key=lambda column: widths[column])
        widths[widest] -= 1
    return widths


def _cut(cell: str, width: int) -> str:
    """Fit a cell into a width; of what is too long the middle is left out, where names are most alike."""
    return cell.ljust(width) if len(cell) <= width else f"{cell[: (width - 1) // 2]}…{cell[len(cell) - width // 2 :]}"


def _rest(plan: "InitPlan", width: int) -> list[str]:
    """Say for each fate which parameters have it."""
    groups: dict[str, list[str]] = {}
    for row in plan.rows:
        if row.fan is None:
            groups.setdefault(_fate(row), []).append(row.parameter)
    lines = []
    for fate, names in groups.items():
        some = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
        lines += textwrap.wrap(f"{len(names)} x {fate} ({some})", width, subsequent_indent="    ")
    return lines


def _fate(row: "PlanRow") -> str:
    if row.std is None:
        return f"{row.fill}: {row.equation}"
    return f"{row.std:g}: {row.equation}" if row.fill == "constant" else f"{row.fill}: {row.equation}"
