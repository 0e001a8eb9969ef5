"""A training step on the side: parameters with gradients of their own, and nothing about the model changes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from mpelu.init.aside import holding, in_training, modes_kept, own_randomness


@contextmanager
def untouched(model: nn.Module, *, training: bool, seed: int) -> Iterator[dict[str, Tensor]]:
    """Let a model hold, for a while, stand-ins of its parameters, and copies of its buffers.

    A stand-in shares the memory of its parameter, which is not copied. Gradients that are sent back reach the stand-ins
    only, so neither ``grad`` of a parameter nor the hooks on it, as DDP has them, notice. At the end attributes,
    buffers, modes and random states are what they were.

    Args:
        model: Any module that is not sharded.
        training: Whether it is put into training mode.
        seed: Of what is drawn within.

    Yields:
        The stand-ins by the names of the parameters.
    """
    stand_ins: dict[str, Tensor] = {
        name: nn.Parameter(own.detach(), requires_grad=own.requires_grad) for name, own in model.named_parameters()
    }
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(in_training(model) if training else modes_kept(model))
        stack.enter_context(holding(model, stand_ins))
        stack.enter_context(own_randomness(stand_ins.values(), seed=seed))
        for kind in {own.device.type for own in stand_ins.values()} | {"cpu"}:
            stack.enter_context(_uncached(kind))
        yield stand_ins


def _uncached(kind: str) -> torch.autocast | nullcontext[None]:
    """Keep the caller's autocast, without its cache: that would hold cast weights until the caller leaves it."""
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False)
