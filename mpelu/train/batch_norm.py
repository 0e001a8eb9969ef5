"""Batch normalization over the images of all processes, on any device; torch's ``SyncBatchNorm`` runs on GPUs only."""

from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize_batch_norm(net: nn.Module) -> None:
    """Let the batch normalizations of a network see, in training, the images of all processes, in place.

    Each then computes what one process would that has all images, with float32 sums in another order. It costs two
    exchanges of numbers between the processes in a forward pass, and two in a backward pass. Modules, names in the
    state dict and evaluation stay as they are.

    Args:
        net: The network; the processes have joined the default group of ``torch.distributed``.
    """
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_over_processes, module)  # type: ignore[method-assign]


def _over_processes(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    dims, shape = [dim for dim in range(x.dim()) if dim != 1], (1, -1, *([1] * (x.dim() - 2)))
    sums = _sum_over_processes(torch.cat((wide.sum(dims), wide.new_tensor([x.numel() / x.shape[1]]))))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centered = wide - mean.view(shape)
    variance = _sum_over_processes(centered.square().sum(dims)) / count
    _track(norm, mean.detach(), variance.detach() * (count / (count - 1)))
    y = centered * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as torch does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    weight = norm.momentum if norm.momentum is not None else 1.0 / norm.num_batches_tracked.item()
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), weight)


def _sum_over_processes(tensor: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


class _Sum(torch.autograd.Function):
    """The sum over processes. Each has a part of the loss, so that their gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        return _Sum.summed(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return _Sum.summed(gradient)

    @staticmethod
    def summed(tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total
