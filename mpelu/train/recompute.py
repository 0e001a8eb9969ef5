"""Less memory for more time: activations are kept at a few places only, and computed again in the backward pass."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mpelu.errors import UsageError


def checkpoint_activations(net: nn.Module, segments: int | None = None) -> None:
    """Let the training passes of a network keep activations between ``segments`` of its children only, in place.

    A network of n children then holds what ``segments`` boundaries and the n / ``segments`` children of one segment
    need. Outputs, gradients and running statistics are the same bits: :func:`torch.utils.checkpoint.checkpoint` draws
    dropout again as it was, and batch normalization counts a batch once. Names in the state dict stay as they are.

    Args:
        net: An ``nn.Sequential``, as all networks of the catalog are.
        segments: Number of segments; None is the square root of the number of children.

    Raises:
        UsageError: If the network is no ``nn.Sequential``, or has fewer children than segments.

    Example:
        >>> import torch
        >>> net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9)))
        >>> checkpoint_activations(net)
        >>> net(torch.ones(2, 4)).sum().backward()
    """
    if not isinstance(net, nn.Sequential):
        raise UsageError(
            f"activations can be computed again for networks that are an nn.Sequential, got {type(net).__name__}; "
            f"use torch.utils.checkpoint inside of it"
        )
    count = max(1, round(math.sqrt(len(net)))) if segments is None else segments
    if not 1 <= count <= max(1, len(net)):
        raise UsageError(f"segments must be from 1 to the {len(net)} children of the network, got {segments}")
    net.forward = partial(_in_segments, net, -(-len(net) // count))  # type: ignore[method-assign]


def _in_segments(net: nn.Sequential, size: int, x: Tensor) -> Tensor:
    children = list(net)
    for start in range(0, len(children), size):
        segment = children[start : start + size]
        if net.training:
            x = checkpoint(
                _through,
                segment,
                x,
                use_reentrant=False,
                context_fn=partial(_contexts, segment),
                preserve_rng_state=True,
            )
        else:
            x = _through(segment, x)
    return x


def _through(segment: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in segment:
        x = module(x)
    return x


def _contexts(segment: Sequence[nn.Module]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second forward pass."""
    return nullcontext(), _without_statistics(segment)


@contextmanager
def _without_statistics(segment: Sequence[nn.Module]) -> Iterator[None]:
    """Let batch normalization count the batch in copies of its statistics."""
    norms = [
        module
        for child in segment
        for module in child.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
    ]
    before = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, before, strict=True):
        norm._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            norm._buffers.update(buffers)
