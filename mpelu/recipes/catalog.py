"""All rows by name. A new recipe is one file, or a row in one, and its module here."""

import difflib
import inspect
from functools import cache
from importlib import import_module
from typing import Literal

from mpelu.address import load_named
from mpelu.errors import UsageError
from mpelu.recipes.row import Row
from mpelu.train.recipe import Recipe

MODULES: tuple[str, ...] = ("nin", "imagenet15", "imagenet30", "resnet", "nonbottleneck", "bottleneck", "nopre")
"""Modules of :mod:`mpelu.recipes`; each holds ``ROWS``."""
DRAWN = {"fig4a": "resnet", "fig4b": "nonbottleneck", "fig4c": "preact", "fig4d": "preact", "fig5d": "nopre"}
"""Blocks of Figures 4 and 5 that have a name of their own here."""


def rows() -> tuple[Row, ...]:
    """Return all rows, in the order of the tables of the paper."""
    return _rows_of(MODULES)


def row(name: str) -> Row:
    """Return a row by its name.

    Args:
        name: One that ``mpelu recipes`` lists; or ``module:name`` or ``file.py:name`` for a :class:`Row` of one's own,
            or a function that returns one. A :class:`Recipe` in its place is a row that is the same at both scales, but
            for the data.

    Raises:
        UsageError: If there is none of that name.
    """
    if ":" in name:
        return _own(name)
    known = {each.name: each for each in rows()}
    if name in known:
        return known[name]
    close = closest(name)
    hint = f"; did you mean {close}?" if close else ""
    raise UsageError(f"there is no recipe {name!r}{hint}; 'mpelu recipes' lists them")


def closest(name: str) -> str | None:
    """Return the recipe that was probably meant, None if nothing is near.

    Example:
        >>> closest("fig5d164"), closest("nopre164-mpleu"), closest("teapot")
        ('nopre164-mpelu', 'nopre164-mpelu', None)
    """
    spelled = DRAWN.get(name[:5], name[:5]) + name[5:]
    names = [each.name for each in rows()]
    begun = [each for each in names if len(spelled) >= len("nin") and each.startswith(spelled)]
    begun.sort(key=lambda each: ("mpelu" not in each, len(each)))
    return next(iter(begun or difflib.get_close_matches(spelled, names, n=1)), None)


def recipe(
    name: str,
    scale: Literal["paper", "cpu"] = "paper",
    *,
    follow: Literal["paper", "code"] = "paper",
    data: str | None = None,
) -> Recipe:
    """Return the recipe of a row (see :func:`row`) at a scale (see :meth:`mpelu.recipes.row.Row.recipe`)."""
    return row(name).recipe(scale, follow=follow, data=data)


@cache
def _rows_of(modules: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(row for module in modules for row in import_module(f"mpelu.recipes.{module}").ROWS)


def _own(name: str) -> Row:
    """Load a row of the user's."""
    found = load_named(name, kind="recipe", accepts=_may_be_a_row)
    made = found() if inspect.isfunction(found) else found
    if isinstance(made, Recipe):
        return Row(name=name, about="a recipe of one's own", paper=made)
    if isinstance(made, Row):
        return made
    raise UsageError(f"{name} must be a mpelu.recipes.Row or a Recipe, or return one, got {type(made).__name__}")


def _may_be_a_row(value: object) -> bool:
    return isinstance(value, Row | Recipe) or inspect.isfunction(value)
