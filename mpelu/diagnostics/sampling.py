"""Which entries of a tensor are looked at, and what is worked out from them, without a copy of the tensor."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ENTRIES = 2**12
"""Of a sample: one over its square root, 1.6 %, is about what a share or a correlation is good to."""
FEW = 2**11
"""Of a sample of which examples are only compared with each other."""
MOST_EXAMPLES = 16
ALONE = 64
"""Examples that are looked at where there are no positions."""
MANY = 2**17
LEAST = 4
"""Examples whose entries enter a mean at least; more do up to about MANY entries. Second moments and norms take all."""
PIECE = 2**16
"""Entries that are copied at a time where all have to be looked at one by one."""
SINGLE = (torch.float32, torch.float64)

Index = tuple[slice, ...]
Products = NDArray[np.float64]
Numbers = NDArray[np.float64]


def channel_means(values: Tensor, unit: int) -> Tensor:
    """Return the mean of each channel; of tensors of more than MANY entries, over at least LEAST examples.

    Args:
        values: Shape ``(N, ...)``.
        unit: The dim of the channels; -1 for none, and then one mean is returned.
    """
    if values.numel() > MANY:
        values = values[:: max(1, min(values.numel() // MANY, len(values) // LEAST))]
    return values.mean(_others(values.dim(), unit)) if unit >= 0 else values.mean()[None]


def finite_moments(values: Tensor) -> tuple[float, float, float]:
    """Return mean and mean square of the finite entries, and the share of the others, piece by piece, in float64."""
    total = square = 0.0
    finite = 0
    for piece in pieces(values):
        kept = piece[piece.isfinite()].double()
        finite += kept.numel()
        total += kept.sum().item()
        square += kept.square().sum().item()
    count = max(1, finite)
    return total / count, square / count, 1 - finite / max(1, values.numel())


def pieces(tensor: Tensor) -> list[Tensor]:
    """Cut a tensor into views of at most PIECE entries; those of tensors of one shape hold the same entries."""
    if tensor.dim() == 0 or tensor.numel() <= PIECE:
        return [tensor]
    inner = tensor.numel() // len(tensor)
    if inner > PIECE:
        return [piece for row in tensor for piece in pieces(row)]
    return list(torch.split(tensor, max(1, PIECE // inner)))


def norm_of(tensor: Tensor) -> float:
    """Return the Euclidean norm; half types are summed in float32."""
    norm: float = torch.linalg.vector_norm(tensor if tensor.dtype in SINGLE else tensor.float()).item()
    return norm


def sample(tensor: Tensor, unit: int, entries: int = ENTRIES) -> Tensor:
    """Return some entries of a tensor as a small view of it, with the same dims.

    Examples are taken evenly, at most MOST_EXAMPLES, or ALONE where there are no positions, and every s-th position, to
    come down to the entries that are wanted. Channels are all there, up to that number; so a sample may be larger.

    Args:
        tensor: Shape ``(N, ...)``.
        unit: The dim of the channels, counted from the left; -1 for none.
        entries: About how many are wanted.
    """
    return tensor[_places(tuple(tensor.shape), unit, entries)]


@lru_cache(maxsize=4096)
def _places(shape: tuple[int, ...], unit: int, entries: int) -> Index:
    steps = [1] * len(shape)
    sizes = list(shape)

    def take(dim: int, step: int) -> None:
        steps[dim] = max(1, min(step, shape[dim]))
        sizes[dim] = len(range((steps[dim] - 1) // 2, shape[dim], steps[dim]))

    if len(shape) == 1:
        take(0, shape[0] // entries)
    if len(shape) > 1:
        if unit > 0 and shape[unit] > entries:
            take(unit, -(-shape[unit] // entries))
        positions = _others(len(shape), unit)[1:]
        take(0, -(-shape[0] // (MOST_EXAMPLES if positions else ALONE)))
        for dim in positions:  # the last one last: entries that lie side by side are copied fast
            take(dim, math.ceil(math.prod(sizes) / entries))
    return tuple(slice((step - 1) // 2, None, step) for step in steps)


def _others(dims: int, unit: int) -> list[int]:
    return [dim for dim in range(dims) if dim != unit]


def products(some: Tensor) -> Products:
    """Return the inner products of the examples of samples, at most MOST_EXAMPLES of each.

    Args:
        some: Samples of one shape, shape ``(k, n, ...)``.

    Returns:
        Shape ``(k, n, n)``.
    """
    rows = some[:, :MOST_EXAMPLES].flatten(2)
    rows = rows if rows.dtype in SINGLE else rows.float()
    found: Products = (rows @ rows.mT).cpu().double().numpy()
    return found


def likeness(inner: Products) -> Numbers:
    """Return the mean cosine of pairs of different examples, and its root mean square.

    Args:
        inner: Inner products of the examples, shape ``(k, n, n)``, float64, positive on the diagonal.

    Returns:
        Shape ``(k, 2)``.
    """
    count = inner.shape[1]
    sizes = np.sqrt(np.diagonal(inner, axis1=1, axis2=2))
    cosines = (inner / (sizes[:, :, None] * sizes[:, None, :])).reshape(len(inner), -1)
    squares = np.einsum("kp,kp->k", cosines, cosines)
    both = (np.stack([cosines.sum(1), squares], 1) - count) / (count * (count - 1))
    both[:, 1] = np.sqrt(both[:, 1].clip(min=0.0))
    limited: Numbers = np.clip(both, -1.0, 1.0)
    return limited


def signal_to_noise(inner: Products) -> Numbers:
    r"""Return how the mean over examples compares with what varies between them.

    .. math:: |\bar g|^2 \Big/ \frac{1}{n - 1} \sum_i |g_i - \bar g|^2

    Of n independent examples with mean 0 it is about 1 / n. Infinity where all are the same.

    Args:
        inner: As for :func:`likeness`.

    Returns:
        Shape ``(k, 1)``.
    """
    count = inner.shape[1]
    squares, together = np.trace(inner, axis1=1, axis2=2), inner.sum((1, 2)).clip(min=0.0)
    noise = (squares - together / count) / (count - 1)
    varies = noise > 1e-7 * squares
    found: Numbers = np.where(varies, together / count**2 / np.where(varies, noise, 1.0), math.inf)
    return found[:, None]


def of_pairs(function: Callable[[Products], Numbers], inner: Products) -> list[list[float] | None]:
    """Apply one of the two functions above; examples that are all 0 or not finite are left out."""
    squares = np.diagonal(inner, axis1=1, axis2=2)
    usable = (squares > 0) & (squares < math.inf)  # False for NaN
    if usable.all():
        return list(function(inner).tolist())
    kept = [own[np.ix_(mask, mask)] for own, mask in zip(inner, usable, strict=True)]
    return [function(own[None])[0].tolist() if len(own) > 1 else None for own in kept]
