"""The recipes of the paper's rows as they are: their trainings by name, and the cells of tables that they fill.

:mod:`mpelu.studies.arms` is for recipes with changes of a study's own, and for what two of them say.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

from mpelu.recipes import row
from mpelu.recipes.row import Row
from mpelu.report.grid import Cell
from mpelu.report.summary import spread
from mpelu.studies.fate import Part, difference, errors_of
from mpelu.studies.jobs import Setting, Training, key_of, of_each_seed
from mpelu.studies.study import Results
from mpelu.train.recipe import Recipe


def recipe_at(row: Row, setting: Setting, *, follow: Literal["paper", "code"] = "paper") -> Recipe:
    """Return the recipe of a row; at scale cpu with the data of the setting, else the recipe names its data itself."""
    return row.recipe(setting.scale, follow=follow, data=setting.data if setting.scale == "cpu" else None)


@cache
def trainings(name: str, setting: Setting) -> tuple[Training, ...]:
    """Return one training of a recipe for each seed."""
    return of_each_seed(recipe_at(row(name), setting), setting)


def all_of_them(names: Sequence[str]) -> Callable[[Setting], tuple[Training, ...]]:
    """Return what gives the trainings of several recipes at a setting."""
    return lambda setting: tuple(job for name in names for job in trainings(name, setting))


def excess(results: Results, quantity: str, first: str, second: str) -> Part:
    """Return the claim that the test error of one recipe lies above that of another, paired by seed."""
    setting = results.setting
    return Part(difference(results, quantity, trainings(first, setting), trainings(second, setting)), "above")


def cell(results: Results, name: str, paper: Cell) -> Cell:
    """Put the test errors of a recipe in the last epoch beside the paper's number; runs that diverged are counted."""
    records = results.present(trainings(name, results.setting))
    errors = errors_of(records)
    diverged = len(records) - len(errors)
    return replace(
        paper,
        ours=spread(errors),
        text=f"diverged {diverged} of {len(records)}" if diverged else "",
        runs=tuple(map(key_of, records)),
    )
