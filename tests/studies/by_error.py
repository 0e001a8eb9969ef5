"""Made-up records of trainings whose test errors by epoch a test chooses, and of measurements."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpelu.studies.jobs import Measurement, Training
from tests.made_up import record


def training(job: Training, errors: Sequence[float], *, diverged: bool = False) -> dict[str, Any]:
    """Return the record of a training with these test errors in percent, one an epoch."""
    history = [
        {"epoch": epoch, "train_loss": error / 40.0, "train_error_percent": error, "test_error_percent": error}
        for epoch, error in enumerate(errors, start=1)
    ]
    return record(job.recipe, job.seed, job.recipe.data) | {
        "outcome": "diverged" if diverged else "finished",
        "reason": "the training loss is nan" if diverged else None,
        "history": history,
        "last": history[-1] if history else None,
    }


def measurement(job: Measurement, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a measurement with these values."""
    return {
        "kind": "measurement",
        "function": job.function,
        "options": dict(job.options),
        "seed": job.seed,
        "version": job.version,
        "data": {"name": job.data} if job.data else None,
        "values": dict(values),
    }
