"""A training step on the side: parameters with gradients of their own, and nothing about the model changes."""

import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from mpelu.init.aside import in_training

CONTAINERS = (dict, OrderedDict, list, set, deque)
"""What modules may hold that a forward pass may write to, beside tensors."""


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
        stack.enter_context(in_training(model) if training else _modes_kept(model))
        stack.enter_context(_held(model, stand_ins))
        stack.enter_context(_own_randomness(model, seed))
        for kind in {own.device.type for own in stand_ins.values()} | {"cpu"}:
            stack.enter_context(_uncached(kind))
        yield stand_ins


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _held(model: nn.Module, stand_ins: dict[str, Tensor]) -> Iterator[None]:
    """Let the modules hold stand-ins, and copies of their other tensors; then put everything back."""
    by_id = {id(own): stand_ins[name] for name, own in model.named_parameters()}
    scripted = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
    fixed = [(buffer, buffer.clone()) for module in scripted for buffer in module.buffers(recurse=False)]
    saved = [(vars(module), dict(vars(module))) for module in model.modules() if module not in scripted]
    held = [item for _, before in saved for item in before.values() if type(item) in CONTAINERS]
    contents = [(item, item.copy()) for item in held]
    try:
        for attributes, before in saved:
            attributes.update({name: item.clone() for name, item in before.items() if isinstance(item, Tensor)})
            own, buffers = attributes["_parameters"], attributes["_buffers"]
            own.update({name: item if item is None else by_id[id(item)] for name, item in own.items()})
            buffers.update({name: item if item is None else item.clone() for name, item in buffers.items()})
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)
        for item, content in contents:
            item.clear()
            (item.extend if isinstance(item, list | deque) else item.update)(content)
        for buffer, value in fixed:
            buffer.copy_(value)


@contextmanager
def _own_randomness(model: nn.Module, seed: int) -> Iterator[None]:
    """Draw from a fixed seed, and leave the caller's generators alone."""
    devices = sorted({own.device.index for own in model.parameters() if own.is_cuda})
    state = random.getstate()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for index in devices:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def _uncached(kind: str) -> torch.autocast | nullcontext[None]:
    """Keep the caller's autocast, without its cache: that would hold cast weights until the caller leaves it."""
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False)
