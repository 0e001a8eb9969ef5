"""What a data set is: in memory (:class:`Dataset`), just decoded (:class:`Decoded`) and on disk (:class:`Source`)."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mpelu.errors import DataError, UsageError


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: Pixels 0 to 255, uint8, shape ``(N, C, H, W)``; floating after a preprocessing such as whitening.
        labels: Class numbers from 0, int64, shape ``(N,)``.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """A data set that is ready for training.

    Attributes:
        name: What results must call it; lossy copies of CIFAR carry their quality, as in ``cifar10-jpeg75``.
        classes: Name of each class; the label is the index.
        train: Training images.
        test: Test images.
        mean: What :func:`mpelu.data.normalize` subtracts: the mean of each channel over all training images, on the
            scale 0 to 1; 0 after a preprocessing.
        std: What it divides by: the standard deviation (of the population) of each channel over all training images,
            on the same scale; 1 after a preprocessing.
        sha256: Identifies the content: a digest of the digests of the files that it was read from.
        preprocess: What was done to the images: ``none``, or a name in :data:`mpelu.data.PREPROCESSINGS`.
        mean_image: Subtracted in the place of ``mean`` where there is one: float32, shape ``(C, H, W)``, on the same
            scale. See :meth:`centered`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    preprocess: str = "none"
    mean_image: Tensor | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Dataset":
        """Return the same data on a device."""
        train, test = (Split(part.images.to(device), part.labels.to(device)) for part in (self.train, self.test))
        image = None if self.mean_image is None else self.mean_image.to(device)
        return replace(self, train=train, test=test, mean_image=image)

    def centered(
        self, center: Literal["channel", "image", "none"] = "channel", pixel_scale: Literal["std", "raw"] = "std"
    ) -> "Dataset":
        """Choose what :func:`mpelu.data.training_inputs` subtracts from the images, and what it divides them by.

        Args:
            center: The mean of each ``channel``, as the data set was loaded; the mean ``image`` of its training images,
                pixel by pixel; or ``none``.
            pixel_scale: ``std`` divides by the standard deviation of each channel; ``raw`` leaves the scale 0 to 255
                (to within the rounding of float32).

        Raises:
            UsageError: If the images were preprocessed, which centred and scaled them.
        """
        require_choice(self.preprocess, center, pixel_scale)
        changed = self
        if center == "image":
            changed = replace(changed, mean_image=mean_image(self.train.images))
        elif center == "none":
            changed = replace(changed, mean=(0.0,) * len(self.mean))
        return replace(changed, std=(1 / 255,) * len(self.std)) if pixel_scale == "raw" else changed

    def limited(self, count: int | None) -> "Dataset":
        """Keep the first ``count`` training images (None: all); test, mean and std stay those of the full set.

        Raises:
            UsageError: If there are fewer images, or count is below 1.
        """
        if count is None:
            return self
        require_count(count, len(self.train.labels), self.name)
        return replace(self, train=Split(self.train.images[:count], self.train.labels[:count]))


@dataclass(frozen=True)
class Decoded:
    """What a reader got out of the files.

    Attributes:
        classes: Name of each class.
        train: Training images that could be read.
        test: Test images that could be read, with the channels, height and width of the training images.
        encoding: ``""`` for lossless images, otherwise what took something away: ``jpeg75``, ``jpeg``, ``lossy``.
        damaged: One line for each file or row that could not be read: where it is and what is wrong.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    encoding: str = ""
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set on disk: recognized, not read yet.

    Attributes:
        name: Its name, if the class names do not tell a better one.
        files: Every file that the content depends on, by the part it plays (``train``, ``test``, ...), in order.
        decode: Reads the files.
    """

    name: str
    files: Mapping[str, tuple[Path, ...]]
    decode: Callable[[], Decoded]

    def sha256(self) -> str:
        """Hash every file, then the hashes: the same content has the same digest wherever it lies."""
        try:
            lines = [
                f"{part} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
                for part, paths in sorted(self.files.items())
                for path in paths
            ]
        except OSError as error:
            raise DataError(
                f"cannot read {error.filename} ({error.strerror}); mend the file or its permissions"
            ) from error
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_choice(preprocess: str, center: str, pixel_scale: str) -> None:
    """Raise a UsageError where images that were preprocessed, and so centred and scaled, are to be so otherwise."""
    if preprocess != "none" and (center == "image" or pixel_scale == "raw"):
        given = "center image" if center == "image" else "pixel_scale raw"
        raise UsageError(f"preprocess {preprocess} centres and scales the images itself: leave out {given}")


def require_count(count: int, available: int, name: str) -> None:
    """Raise a UsageError unless a data set has ``count`` training images."""
    if not 1 <= count <= available:
        raise UsageError(
            f"the number of training images must be from 1 to {available} for {name}, got {count}; "
            "leave it out for all of them"
        )


def mean_image(images: Tensor) -> Tensor:
    """Return the mean of all images, float32, shape ``(C, H, W)``, on the scale 0 to 1; sums are whole numbers.

    Args:
        images: uint8, shape ``(N, C, H, W)``, at least one image.
    """
    return (images.sum(0, dtype=torch.int64).double() / (255 * len(images))).float()


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation (of the population) of each channel, on the scale 0 to 1.

    The pixels are counted by value, so the sums are exact integers and do not depend on an order of summation.

    Args:
        images: uint8, shape ``(N, C, H, W)``, at least one image.
    """
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), 1000):  # bincount widens its input to int64: 1,000 images keep that small
        for channel, pixels in enumerate(images[start : start + 1000].unbind(1)):
            counts[channel] += np.bincount(pixels.numpy().reshape(-1), minlength=256)
    values = np.arange(256)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = counts @ values**2 / total - mean**2
    return tuple((mean / 255).tolist()), tuple((np.sqrt(np.maximum(variance, 0.0)) / 255).tolist())
