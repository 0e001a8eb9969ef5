"""Made-up ends of the trainings and first steps of arms, for the tests of their judges."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mpelu.report.finding import Finding
from mpelu.studies.arms import Arm
from mpelu.studies.jobs import Job, Measurement, Setting
from mpelu.studies.study import Claim
from tests.studies.by_error import measurement, training
from tests.studies.trained import results

CPU = Setting("cpu", "cifar10-jpeg75")
Make = Callable[[Job], dict[str, Any] | None]


def steps(losses: list[float], *, spread: float = 10.0, reason: str | None = None) -> dict[str, Any]:
    """Return what first steps measure: losses, and two blocks whose gradients differ by a factor."""
    blocks = [[1.0, spread]] * len(losses)
    return {
        "losses": losses,
        "gradient_norms": [1.0] * len(losses),
        "block_gradient_norms": blocks,
        "reason": reason,
        "classes": 10,
    }


def ends(
    errors: Mapping[Arm, float],
    setting: Setting = CPU,
    *,
    failing: Collection[str] = (),
    diverging: Collection[str] = (),
    spreads: Mapping[str, float] | None = None,
) -> Make:
    """Return a function that makes records: of an arm that is not named, none.

    Args:
        errors: Mean test error by arm; seeds differ by up to 0.2.
        setting: Of the jobs.
        failing: Names of rows whose first steps do not get below guessing.
        diverging: Labels of arms whose trainings diverge.
        spreads: Factor between the gradients of two blocks, by name of the row.
    """
    by_recipe = {str(arm.recipe(setting)): arm for arm in errors}

    def make(job: Job) -> dict[str, Any] | None:
        if isinstance(job, Measurement):
            name = job.options["row"]
            loss = math.log(10) + 0.1 if name in failing else 1.9
            factor = (spreads or {}).get(name, 10.0) * (1 + 0.01 * (job.seed % 3))
            return measurement(job, steps([loss] * 30, spread=factor))
        arm = by_recipe.get(str(job.recipe))
        if arm is None:
            return None
        if arm.label in diverging:
            return training(job, [], diverged=True)
        return training(job, [errors[arm] + 0.1 * (job.seed % 3)])

    return make


def judged(claim: Claim, make: Make, setting: Setting = CPU) -> Finding:
    """Return the finding of a claim on made-up records of its jobs."""
    return claim.judge(results(claim.jobs(setting), make, setting))
