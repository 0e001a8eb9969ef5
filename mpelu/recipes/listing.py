"""The recipes as text: one line for each, and everything about one of them."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from mpelu.recipes.duration import can_be_expected, expected_seconds, family, images_of, in_words, is_measured
from mpelu.recipes.row import Row, Target
from mpelu.report.grid import UNKNOWN
from mpelu.report.paper import printed
from mpelu.train.recipe import Recipe, resolve

HEADERS = ("name", "stands for", "about", "paper's number", "scale cpu", "scale paper")


def overview(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Return the cells of each row under :data:`HEADERS`: durations are those of one core, ≈ where estimated."""
    return [
        (
            row.name,
            ", ".join(dict.fromkeys(_table(target) for target in row.targets)) or UNKNOWN,
            row.about,
            " / ".join(_number(target) or UNKNOWN for target in row.targets) or UNKNOWN,
            _duration(row.recipe("cpu")),
            _duration(row.paper),
        )
        for row in rows
    ]


def markdown(rows: Iterable[Row]) -> str:
    """Return the list as a Markdown table."""
    rules = ("---",) * len(HEADERS)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (HEADERS, rules, *overview(rows)))


def as_json(row: Row) -> dict[str, Any]:
    """Return all about a row as plain values."""
    return {
        "name": row.name,
        "about": row.about,
        "targets": [
            {**dataclasses.asdict(target), "where": dict(target.where), "number": _number(target) or None}
            for target in row.targets
        ],
        "paper": vars(_filled(row.paper)),
        "cpu": vars(_filled(row.recipe("cpu"))),
        "follow_code": dict(row.code),
        "factors": list(row.factors),
        "seconds": {
            scale: {"expected": expected_seconds(recipe), "step_measured": is_measured(recipe)}
            for scale, recipe in (("paper", row.paper), ("cpu", row.recipe("cpu")))
            if can_be_expected(recipe)
        },
    }


def fields(row: Row) -> list[tuple[str, str, str, str]]:
    """Return each field that a row sets: its name, its value at scale paper and at scale cpu, and in the code.

    The last is empty where the released code has what the paper says, or says nothing.
    """
    paper, cpu, plain = vars(_filled(row.paper)), vars(_filled(row.recipe("cpu"))), vars(Recipe())
    return [
        (name, _value(paper[name]), _value(cpu[name]), _value(row.code[name]) if name in row.code else "")
        for name in plain
        if not paper[name] == cpu[name] == plain[name] or name in row.code
    ]


def targets(row: Row) -> list[str]:
    """Return what each target of a row is, in words."""
    return [
        f"{_table(target)}, {', '.join(target.where.values())}, {target.column}: "
        f"{_number(target) or 'not given in the text of the paper'}"
        for target in row.targets
    ]


def durations(row: Row) -> list[str]:
    """Return how long a run takes at each scale, in words."""
    lines = []
    for scale, recipe in (("paper", row.paper), ("cpu", row.recipe("cpu"))):
        if not can_be_expected(recipe):
            lines.append(f"scale {scale}: not known for data and networks of your own")
            continue
        source = "from the measured time of a step" if is_measured(recipe) else "estimated from a measured smaller step"
        lines.append(f"scale {scale}: {in_words(expected_seconds(recipe))} on one core of a CPU, {source}")
    return [*lines, "two cores run two seeds in that time; on an H200: not measured"]


def _duration(recipe: Recipe) -> str:
    if not can_be_expected(recipe):
        return UNKNOWN
    return ("" if is_measured(recipe) else "≈ ") + in_words(expected_seconds(recipe))


def _filled(recipe: Recipe) -> Recipe:
    return resolve(recipe, family=family(recipe.model), image_size=images_of(recipe).size)


def _table(target: Target) -> str:
    return f"Table {int(target.table.removeprefix('table'))}"


def _number(target: Target) -> str:
    return printed(target.table, target.where, target.column).paper


def _value(value: object) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, tuple):
        return ", ".join(_value(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
