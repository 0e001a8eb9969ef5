"""How long a recipe takes on one core of a CPU: its steps, times what a step of it was measured to take."""

import csv
import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

from mpelu.train.recipe import FAMILY_DEFAULTS, Recipe, resolve

TABLE = Path(__file__).parent / "steps.csv"
"""What ``python benchmarks/time_steps.py`` measured."""


Key: TypeAlias = tuple[str, str, str, int, int, int]


@dataclass(frozen=True)
class Images:
    """What a step and an epoch depend on: counts of images, classes, and the shape of what the network sees."""

    train: int
    test: int
    classes: int
    channels: int
    size: int


DATA = {
    "digits": Images(1500, 297, 10, 1, 16),
    "cifar10": Images(50_000, 10_000, 10, 3, 32),
    "cifar100": Images(50_000, 10_000, 100, 3, 32),
    "imagenet": Images(1_281_167, 50_000, 1000, 3, 224),
}
"""The named data sets as a network sees them. Others, which lie in a folder, count as CIFAR-10."""


@dataclass(frozen=True)
class Step:
    """A training step: what its time depends on, and its time.

    Attributes:
        model: As in a recipe.
        activation: Likewise.
        options: Width, batch normalization, dropout and options of the network where they are given, as JSON.
        channels: Of the images.
        size: Height and width of the images in pixels, after their crop.
        batch: Images in a step.
        multiply_adds: Of the forward pass of one image.
        seconds: CPU seconds of one thread for the forward pass, the backward pass and SGD; None if not measured.
        machine: Name of the CPU.
        torch: Its version.
    """

    model: str
    activation: str
    options: str
    channels: int
    size: int
    batch: int
    multiply_adds: int
    seconds: float | None = None
    machine: str = ""
    torch: str = ""

    @property
    def key(self) -> Key:
        """What a step is known by."""
        return self.model, self.activation, self.options, self.channels, self.size, self.batch

    @property
    def family(self) -> str:
        return family(self.model)

    @property
    def work(self) -> float:
        """Multiply-adds of the forward pass of all images."""
        return float(self.multiply_adds) * self.batch


def expected_seconds(recipe: Recipe, train_images: int | None = None) -> float:
    """Return the CPU seconds of one thread that a whole run takes, tests after each epoch included.

    A step that is in the table takes what was measured. Any other takes what the nearest one takes, times the ratio of
    their multiply-adds: of the same network if there is one, else of its family, else of any; of these with the same
    activation if there is one, and then the nearest in size. Small networks do not shrink in proportion, so the further
    away that one is, the rougher the number. An image of the test set counts a third of one in training. One process
    with one thread in float32 is meant; two runs side by side on two cores take as long as one.

    Args:
        recipe: The recipe.
        train_images: Number of training images, where it is not that of the named data set.

    Raises:
        UsageError: If the network is not in the table and cannot be built.

    Example:
        >>> shorter = expected_seconds(Recipe(model="plain30", augment="none", epochs=1))
        >>> expected_seconds(Recipe(model="plain30", augment="none", epochs=10)) / shorter
        10.0
    """
    resolved, images = _resolved(recipe), images_of(recipe)
    assert resolved.epochs is not None
    assert resolved.batch_size is not None
    train = min(train_images or images.train, recipe.limit or math.inf)
    steps = math.ceil(train / resolved.batch_size)
    step = step_seconds(recipe)
    return resolved.epochs * step * (steps + images.test / resolved.batch_size / 3)


def step_seconds(recipe: Recipe) -> float:
    """Return the CPU seconds of one thread that a training step takes, measured or estimated."""
    wanted = _known().get(step_without_time(recipe).key) or step_without_time(
        recipe, multiply_adds=multiply_adds(recipe)
    )
    if wanted.seconds is not None:
        return wanted.seconds
    nearest = min((step for step in _known().values() if step.seconds), key=lambda step: _distance(step, wanted))
    assert nearest.seconds is not None
    return nearest.seconds * wanted.work / nearest.work


def can_be_expected(recipe: Recipe) -> bool:
    """True where the images and the network of a recipe are known: both have names here."""
    return recipe.data in DATA and family(recipe.model) not in ("own", "timm")


def is_measured(recipe: Recipe) -> bool:
    """True where the time of a step of exactly this kind was measured."""
    known = _known().get(step_without_time(recipe).key)
    return known is not None and known.seconds is not None


def _distance(step: Step, wanted: Step) -> tuple[bool, bool, bool, float]:
    return (
        step.family != wanted.family,
        step.model != wanted.model,
        step.activation != wanted.activation,
        abs(math.log(step.work / wanted.work)),
    )


def images_of(recipe: Recipe) -> Images:
    """Return the images of a recipe as its network sees them."""
    found = DATA.get(recipe.data, DATA["cifar10"])
    size = recipe.resize or (224 if recipe.stream != "off" else found.size)
    cropped = re.fullmatch(r"crop(\d+)", recipe.augment or "")
    size = int(cropped[1]) if cropped else size
    return Images(found.train, found.test, found.classes, found.channels, size)


def family(model: str) -> str:
    """Return the family of a network, as :func:`mpelu.models.family_of`, but without torch: it takes names on trust."""
    if ":" in model:
        return "own"
    return next((name for name in FAMILY_DEFAULTS if re.fullmatch(rf"{name}\d*", model)), "timm")


def multiply_adds(recipe: Recipe) -> int:
    """Return the multiply-adds of the forward pass of one image. This builds the network and imports torch."""
    images = images_of(recipe)
    step = step_without_time(recipe)
    return _counted(step.model, step.activation, step.options, images)


@cache
def _counted(model: str, activation: str, options: str, images: Images) -> int:
    from mpelu.models import count_costs

    return count_costs(
        model,
        num_classes=images.classes,
        in_channels=images.channels,
        input_size=images.size,
        activation=activation,
        options=json.loads(options),
    ).multiply_adds


def step_of(recipe: Recipe) -> Step:
    """Return the step of a recipe, without its time."""
    return step_without_time(recipe, multiply_adds=multiply_adds(recipe))


def step_without_time(recipe: Recipe, multiply_adds: int = 0) -> Step:
    resolved, images = _resolved(recipe), images_of(recipe)
    assert resolved.batch_size is not None
    return Step(
        model=recipe.model,
        activation=recipe.activation,
        options=json.dumps(network_options(recipe), sort_keys=True),
        channels=images.channels,
        size=images.size,
        batch=resolved.batch_size,
        multiply_adds=multiply_adds,
    )


def _resolved(recipe: Recipe) -> Recipe:
    return resolve(recipe, family=family(recipe.model), image_size=images_of(recipe).size)


def network_options(recipe: Recipe) -> dict[str, object]:
    """Return the options of the network that the recipe gives."""
    named = {name: getattr(recipe, name) for name in ("width", "batch_norm", "dropout")}
    return {name: value for name, value in named.items() if value is not None} | (recipe.model_options or {})


@cache
def _known() -> dict[Key, Step]:
    return read(TABLE)


def read(path: Path) -> dict[Key, Step]:
    """Read a table of steps."""
    with path.open(newline="", encoding="utf-8") as file:
        return {step.key: step for step in map(_read, csv.DictReader(file))}


def _read(row: dict[str, str]) -> Step:
    return Step(
        model=row["model"],
        activation=row["activation"],
        options=row["options"],
        channels=int(row["channels"]),
        size=int(row["size"]),
        batch=int(row["batch"]),
        multiply_adds=int(row["multiply_adds"]),
        seconds=float(row["seconds"]) if row["seconds"] else None,
        machine=row["machine"],
        torch=row["torch"],
    )


def in_words(seconds: float) -> str:
    """Write a duration for a reader: two digits, in the largest unit that fits.

    Example:
        >>> in_words(38.2), in_words(5400.0), in_words(2.6e6)
        ('38 s', '1.5 h', '30 days')
    """
    units = [(365.25 * 86400, "years"), (86400.0, "days"), (3600.0, "h"), (60.0, "min")]
    size, unit = next(((size, unit) for size, unit in units if seconds >= size), (1.0, "s"))
    number = seconds / size
    return f"{number:.1f} {unit}" if number < 9.95 and unit not in ("s", "min") else f"{number:.0f} {unit}"
