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
