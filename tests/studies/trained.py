"""Made-up records of trainings whose ends a test chooses."""

from collections.abc import Callable, Iterable
from typing import Any

from mpelu.studies.jobs import Setting, Training, key
from mpelu.studies.study import Results
from tests.made_up import record

DIGITS = Setting("cpu", "digits")
GUESSING = 2.3026


def finished(job: Training, loss: float, error: float = 50.0, *, logit: float = 5.0) -> dict[str, Any]:
    """Return the record of a training that ends with a training loss, and with one error for training and test."""
    row = {
        "epoch": 1, "lr": 0.01, "train_loss": loss, "train_error_percent": error, "test_loss": loss,
        "test_error_percent": error, "wall_seconds": 1.0, "images_per_second": 1000.0, "max_abs_logit": logit,
    }  # fmt: skip
    base = record(job.recipe, job.seed, job.recipe.data)
    return base | {"outcome": "finished", "reason": None, "history": [row], "last": row, "best": row}


def diverged(job: Training, *, logit: float = 1e4) -> dict[str, Any]:
    """Return the record of a training that was over before its first epoch was."""
    base = record(job.recipe, job.seed, job.recipe.data) | {"history": [], "last": None, "best": None}
    end = {"step": 3, "train_loss_before": None, "max_abs_logit": logit}
    return base | {"outcome": "diverged", "reason": "the training loss is nan", "diverged_at": end}


def results(
    jobs: Iterable[Training], make: Callable[[Training], dict[str, Any] | None], setting: Setting = DIGITS
) -> Results:
    """Return the results of trainings, as far as there are records of them."""
    made = [(job, make(job)) for job in jobs]
    return Results(setting, {key(job): found for job, found in made if found is not None})
