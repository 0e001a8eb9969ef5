"""Trainings of the recipes by their names, and the cells of tables that they fill."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from mpelu.recipes import recipe
from mpelu.report.grid import Cell
from mpelu.report.summary import spread
from mpelu.studies.fate import Part, difference, fate, final
from mpelu.studies.jobs import Setting, Training, key_of
from mpelu.studies.study import Results

SEEDS = 5
"""Of each training, unless a setting says another number: as many as the paper has on CIFAR."""


@cache
def trainings(name: str, setting: Setting) -> tuple[Training, ...]:
    """Return one training of a recipe for each seed; at the paper's scale the recipe names its data itself."""
    found = recipe(name, setting.scale, data=setting.data if setting.scale == "cpu" else None)
    return tuple(Training(found, seed, setting.scale) for seed in range(setting.seeds or SEEDS))


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
    errors = [final(record, "test error") for record in records if fate(record) != "diverged"]
    diverged = len(records) - len(errors)
    return replace(
        paper,
        ours=spread(errors),
        text=f"diverged {diverged} of {len(records)}" if diverged else "",
        runs=tuple(map(key_of, records)),
    )
