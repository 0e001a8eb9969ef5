"""Where a training gets its images from: data in memory, or photographs that are decoded while it runs."""

import dataclasses
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from mpelu.data import (
    Dataset,
    Normalization,
    PhotographSet,
    Split,
    Stream,
    View,
    evaluation_inputs,
    find_photographs,
    load,
    normalization,
    training_inputs,
    training_survey,
)
from mpelu.data import stream as streaming
from mpelu.data.batches import epoch_order, generator, rank_slice, steps_per_epoch
from mpelu.data.dataset import require_choice
from mpelu.errors import UsageError
from mpelu.train.recipe import Recipe

EVALUATION_BATCH = 500

OnProgress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Photographs:
    """Photographs on disk, and how a network is shown them: the counterpart of :class:`mpelu.data.Dataset`.

    Attributes:
        listed: The images.
        view: How each is cut.
        normalization: What is subtracted and divided by.
    """

    listed: PhotographSet
    view: View
    normalization: Normalization

    @property
    def name(self) -> str:
        """Return what results call the data."""
        return self.listed.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the name of each class."""
        return self.listed.classes

    @property
    def sha256(self) -> str:
        """Return what identifies the data; see :class:`mpelu.data.PhotographSet`."""
        return self.listed.sha256

    @property
    def train(self) -> Any:
        """Return the training images, with their ``labels``."""
        return self.listed.train

    @property
    def test(self) -> Any:
        """Return the images to test with, with their ``labels``."""
        return self.listed.test

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of what the network is given."""
        return 3, self.view.crop, self.view.crop

    def to(self, device: torch.device) -> "Photographs":
        """Return the same, with what is subtracted on a device."""
        mean, std = self.normalization.mean.to(device), self.normalization.std.to(device)
        return dataclasses.replace(self, normalization=Normalization(mean, std))


Data: TypeAlias = Dataset | Photographs
"""What a network is trained on."""


def data_of(
    recipe: Recipe, *, loaded: Dataset | None = None, workers: int = 0, on_progress: OnProgress | None = None
) -> Data:
    """Load or list the data of a recipe, and choose what is subtracted from it and what it is divided by.

    The mean of each channel is that of the whole training set; a mean image, and both of photographs, are those of the
    images within ``limit``.

    Args:
        recipe: Its fields ``data`` to ``limit`` are used.
        loaded: What :func:`mpelu.data.load` returns for it, where that was done before.
        workers: Processes that decode photographs, where their means are not known yet.
        on_progress: Called while images are preprocessed or surveyed with the stage, the images done and their number.

    Raises:
        UsageError: If fields of the recipe contradict each other or do not suit the data.
        DataError: If the data cannot be read.
    """
    _check_fields(recipe)
    if recipe.stream != "off":
        return _photographs(recipe, workers, on_progress)
    data = loaded or load(recipe.data, preprocess=recipe.preprocess, resize=recipe.resize, on_progress=on_progress)
    _warn_of_classes(data.train.labels, recipe.limit)
    return data.limited(recipe.limit).centered(recipe.center, recipe.pixel_scale)


def other_data(recipe: Recipe, source: str, trained_on: Data) -> Data:
    """Load or list other images, to be shown as those that a network was trained on.

    Args:
        recipe: Of the network.
        source: As ``data`` of a recipe.
        trained_on: What :func:`data_of` returned for the recipe: its means and scales are used.

    Raises:
        UsageError: If the classes or sizes differ, or the images would need a preprocessing of their own.
        DataError: If the data cannot be read.
    """
    other: Data
    if isinstance(trained_on, Photographs):
        other = dataclasses.replace(trained_on, listed=find_photographs(source))
    else:
        found = load(source, preprocess=recipe.preprocess, resize=recipe.resize)
        other = dataclasses.replace(found, mean=trained_on.mean, std=trained_on.std, mean_image=trained_on.mean_image)
    if recipe.preprocess != "none" and other.sha256 != trained_on.sha256:
        raise UsageError(
            f"this network was trained on images preprocessed by {recipe.preprocess} with the statistics of "
            f"{trained_on.name}; {other.name} would be preprocessed with its own. Leave out --data"
        )
    if other.classes != trained_on.classes or other.image_shape != trained_on.image_shape:
        raise UsageError(
            f"the net was trained on {trained_on.name} ({len(trained_on.classes)} classes, images "
            f"{trained_on.image_shape}); {other.name} has {len(other.classes)} classes and images {other.image_shape}"
        )
    return other


def _check_fields(recipe: Recipe) -> None:
    """Raise a UsageError for fields that contradict each other."""
    if recipe.stream == "off":
        if recipe.damaged == "skip":
            raise UsageError("damaged skip is for photographs that are streamed, and stream is off: leave one out")
        require_choice(recipe.preprocess, recipe.center, recipe.pixel_scale)  # before the whitening takes its time
        return
    wrong = {
        "preprocess": recipe.preprocess != "none",
        "resize": recipe.resize is not None,
        "augment": recipe.augment not in (None, "none"),
    }
    given = [f"{name} {getattr(recipe, name)}" for name, is_wrong in wrong.items() if is_wrong]
    if given:
        raise UsageError(
            f"stream {recipe.stream} resizes, crops and mirrors by itself and holds no image in memory: leave out "
            f"{' and '.join(given)}, or stream"
        )
    if recipe.stream == "short" and recipe.center == "image":
        raise UsageError(
            "stream short leaves images of several sizes, which have no mean image: use center channel or stream squash"
        )


def _warn_of_classes(labels: Tensor, limit: int | None) -> None:
    """Warn where images lie in the order of their classes, and a limit takes those of the first ones only."""
    kept = labels[:limit]
    classes, left = len(set(labels.tolist())), len(set(kept.tolist()))
    if left < classes and len(kept) >= 20 and bool((kept.diff() >= 0).all()):  # fewer can be in order by chance
        warnings.warn(
            f"the images lie in the order of their classes, and limit {limit} leaves images of {left} of the {classes} "
            f"classes; leave it out, or give data in a mixed order",
            stacklevel=4,
        )


def _photographs(recipe: Recipe, workers: int, on_progress: OnProgress | None) -> Photographs:
    assert recipe.stream != "off"
    view = View(resize=recipe.stream)
    found = find_photographs(recipe.data)
    _warn_of_classes(found.train.labels, recipe.limit)
    listed = found.limited(recipe.limit)
    if recipe.center == "none" and recipe.pixel_scale == "raw":  # then no image need be looked at before
        return Photographs(listed, view, Normalization(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)))
    survey = training_survey(listed, view, limit=recipe.limit, workers=workers, on_progress=on_progress)
    return Photographs(listed, view, normalization(survey, center=recipe.center, scale=recipe.pixel_scale))


@dataclass(frozen=True)
class Batch:
    """What one process is shown at once.

    Attributes:
        images: What the network is given: float32, shape ``(n, C, H, W)``.
        labels: int64, shape ``(n,)``.
        indices: Which images of the split, int64, shape ``(n,)``.
        total: Images in the step, over all processes, those that were skipped included.
        skipped: Images of this process that could not be read.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    total: int
    skipped: int = 0


Batches: TypeAlias = Generator[Batch, None, None]


class Supply(Protocol):
    """The batches of one of the processes that train."""

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch."""

    def training(self, *, seed: int, start: int, stop: int) -> Batches:
        """Yield the batches of steps ``start`` to ``stop - 1``, counted over all epochs."""

    def evaluation(self) -> Batches:
        """Yield the test images once."""


def supply_of(
    recipe: Recipe, data: Data, *, device: torch.device, rank: int = 0, processes: int = 1, workers: int = 0
) -> Supply:
    """Return the batches of a resolved recipe.

    Args:
        recipe: The recipe.
        data: What :func:`data_of` returns for it.
        device: Where the network is.
        rank: Number of this process among those that train.
        processes: How many there are.
        workers: Processes that decode photographs for this one.
    """
    if isinstance(data, Photographs):
        return Streamed(recipe, data.to(device), device, rank, processes, workers)
    return InMemory(recipe, data.to(device), rank, processes)


def first_batch(recipe: Recipe, data: Data, *, seed: int) -> Tensor:
    """Return the images that the first step of a training is shown, over all processes."""
    supply = supply_of(recipe, data, device=torch.device("cpu"))
    batches = supply.training(seed=seed, start=0, stop=1)
    images = next(batches).images
    batches.close()
    return images


def examples_of(recipe: Recipe, data: Data, count: int) -> tuple[Tensor, Tensor]:
    """Return the first training images as they would be tested, and their labels."""
    if isinstance(data, Photographs):
        train = data.listed.train.first(min(count, len(data.listed.train.labels)))
        first: Data = dataclasses.replace(data, listed=dataclasses.replace(data.listed, test=train))
    else:
        first = dataclasses.replace(data, test=Split(data.train.images[:count], data.train.labels[:count]))
    batches = list(supply_of(recipe, first, device=torch.device("cpu")).evaluation())
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


@dataclass(frozen=True)
class InMemory:
    """Batches of data in memory: see :class:`Supply`. Order, crops and flips are drawn for the whole batch."""

    recipe: Recipe
    data: Dataset
    rank: int
    processes: int

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch; the last batch may be smaller."""
        assert self.recipe.batch_size is not None
        return steps_per_epoch(len(self.data.train.labels), self.recipe.batch_size)

    def training(self, *, seed: int, start: int, stop: int) -> Batches:
        """Yield the batches of steps ``start`` to ``stop - 1``, counted over all epochs."""
        assert self.recipe.batch_size is not None
        split, size = self.data.train, self.recipe.batch_size
        order, ordered = torch.empty(0, dtype=torch.int64), -1
        for step in range(start, stop):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != ordered:
                order, ordered = epoch_order(len(split.labels), seed=seed, epoch=epoch), epoch
            indices = order[batch * size :][:size]
            yield self._batch(split, indices, generator(seed, "augment", step))

    def evaluation(self) -> Batches:
        """Yield this process's part of the test images, in order."""
        assert self.recipe.augment is not None
        split = self.data.test
        part = rank_slice(len(split.labels), rank=self.rank, processes=self.processes)
        images, labels = split.images[part], split.labels[part]
        numbers = torch.arange(len(split.labels))[part]
        for start in range(0, len(labels), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            shown = evaluation_inputs(self.data, images[rows], self.recipe.augment)
            yield Batch(_laid_out(shown, self.recipe), labels[rows], numbers[rows], len(labels[rows]))

    def _batch(self, split: Split, indices: Tensor, draws: torch.Generator) -> Batch:
        assert self.recipe.augment is not None
        part = rank_slice(len(indices), rank=self.rank, processes=self.processes)
        chosen = indices.to(split.images.device)
        shown = training_inputs(self.data, split.images[chosen], self.recipe.augment, generator=draws, part=part)
        return Batch(_laid_out(shown, self.recipe), split.labels[chosen[part]], indices[part], len(indices))


@dataclass(frozen=True)
class Streamed:
    """Batches of photographs: see :class:`Supply`."""

    recipe: Recipe
    data: Photographs
    device: torch.device
    rank: int
    processes: int
    workers: int

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch; the last batch may be smaller."""
        return self._stream(self.data.train).steps_per_epoch

    def training(self, *, seed: int, start: int, stop: int) -> Batches:
        """Yield the batches of steps ``start`` to ``stop - 1``, counted over all epochs."""
        stream = self._stream(self.data.train)
        images = len(stream.photographs.labels)
        for batch in stream.training(seed=seed, start=start, stop=stop):
            first = batch.step % stream.steps_per_epoch * stream.batch_size
            yield self._prepared(batch, min(stream.batch_size, images - first))

    def evaluation(self) -> Batches:
        """Yield this process's part of the test images, in order, the centre of each."""
        for batch in self._stream(self.data.test).evaluation():
            yield self._prepared(batch, len(batch.labels) + len(batch.skipped))

    def _stream(self, photographs: Any) -> Stream:
        assert self.recipe.batch_size is not None
        return Stream(
            photographs,
            len(self.data.classes),
            self.data.view,
            batch_size=self.recipe.batch_size,
            workers=self.workers,
            damaged=self.recipe.damaged,
            rank=self.rank,
            processes=self.processes,
        )

    def _prepared(self, batch: streaming.Batch, total: int) -> Batch:
        images = self.data.normalization.apply(batch.images.to(self.device), batch.corners, batch.mirrored)
        labels = batch.labels.to(self.device)
        return Batch(_laid_out(images, self.recipe), labels, batch.indices, total, len(batch.skipped))


def _laid_out(images: Tensor, recipe: Recipe) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
