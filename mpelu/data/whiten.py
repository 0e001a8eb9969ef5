"""Global contrast normalization and ZCA whitening: the preparation of the images that NIN was trained on.

Source: the images are those of I. Goodfellow et al. (2013), Maxout Networks, arXiv:1302.4389, section 5.2, which Lin et
al. (2014), Network In Network, arXiv:1312.4400, took over. No paper gives the constants; ours are named below.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mpelu.data.dataset import Decoded, Split

SCALE = 55.0
"""Norm of an image after contrast normalization, as in the public preparation (pylearn2). An image of 3x32x32 then has
a standard deviation of 55 / sqrt(3072) = 0.99."""

FLOOR = 0.1
"""Smallest variance that is divided by. The public preparation adds 0.1 to every variance instead, which whitens no
direction fully; with a floor, those above it are whitened exactly and those far below it get the same factor."""

CHUNK = 1000

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many images of how many are done."""


@dataclass(frozen=True)
class Whitening:
    """A linear map that decorrelates pixels and changes images as little as it can (ZCA).

    Attributes:
        mean: Mean of the contrast-normalized training images, float64, shape ``(D,)`` with ``D = C * H * W``.
        matrix: The symmetric map, float64, shape ``(D, D)``.
        eigenvalues: Variances of the training images along their principal directions, rising, float64, shape ``(D,)``.
        directions: The principal directions, as columns in the order of ``eigenvalues``, float64, shape ``(D, D)``.
        floor: The smallest variance that was divided by.
    """

    mean: Tensor
    matrix: Tensor
    eigenvalues: Tensor
    directions: Tensor
    floor: float

    @property
    def kept(self) -> Tensor:
        """Return which directions are whitened fully, bool, shape ``(D,)``; the others keep a variance below 1."""
        return self.eigenvalues >= self.floor


def contrast_normalize(images: Tensor, *, scale: float = SCALE, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""Subtract from each image its mean over all pixels and channels, and give it the norm ``scale``.

    .. math:: y = s \, (x - \bar x) / \lVert x - \bar x \rVert

    Args:
        images: Shape ``(N, C, H, W)``, any dtype.
        scale: The norm ``s``.
        dtype: Floating dtype of the computation and of the result.

    Returns:
        Shape of ``images``; an image of one value becomes 0.

    Example:
        >>> contrast_normalize(torch.tensor([[[[1, 3]]]]), scale=2.0)
        tensor([[[[-1.4142,  1.4142]]]], dtype=torch.float64)
    """
    flat = images.flatten(1).to(dtype)
    flat = flat - flat.mean(1, keepdim=True)
    norms = flat.norm(dim=1, keepdim=True)
    return (flat * torch.where(norms > 0, scale / norms, 0.0)).view(images.shape)


def fit(images: Tensor, *, floor: float = FLOOR, on_progress: Progress | None = None) -> Whitening:
    r"""Find the whitening of a training set, in float64.

    With the covariance of the contrast-normalized images, :math:`C = U \operatorname{diag}(d) \, U^T`, the map is
    :math:`U \operatorname{diag}(\max(d, floor))^{-1/2} \, U^T`.

    Args:
        images: uint8, shape ``(N, C, H, W)``, at least one image.
        floor: The smallest variance that is divided by, above 0.
        on_progress: Told how many images the covariance has seen.
    """
    size = images[0].numel()
    total = torch.zeros(size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(images), CHUNK):
        rows = contrast_normalize(images[start : start + CHUNK]).flatten(1)
        total += rows.sum(0)
        products.addmm_(rows.T, rows)
        _tell(on_progress, "covariance", start + len(rows), len(images))
    mean = total / len(images)
    covariance = products.div_(len(images)).sub_(torch.outer(mean, mean))
    eigenvalues, directions = torch.linalg.eigh(covariance)
    matrix = (directions * eigenvalues.clamp(min=floor).rsqrt()) @ directions.T
    return Whitening(mean, matrix, eigenvalues, directions, floor)


def whiten(
    images: Tensor, whitening: Whitening, *, dtype: torch.dtype = torch.float16, on_progress: Progress | None = None
) -> Tensor:
    """Contrast-normalize and whiten images with the statistics of a training set.

    The products are computed in float32 and rounded once. In float16 a pixel is off by at most 1/2048 of itself, a
    tenth of what the rounding of the original pixels to whole values leaves in it.

    Args:
        images: uint8, shape ``(N, C, H, W)``.
        whitening: Of the training images.
        dtype: Floating dtype of the result.
        on_progress: Told how many images are done.

    Returns:
        Shape of ``images``.
    """
    matrix, mean = whitening.matrix.float(), whitening.mean.float()
    result = torch.empty(images.shape, dtype=dtype)
    for start in range(0, len(images), CHUNK):
        rows = contrast_normalize(images[start : start + CHUNK], dtype=torch.float32).flatten(1)
        result[start : start + len(rows)] = ((rows - mean) @ matrix).view(-1, *images.shape[1:])
        _tell(on_progress, "whitening", start + len(rows), len(images))
    return result


def gcn_zca(decoded: Decoded, *, on_progress: Progress | None = None) -> Decoded:
    """Return the data with whitened images, float16; the statistics come from the training images only."""
    whitening = fit(decoded.train.images, on_progress=on_progress)
    apply = partial(whiten, whitening=whitening, on_progress=on_progress)
    return replace(
        decoded,
        train=Split(apply(decoded.train.images), decoded.train.labels),
        test=Split(apply(decoded.test.images), decoded.test.labels),
    )


def _tell(on_progress: Progress | None, what: str, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(what, done, total)
