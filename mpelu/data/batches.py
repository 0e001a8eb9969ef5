"""Stateless batches: which images a step sees, and how they are cropped, follow from the seed alone.

So a killed run continues bit for bit without any saved random state, and several processes see, step by step, the
same images as one.
"""

import hashlib

import torch
from torch import Tensor


def stream_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed for one purpose, e.g. ``("augment", step)``: 63 bits that depend on all parts."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))


def epoch_order(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of ``count`` images in an epoch, int64."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of steps; the last batch may be smaller."""
    return -(-count // batch_size)


def rank_slice(count: int, *, rank: int, processes: int) -> slice:
    """Return the part of a batch of ``count`` images that one of several processes works on."""
    return slice(count * rank // processes, count * (rank + 1) // processes)


def windowed_order(starts: Tensor, window: int, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return an order in which images that lie in one block are used soon after each other.

    The blocks are shuffled and taken ``window`` at a time; the images of such a window are shuffled together. So a
    reader holds few blocks, and still each step sees images of many.

    Args:
        starts: First image of each block, and the number of all images at the end, int64, shape ``(B + 1,)``.
        window: Blocks that are shuffled together.
        seed: Of the run.
        epoch: From 0.

    Returns:
        The order of the images, int64, shape ``(N,)``; and the window that each block belongs to, shape ``(B,)``.

    Example:
        >>> order, windows = windowed_order(torch.tensor([0, 2, 4, 6]), 1, seed=0, epoch=0)
        >>> [sorted(pair) for pair in order.view(3, 2).tolist()], windows.tolist()
        ([[4, 5], [0, 1], [2, 3]], [1, 2, 0])
    """
    draws = generator(seed, "order", epoch)
    firsts = starts.tolist()
    blocks = torch.randperm(len(starts) - 1, generator=draws)
    windows = torch.empty_like(blocks)
    rows = []
    for number, chosen in enumerate(torch.split(blocks, window)):
        windows[chosen] = number
        inside = torch.cat([torch.arange(firsts[block], firsts[block + 1]) for block in chosen.tolist()])
        rows.append(inside[torch.randperm(len(inside), generator=draws)])
    return torch.cat(rows), windows
