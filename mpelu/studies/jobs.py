"""What a study asks for: trainings and measurements, each with the key by which its record is found again."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from mpelu.report.summary import Record
from mpelu.train.recipe import ADDED, Recipe, resolve

Scale: TypeAlias = Literal["paper", "cpu"]
STUDY = "reproduce"
"""The folder of all runs of studies: a training that serves two claims is made once."""
SEEDS = 5
"""Of each training, unless a setting or a study says another number: as many as the paper has on CIFAR."""


@dataclass(frozen=True)
class Setting:
    """Where a study is run.

    Attributes:
        scale: ``paper`` as published, ``cpu`` shortened by the factors that the recipes state.
        data: At scale ``cpu``, the images: a name or a path when jobs are run, the name of the data set when records
            are looked up.
        seeds: How many seeds of each training; None for the study's own number.
    """

    scale: Scale = "cpu"
    data: str = "digits"
    seeds: int | None = None


@dataclass(frozen=True)
class Training:
    """A recipe and a seed. The recipe names its augmentation, so that its key needs no data."""

    recipe: Recipe
    seed: int
    scale: Scale = "cpu"

    @cached_property
    def key(self) -> str:
        """:func:`key` with the data that the recipe names; a report asks for it a dozen times for each record."""
        return _key_of_training(self, self.recipe.data)


def of_each_seed(recipe: Recipe, setting: Setting, seeds: int = SEEDS) -> tuple[Training, ...]:
    """Return one training of a recipe for each seed: as many as the setting says, or else ``seeds``."""
    return tuple(Training(recipe, seed, setting.scale) for seed in range(setting.seeds or seeds))


@dataclass(frozen=True)
class Measurement:
    """A function that returns numbers, for what is measured or computed without a whole training.

    Attributes:
        function: ``module:function``; called as ``function(seed=..., data=..., **options)``, returns plain values that
            JSON knows.
        options: Its keyword arguments, plain values too.
        seed: Of the measurement.
        data: A data set (name or path), empty where none is used.
        seconds: CPU seconds that it takes, measured.
        version: Raised when the function changes what it returns.
    """

    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    data: str = ""
    seconds: float = 10.0
    version: int = 1


Job: TypeAlias = Training | Measurement


def key(job: Job, data: str = "") -> str:
    """Return 16 hexadecimal digits that a job has in common with its record, wherever the data lies.

    Args:
        job: The job.
        data: Name of the data set, where the job holds a path; empty if it holds the name.
    """
    if isinstance(job, Measurement):
        used = job.data and (data or job.data)
        return _digest(_of_measurement(job.function, job.options, job.seed, job.version, used))
    return _key_of_training(job, data) if data else job.key


def _key_of_training(job: Training, data: str) -> str:
    from mpelu.recipes.duration import family  # as mpelu.models.family_of, without torch

    if job.recipe.augment is None:
        raise ValueError(f"a recipe of a study must name its augmentation, got None for {job.recipe.model}")
    resolved = resolve(job.recipe, family=family(job.recipe.model), image_size=0)
    config = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(resolved).items()}
    return _digest(_of_training(config, job.seed, data))


def key_of(record: Record) -> str:
    """Return the key of a record of either kind."""
    data = record["data"]["name"] if record["data"] else ""
    if record.get("kind") == "measurement":
        return _digest(_of_measurement(record["function"], record["options"], record["seed"], record["version"], data))
    return _digest(_of_training(record["config"], record["seed"], data))


def _of_measurement(function: str, options: Mapping[str, Any], seed: int, version: int, data: str) -> dict[str, Any]:
    return {"function": function, "options": dict(options), "seed": seed, "version": version, "data": data}


def _of_training(config: Mapping[str, Any], seed: int, data: str) -> dict[str, Any]:
    """Return what makes a training: fields that older records lack have the value with which they are the same."""
    names = [each.name for each in dataclasses.fields(Recipe)]
    return {"config": {name: config.get(name, ADDED.get(name)) for name in names} | {"data": data}, "seed": seed}


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
