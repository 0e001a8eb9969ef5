"""What a network is given of images in memory: augmented in training, or as they are tested; centred and scaled."""

import torch
from torch import Tensor

from mpelu.data.augment import augment, evaluation_view, normalize
from mpelu.data.dataset import Dataset

WHOLE = slice(None)


def training_inputs(
    data: Dataset, images: Tensor, kind: str, *, generator: torch.Generator, part: slice = WHOLE
) -> Tensor:
    """Augment images, subtract what the data set subtracts, and divide by what it divides by.

    Padding is 0 in the result (to within half a pixel value where ``data.mean`` is subtracted). A mean image is
    subtracted before the crop, so that each pixel loses its own mean wherever it ends up: what is left is the image
    minus the window of the mean image under its crop.

    Args:
        data: Says what is subtracted, and what is divided by.
        images: Of it, shape ``(N, C, H, W)``.
        kind: A name in :data:`mpelu.data.AUGMENTATIONS`.
        generator: A generator on the CPU; it is used for all N images.
        part: Which of them are returned.

    Returns:
        float32, shape ``(n, C, h, w)`` with height and width of the crop.

    Raises:
        UsageError: As :func:`mpelu.data.augment`.
    """
    if data.mean_image is None:
        changed = augment(images, kind, mean=data.mean, generator=generator)
        return normalize(changed[part], data.mean, data.std)
    return augment(_centred(data, images), kind, mean=(0.0,) * images.shape[1], generator=generator)[part]


def evaluation_inputs(data: Dataset, images: Tensor, kind: str) -> Tensor:
    """Return what a network that was trained with an augmentation is tested on: the images or their centres.

    Args:
        data: What the network was trained on: says what is subtracted, and what is divided by.
        images: Of it or of another data set, shape ``(N, C, H, W)``.
        kind: A name in :data:`mpelu.data.AUGMENTATIONS`.

    Returns:
        float32, with the height and width that :func:`training_inputs` returns.

    Raises:
        UsageError: As :func:`mpelu.data.evaluation_view`.
    """
    if data.mean_image is None:
        return normalize(evaluation_view(images, kind), data.mean, data.std)
    return evaluation_view(_centred(data, images), kind)


def _centred(data: Dataset, images: Tensor) -> Tensor:
    assert data.mean_image is not None
    return normalize(images, data.mean_image, data.std)
