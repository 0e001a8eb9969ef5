"""Recipes with changes of a study's own that are compared: trainings, contests between two, and cells of a table.

Recipes as they are have :mod:`mpelu.studies.by_name`; what becomes of any training is in :mod:`mpelu.studies.fate`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mpelu.recipes import row
from mpelu.report.finding import Finding, Interval
from mpelu.report.grid import Cell
from mpelu.report.summary import spread
from mpelu.studies.by_name import recipe_at
from mpelu.studies.fate import Part, conclude, counts, difference, errors_of
from mpelu.studies.jobs import SEEDS, Job, Setting, Training, key_of, of_each_seed
from mpelu.studies.study import Claim, Results
from mpelu.train.recipe import Recipe


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        label: What it is called in a sentence.
        row: Name of the recipe.
        changes: Fields that differ from the recipe at both scales.
        scaled: Fields that differ at scale cpu only.
        seeds: How many, where the setting does not say.
    """

    label: str
    row: str
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    scaled: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seeds: int = SEEDS

    def recipe(self, setting: Setting) -> Recipe:
        """Return the recipe at a setting."""
        made = recipe_at(row(self.row), setting)
        changes = {**self.changes, **(self.scaled if setting.scale == "cpu" else {})}
        return dataclasses.replace(made, **changes)

    def jobs(self, setting: Setting) -> tuple[Training, ...]:
        """Return one training for each seed."""
        return _trainings(self, setting)


@cache
def _trainings(arm: Arm, setting: Setting) -> tuple[Training, ...]:
    return of_each_seed(arm.recipe(setting), setting, arm.seeds)


@dataclass(frozen=True)
class Contest:
    """Two arms of which the first has the greater test error, as the paper says."""

    worse: Arm
    better: Arm

    def interval(self, results: Results) -> Interval | None:
        """Return by how much it is greater."""
        runs = self.worse.jobs(results.setting), self.better.jobs(results.setting)
        return difference(results, f"{self.worse.label} minus {self.better.label}", *runs)

    def part(self, results: Results) -> Part:
        """Return the claim that it is greater."""
        return Part(self.interval(results), "above")


def jobs_of(arms: Sequence[Arm]) -> Callable[[Setting], tuple[Training, ...]]:
    """Return a function that returns the trainings of several arms."""
    return lambda setting: tuple(job for arm in arms for job in arm.jobs(setting))


def contested(
    number: int,
    statement: str,
    contests: Sequence[Contest],
    *,
    controls: Sequence[Contest] = (),
    note: str = "",
    differs: str = "",
) -> Claim:
    """Return a claim that says which nets have the greater test error.

    Args:
        number: Of the claim.
        statement: What the paper says.
        contests: All of them must come out as the paper says.
        controls: Run and reported too, without a part in the verdict.
        note: A sentence that goes before the numbers.
        differs: What is different at scale cpu beside the factors of the recipes.
    """
    arms = arms_of([*contests, *controls])

    def judge(results: Results) -> Finding:
        parts = [contest.part(results) for contest in contests]
        beside = [contest.interval(results) for contest in controls]
        return finding(number, statement, results, arms, parts, beside=beside, note=note, differs=differs)

    return Claim(number, statement, jobs_of(arms), judge)


def arms_of(contests: Sequence[Contest]) -> tuple[Arm, ...]:
    """Return the arms of contests, each once."""
    arms = {arm.label: arm for contest in contests for arm in (contest.worse, contest.better)}
    return tuple(arms.values())


def finding(
    number: int,
    statement: str,
    results: Results,
    arms: Sequence[Arm],
    parts: Sequence[Part],
    *,
    beside: Sequence[Interval | None] = (),
    more: Sequence[Job] = (),
    note: str = "",
    differs: str = "",
) -> Finding:
    """Return the finding of a claim with several parts, all of which must hold.

    Args:
        number: Of the claim.
        statement: What the paper says.
        results: The records.
        arms: Those whose trainings the claim has.
        parts: What the verdict rests on.
        beside: Other numbers worth knowing, without a part in the verdict.
        more: Measurements that the claim has too.
        note: A sentence that goes before the numbers.
        differs: What is different at scale cpu beside the factors of the recipes.
    """
    errors = "; ".join(text for arm in arms if (text := errors_text(results, arm)))
    return conclude(
        number,
        statement,
        results,
        (*jobs_of(arms)(results.setting), *more),
        parts,
        beside=beside,
        note=note,
        told=f"Test error: {errors}" if errors else "",
        differs="; ".join(filter(None, (*factors_of(arms), differs))),
        data=data_of(arms),
    )


def factors_of(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Return in words what scale cpu shortens of some arms, each once."""
    return tuple(dict.fromkeys(factor for arm in arms for factor in row(arm.row).factors))


def data_of(arms: Sequence[Arm]) -> str:
    """Return the data set of some arms at scale paper; CIFAR-10 where there are none."""
    return row(arms[0].row).paper.data if arms else "cifar10"


def errors_text(results: Results, arm: Arm) -> str:
    """Say what the test errors are, e.g. "ReLU 45.20 ± 1.10 % (n = 5)"; empty where nothing was run."""
    found = spread(errors_of(results.present(arm.jobs(results.setting))))
    trouble = trouble_text(results, arm)
    if found is None:
        return f"{arm.label} {trouble}" if trouble else ""
    sd = "" if found.sd is None else f" ± {found.sd:.2f}"
    return f"{arm.label} {found.mean:.2f}{sd} % (n = {found.n}{', ' if trouble else ''}{trouble})"


def trouble_text(results: Results, arm: Arm) -> str:
    """Say how many runs have which fate, unless all have learned."""
    text = counts(results, arm.jobs(results.setting))
    return "" if text.startswith("learns") and "," not in text else text


def cell(results: Results, arm: Arm, paper: Cell) -> Cell:
    """Return a cell of the paper with the test errors of an arm beside it."""
    runs = tuple(key_of(record) for record in results.present(arm.jobs(results.setting)))
    ours = spread(errors_of(results.present(arm.jobs(results.setting))))
    return dataclasses.replace(paper, ours=ours, text=trouble_text(results, arm), runs=runs)
