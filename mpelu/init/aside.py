"""Running a model on the side: with other parameters, and so that nothing about it changes."""

import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

CONTAINERS = (dict, OrderedDict, list, set, deque)
"""What modules may hold that a forward pass may write to, beside tensors."""


@contextmanager
def in_training(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode, as the network will be used, and every module back into its own.

    Modules that override ``train``, to stay in eval mode for instance, have their way.
    """
    with modes_kept(model):
        model.train()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def aside(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model have other parameters, in training mode; its buffers, modes and random numbers stay as they are.

    Autocast is off, and one thread computes: with another number the last bits differ, and the weights would with them.

    Args:
        model: Any module.
        parameters: For each of its parameters the values to compute with.
    """
    with ExitStack() as stack:
        for kind in {"cpu", *(parameter.device.type for parameter in parameters.values())}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(in_training(model))
        stack.enter_context(holding(model, parameters))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(own_randomness(parameters.values(), seed=0))
        stack.enter_context(_one_thread())
        yield


@contextmanager
def holding(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the modules hold other parameters, and copies of their other tensors, for a while; then put everything back.

    :func:`torch.func.functional_call` does the same for a call from outside, with parameters and buffers only.
    """
    by_id = {id(parameter): parameters[name] for name, parameter in model.named_parameters()}
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
def own_randomness(parameters: Iterable[Tensor], *, seed: int) -> Iterator[None]:
    """Draw from a fixed seed on the CPU and where the parameters are, and leave the caller's generators alone."""
    devices = sorted({parameter.device.index for parameter in parameters if parameter.is_cuda})
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: with another number the last bits differ, and the weights would with them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
