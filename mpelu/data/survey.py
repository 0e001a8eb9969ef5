"""One pass over photographs: how many of each class, their mean image, and which are damaged."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mpelu.data import cache as stored
from mpelu.data.collect import require_label
from mpelu.data.photographs import Photographs, PhotographSet
from mpelu.data.view import View, whole
from mpelu.data.whiten import Progress
from mpelu.errors import DataError, UsageError

TELL_EVERY = 200


@dataclass(frozen=True)
class Survey:
    """What is in a split.

    Attributes:
        counts: Good images of each class.
        mean: Mean of each channel over the pixels of all resized images, on the scale 0 to 255.
        std: Standard deviation of each channel over these pixels, on the same scale.
        mean_image: Mean of all resized images, float32, shape ``(3, size, size)``; None where only the short side has a
            fixed size.
        damaged: A line for each image that cannot be used.
    """

    counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean_image: Tensor | None
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from images, and what they are divided by.

    Attributes:
        mean: On the scale 0 to 255, float32, shape ``(3, 1, 1)``; or ``(3, size, size)``: then each image loses the
            part of it that lies under its own crop.
        std: On the same scale, float32, shape ``(3, 1, 1)``; 1 leaves the images on the scale 0 to 255.
    """

    mean: Tensor
    std: Tensor

    def apply(self, images: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
        """Return normalized images.

        Args:
            images: uint8, shape ``(N, 3, crop, crop)``, any device and memory format.
            corners: As in :class:`mpelu.data.stream.Batch`.
            mirrored: As in :class:`mpelu.data.stream.Batch`.

        Returns:
            float32, shape, device and memory format of ``images``.
        """
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        result = images.float()
        if mean.shape[-1] == 1:
            return result.sub_(mean).div_(std)
        crop = images.shape[-1]
        for image, (top, left), flip in zip(result, corners.tolist(), mirrored.tolist(), strict=True):
            below = mean[:, top : top + crop, left : left + crop]
            image.sub_(below.flip(2) if flip else below)
        return result.div_(std)


def normalization(
    survey: Survey, *, center: Literal["image", "channel", "none"] = "image", scale: Literal["raw", "std"] = "raw"
) -> Normalization:
    """Choose what is subtracted and divided by.

    Args:
        survey: Of the training images, with the view of the training.
        center: Subtract the mean ``image``, pixel by pixel (the paper's code), the mean of each ``channel``, or
            nothing (``none``).
        scale: ``raw``: leave the scale 0 to 255 as it is (the paper's code); ``std``: divide by the standard deviation
            of each channel.

    Raises:
        UsageError: If a mean image is asked for where there is none, or a name is unknown.
    """
    means = {"image": survey.mean_image, "channel": _column(survey.mean), "none": torch.zeros(3, 1, 1)}
    scales = {"raw": torch.ones(3, 1, 1), "std": _column(survey.std)}
    if center not in means or scale not in scales:
        raise UsageError(f"center must be image, channel or none, and scale raw or std, got {center!r} and {scale!r}")
    mean = means[center]
    if mean is None:
        raise UsageError("images of several sizes have no mean image: use center 'channel', or the resize 'squash'")
    return Normalization(mean, scales[scale])


def survey_images(
    photographs: Photographs,
    classes: int,
    view: View,
    *,
    workers: int = 0,
    on_progress: Progress | None = None,
) -> Survey:
    """Read every image; sums are whole numbers, so the result does not depend on the number of workers.

    Args:
        photographs: The images.
        classes: Number of classes.
        view: How they are resized; the crop does not matter.
        workers: Processes that decode; 0 decodes in this one.
        on_progress: Called with the images done and their number.

    Raises:
        DataError: If no image can be read.
    """
    totals = _Totals(classes, view)
    loader = DataLoader(
        _Shares(photographs, classes, view),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
    )
    for share in loader:
        totals.add(share)
        if on_progress is not None:
            on_progress("survey", totals.seen, len(photographs.labels))
    return totals.survey()


def training_survey(
    data: PhotographSet,
    view: View,
    *,
    limit: int | None = None,
    workers: int = 0,
    anew: bool = False,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> Survey:
    """Survey the training images, or read from the cache what was found before.

    Args:
        data: The data set.
        view: How images are resized.
        limit: Survey the first so many training images only; None for all.
        workers: Processes that decode; 0 decodes in this one.
        anew: Look at all images again.
        cache: As for :func:`mpelu.data.load`.
        on_progress: Called with the images done and their number.

    Raises:
        UsageError: If there are fewer images than ``limit``.
        DataError: If no image can be read.
    """
    seen = f"survey-{view.resize}{view.size}" + ("" if limit is None else f"-first{limit}")
    place = (cache or stored.default_folder()) / f"{data.sha256}-{seen}-v1.safetensors"
    photographs = data.limited(limit).train
    found = None if anew else _read(place)
    if found is not None:
        return found
    with _one_at_a_time(place):
        found = None if anew else _read(place)  # of several processes that train, the first did it for all
        if found is None:
            found = survey_images(photographs, len(data.classes), view, workers=workers, on_progress=on_progress)
            _write(place, found)
    return found


@dataclass(frozen=True)
class _Share:
    """Sums over some images: whole numbers."""

    seen: int
    counts: Tensor
    pixels: int
    sums: Tensor
    squares: Tensor
    image_sum: Tensor | None
    damaged: tuple[tuple[int, str], ...]


class _Totals:
    """Adds images up, and adds up what others added up."""

    def __init__(self, classes: int, view: View) -> None:
        self.classes, self.view = classes, view
        self.clear()

    def clear(self) -> None:
        self.seen, self.pixels = 0, 0
        self.counts = torch.zeros(self.classes, dtype=torch.int64)
        self.sums, self.squares = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
        squash = self.view.resize == "squash"
        self.image_sum = torch.zeros(self.view.size, self.view.size, 3, dtype=torch.int64) if squash else None
        self.damaged: list[tuple[int, str]] = []

    def see(self, image: np.ndarray[Any, np.dtype[np.uint8]], label: int) -> None:
        flat = image.reshape(-1, 3)
        values = torch.arange(256)
        for channel in range(3):
            found = torch.from_numpy(np.bincount(flat[:, channel], minlength=256))
            self.sums[channel] += (found * values).sum()
            self.squares[channel] += (found * values**2).sum()
        self.pixels += len(flat)
        self.counts[label] += 1
        if self.image_sum is not None:
            self.image_sum.numpy()[...] += image

    def share(self) -> _Share:
        """Return the sums since the last call."""
        share = _Share(
            self.seen, self.counts, self.pixels, self.sums, self.squares, self.image_sum, tuple(self.damaged)
        )
        self.clear()
        return share

    def add(self, share: _Share) -> None:
        self.seen += share.seen
        self.pixels += share.pixels
        self.counts += share.counts
        self.sums += share.sums
        self.squares += share.squares
        if self.image_sum is not None and share.image_sum is not None:
            self.image_sum += share.image_sum
        self.damaged += share.damaged

    def survey(self) -> Survey:
        good = int(self.counts.sum())
        lines = tuple(line for _, line in sorted(self.damaged))
        if not good:
            raise DataError(f"no image can be read ({len(lines)} damaged: {'; '.join(lines[:3])}); get the data again")
        mean = self.sums.double() / self.pixels
        variance = (self.squares.double() / self.pixels - mean**2).clamp(min=0)
        image = None if self.image_sum is None else (self.image_sum.double() / good).float().permute(2, 0, 1)
        return Survey(
            counts=tuple(self.counts.tolist()),
            mean=tuple(mean.tolist()),
            std=tuple(variance.sqrt().tolist()),
            mean_image=None if image is None else image.contiguous(),
            damaged=lines,
        )


class _Shares(IterableDataset[_Share]):
    """In each worker: the sums over every so many images of its own blocks."""

    def __init__(self, photographs: Photographs, classes: int, view: View) -> None:
        self.photographs, self.classes, self.view = photographs, classes, view

    def __iter__(self) -> Iterator[_Share]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        totals = _Totals(self.classes, self.view)
        starts = self.photographs.starts.tolist()
        for block in range(worker, len(starts) - 1, workers):
            count = starts[block + 1] - starts[block]
            self._see(totals, range(starts[block], starts[block + 1]), self.photographs.read_block(block)[:count])
            if totals.seen >= TELL_EVERY:
                yield totals.share()
        yield totals.share()

    def _see(self, totals: _Totals, rows: range, encoded: Sequence[bytes | None]) -> None:
        for index, data in zip(rows, encoded, strict=True):
            totals.seen += 1
            try:
                label = require_label(int(self.photographs.labels[index]), self.classes)
                totals.see(whole(data, self.view), label)
            except DataError as error:
                totals.damaged.append((index, f"{self.photographs.where(index)}: {error}"))


def _as_it_is(share: Any) -> Any:
    return share


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1)


@contextmanager
def _one_at_a_time(place: Path) -> Iterator[None]:
    """Wait until no other process makes this file; where no lock can be had, go on without."""
    lock = filelock.FileLock(place.with_suffix(".lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> Survey | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = json.loads(file.metadata()["survey"])
            image = file.get_tensor("mean_image")
        return Survey(
            counts=tuple(text["counts"]),
            mean=tuple(text["mean"]),
            std=tuple(text["std"]),
            mean_image=image if image.numel() else None,
            damaged=tuple(text["damaged"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        warnings.warn(f"the cache file {path} is damaged: looking at all images anew", stacklevel=3)
        return None


def _write(path: Path, found: Survey) -> None:
    text = {"counts": found.counts, "mean": found.mean, "std": found.std, "damaged": found.damaged}
    image = torch.empty(0) if found.mean_image is None else found.mean_image
    stored.write_tensors(path, {"mean_image": image}, {"survey": json.dumps(text)})
