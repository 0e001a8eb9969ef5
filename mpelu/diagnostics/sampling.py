"""Which entries of a tensor are looked at, and what is worked out from them, without a copy of the tensor."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpelu.ops import cpu

ENTRIES = 2**12
"""Of a sample: one over its square root, 1.6 %, is about what a share or a correlation is good to."""
FEW = 2**11
"""Of a sample of which examples are only compared with each other."""
MOST_EXAMPLES = 16
ALONE = 64
"""Examples that are looked at where there are no positions."""
MANY = 2**17
LEAST = 4
"""Examples whose entries enter a mean at least, where torch takes it; more do up to about MANY entries. Second moments
and norms take all."""
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


def moments(values: Tensor, unit: int) -> tuple[float, float, float | None] | None:
    """Return mean square, mean and variance of the means of channels, of all entries; None where torch has to.

    Args:
        values: Shape ``(N, ...)``.
        unit: The dim of the channels; -1 for none, and then there is no variance.
    """
    if not (cpu.readable(values) and cpu.is_dense(values)):
        return None
    square, mean, variance = cpu.moments(values, unit)
    return square, mean, variance if unit >= 0 and values.shape[unit] > 1 else None


def norm_of(tensor: Tensor) -> float:
    """Return the Euclidean norm; half types are summed in float32."""
    if cpu.readable(tensor) and cpu.is_dense(tensor):
        return math.sqrt(cpu.moments(tensor)[0] * tensor.numel())
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
    return tensor[_places(tensor.shape, unit, entries)]


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


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Compute in the types that are given, on a kind of device."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def products(tensor: Tensor, unit: int, entries: int) -> Tensor:
    """Return the inner products of the examples of a sample, at most MOST_EXAMPLES; see :func:`sample`.

    Returns:
        Shape ``(n, n)``.
    """
    if cpu.readable(tensor):
        return cpu.products(tensor, *_layout(tensor.shape, tensor.stride(), unit, entries))
    some = sample(tensor, unit, entries)[:MOST_EXAMPLES]
    rows = (some if some.dtype in SINGLE else some.float()).flatten(1)
    with without_autocast(some.device.type):
        return rows @ rows.mT


@lru_cache(maxsize=4096)
def _layout(
    shape: tuple[int, ...], strides: tuple[int, ...], unit: int, entries: int
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return sizes and strides of a sample, as of its first MOST_EXAMPLES examples, and where it begins."""
    places = _places(shape, unit, entries)
    sizes = [len(range(size)[place]) for place, size in zip(places, shape, strict=True)]
    start = sum(place.start * stride for place, stride in zip(places, strides, strict=True))
    steps = tuple(place.step * stride for place, stride in zip(places, strides, strict=True))
    return (min(sizes[0], MOST_EXAMPLES), *sizes[1:]), steps, start


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
