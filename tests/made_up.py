"""Made-up records and a study of 52 claims, 12 tables and a figure about them, for the report of a reproduction."""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from mpelu.recipes.row import Recipe
from mpelu.report import activation_shapes
from mpelu.report.finding import Finding
from mpelu.report.grid import Cell, Grid, Picture
from mpelu.report.summary import spread
from mpelu.studies.jobs import STUDY, Measurement, Setting, Training, key_of
from mpelu.studies.statistic import outcome_of, paired_difference
from mpelu.studies.study import Claim, Exhibit, Results

EPOCHS, SEEDS = 30, 5
TABLES = 12


def recipes() -> tuple[Recipe, ...]:
    """Return recipes that differ as those of a study do, as many as 1,000 records with five seeds need."""
    base = Recipe(data="digits", augment="none", epochs=EPOCHS, batch_size=32)
    choices = itertools.product(
        ("plain15", "plain30", "nin", "resnet20", "nopre29"),
        (("relu", None), ("prelu", 0.25), ("elu", 1.0), ("mpelu", 0.25), ("mpelu", 1.0)),
        ("eq22", "gaussian"),
        (0.02, 0.1),
        (False, True),
    )
    return tuple(
        replace(base, model=model, activation=activation, alpha=alpha, init=init, lr=lr, nesterov=nesterov)
        for model, (activation, alpha), init, lr, nesterov in choices
    )


RECIPES = recipes()


def record(recipe: Recipe, seed: int, data: str) -> dict[str, Any]:
    """Return a made-up record of a training, as ``result.json`` holds it."""
    from mpelu.models import family_of
    from mpelu.train.recipe import recipe_name, resolve

    resolved = replace(resolve(recipe, family=family_of(recipe.model), image_size=0), data=data)
    config = json.loads(json.dumps(vars(resolved)))
    code = hashlib.sha256(json.dumps(config).encode()).hexdigest()
    chance = random.Random(f"{code}{seed}")
    diverged = int(code[:2], 16) < 24 and seed % 2 == 0
    rows = list(_history(int(code[2:4], 16) / 255, chance, epochs=7 if diverged else EPOCHS))
    return {
        "schema": 1,
        "study": STUDY,
        "recipe": recipe_name(resolved),
        "hash": code[:8],
        "seed": seed,
        "outcome": "diverged" if diverged else "finished",
        "reason": "loss is nan at step 329" if diverged else None,
        "steps": 47 * len(rows),
        "config": config,
        "data": {"name": data, "sha256": "c657" * 16, "train_images": 1500, "test_images": 297, "classes": 10},
        "scale": "cpu",
        "model": {"parameters": 88138},
        "last": rows[-1],
        "best": min(rows, key=lambda row: row["test_error_percent"]),
        "history": rows,
        "wall_seconds": 40.0 + chance.random(),
        "images_per_second": 1100.0,
        "state_sha256": hashlib.sha256(f"{code}{seed}".encode()).hexdigest(),
        "environment": {
            "mpelu": "0.1.0", "commit": "a2e766e1b2c3", "python": "3.11.7", "torch": "2.13.0+cpu",
            "platform": "Linux-6.1-x86_64", "device": "cpu", "device_name": "a processor", "threads": 1, "processes": 1,
            "started_utc": "2026-01-02T03:04:05+00:00",
        },
    }  # fmt: skip


def _history(speed: float, chance: random.Random, *, epochs: int) -> Iterator[dict[str, Any]]:
    for epoch in range(1, epochs + 1):
        left = math.exp(-(0.02 + 0.3 * speed) * epoch) * (1 + 0.1 * chance.random())
        error = 2.0 + 86.0 * left + 0.6 * chance.random()
        yield {
            "epoch": epoch, "lr": 0.02, "train_loss": 2.3 * left, "train_error_percent": error,
            "test_loss": 2.3 * left, "test_error_percent": error, "wall_seconds": 1.3, "images_per_second": 1100.0,
        }  # fmt: skip


def measured(seed: int) -> dict[str, Any]:
    """Return a made-up record of a measurement."""
    return {
        "schema": 1,
        "kind": "measurement",
        "study": STUDY,
        "function": "mpelu.studies.made_up:forward",
        "options": {"activation": "mpelu", "layers": 30},
        "seed": seed,
        "version": 1,
        "hash": "5eed5eed",
        "data": None,
        "outcome": "finished",
        "values": {"variance": [1.0 / (1 + layer) for layer in range(30)], "seconds": 0.25},
        "wall_seconds": 0.3,
        "environment": {"mpelu": "0.1.0", "torch": "2.13.0+cpu", "started_utc": "2026-01-02T03:04:05+00:00"},
    }


def records(number: int) -> list[dict[str, Any]]:
    """Return made-up records, 9 in 10 of trainings on the digits, the others on natural images, and 3 measurements."""
    jobs = itertools.product(RECIPES, range(SEEDS))
    trainings = [
        record(recipe, seed, "cifar10" if recipe.model == "nin" and recipe.lr == 0.1 else "digits")
        for recipe, seed in itertools.islice(jobs, number)
    ]
    return trainings + [measured(seed) for seed in range(3)]


def _jobs(chosen: Sequence[Recipe], setting: Setting) -> tuple[Training, ...]:
    seeds = range(setting.seeds or SEEDS)
    return tuple(Training(replace(recipe, data=setting.data), seed) for recipe in chosen for seed in seeds)


def _claim(number: int) -> Claim:
    chosen = tuple(RECIPES[(4 * number + 7 * index) % len(RECIPES)] for index in range(4))
    statement = (
        f"In {chosen[0].model}, {chosen[0].activation} from {chosen[0].init} weights has a lower test error than "
        f"{chosen[1].activation} from {chosen[1].init} weights."
    )

    def judge(results: Results) -> Finding:
        def error(recipe: Recipe, seed: int) -> float | None:
            found = results.of(Training(replace(recipe, data=results.setting.data), seed))
            return None if found is None or found["outcome"] != "finished" else found["last"]["test_error_percent"]

        if results.setting.scale == "paper" or number > 44:
            return Finding(number, statement, "not run", "", (), results.setting.scale, "")
        jobs = _jobs(chosen, results.setting)
        pairs = [
            [error(recipe, seed) for recipe in chosen[:3]]
            for seed in range(results.setting.seeds or SEEDS)
            if None not in [error(recipe, seed) for recipe in chosen[:3]]
        ]
        first = paired_difference("test error of the first minus the second", *_columns(pairs, 0, 1))
        second = paired_difference("test error of the first minus the third", *_columns(pairs, 0, 2))
        return Finding(
            number,
            statement,
            outcome_of(first, "below"),
            f"{first.estimate:+.2f} points between them over {first.n} seeds." if first else "No pair of seeds.",
            tuple(each for each in (first, second) if each),
            "cpu",
            results.setting.data,
            tuple(key_of(found) for found in results.present(jobs)),
            "width 16 instead of 64, 30 epochs instead of 307, other images",
        )

    return Claim(number, statement, lambda setting: _jobs(chosen, setting), judge)


def _columns(pairs: Sequence[Sequence[Any]], *chosen: int) -> list[list[float]]:
    return [[pair[index] for pair in pairs] for index in chosen]


def _table(number: int) -> Exhibit:
    chosen = RECIPES[16 * (number - 1) : 16 * number]

    def show(results: Results) -> Grid:
        def cell(recipe: Recipe, column: str) -> Cell:
            jobs = _jobs([recipe], results.setting)
            found = [] if results.setting.scale == "paper" else results.present(jobs)
            finished = [each[column]["test_error_percent"] for each in found if each["outcome"] == "finished"]
            stopped = len(found) - len(finished)
            return Cell(
                paper="37.08" if recipe.activation == "elu" else "",
                source="the text of the paper, section 4.2",
                ours=spread(finished),
                text=f"diverged {stopped} of {len(found)}" if stopped else "",
                runs=tuple(key_of(each) for each in found),
            )

        rows = [
            (recipe.model, recipe.activation, recipe.init, f"{recipe.lr:g}", cell(recipe, "last"), cell(recipe, "best"))
            for recipe in chosen
        ]
        return Grid(
            f"table{number}",
            "Test error by activation and initialization",
            ("network", "activation", "initialization", "rate", "test error, last epoch", "test error, best epoch"),
            tuple(rows),
            results.setting.scale,
            results.setting.data,
            ("Networks have a quarter of the paper's width.",),
        )

    return Exhibit(
        f"table{number}", "Test error by activation and initialization", lambda setting: _jobs(chosen, setting), show
    )


def _shapes(results: Results) -> Picture:
    svg = activation_shapes(name="figure1")
    return Picture("figure1", "Activations", svg, "MPELU holds ReLU, PReLU and ELU as special cases.", "any", "")


def _measurements(setting: Setting) -> tuple[Measurement, ...]:
    seeds = range(setting.seeds or SEEDS)
    return tuple(
        Measurement("mpelu.studies.made_up:forward", {"activation": "mpelu", "layers": 30}, seed) for seed in seeds
    )


def study() -> ModuleType:
    """Return a study of 52 made-up claims, 12 tables and a figure."""
    module = ModuleType("mpelu.studies.made_up")
    module.CLAIMS = tuple(map(_claim, range(1, 53)))  # type: ignore[attr-defined]
    figure = Exhibit("figure1", "Activations", _measurements, _shapes)
    module.EXHIBITS = (*map(_table, range(1, TABLES + 1)), figure)  # type: ignore[attr-defined]
    return module
