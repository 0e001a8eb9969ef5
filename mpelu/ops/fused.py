"""What the kernels of all devices share: the tensors they get, and how autograd sees them.

A kernel backend is a module with the functions of :class:`Backend`.
"""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from mpelu.ops import reference
from mpelu.ops.plain import torch_only_computes

Gradients = tuple[Tensor, Tensor, Tensor]


class Backend(Hashable, Protocol):
    """Kernels of one device, for plain tensors in its memory.

    x is dense and not empty; alpha and beta are contiguous, have one element or one for each channel, and the dtype of
    the arithmetic. grad may lie in memory as it likes, and so may what was saved: see :func:`alike`.
    """

    def supports(self, x: Tensor) -> bool:
        """Return whether there are kernels for a plain tensor like this one."""
        ...

    def forward(self, x: Tensor, alpha: Tensor, beta: Tensor, *, inplace: bool = False) -> Tensor:
        """Return y, with the strides of x; in the memory of x if so asked."""
        ...

    def backward(
        self, grad: Tensor, saved: Tensor, alpha: Tensor, beta: Tensor, *, from_output: bool = False
    ) -> Gradients | None:
        """Return the gradients for x, alpha and beta, with their strides and dtypes.

        Args:
            grad: Gradient for y.
            saved: x; or y, where alpha * beta > 0.
            alpha: As in the forward pass.
            beta: As in the forward pass.
            from_output: Whether y was saved.

        Returns:
            None if grad or what was saved is not plain.
        """
        ...


def apply(backend: Backend, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute MPELU of plain tensors. What a kernel could not read is converted first, differentiably."""
    return function(backend)(*readable(x, alpha, beta))


def readable(x: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors as a backend wants them, converted differentiably where they are not so already."""
    alpha, beta = readable_parameters(x, alpha, beta)
    return x if x.is_contiguous() else _dense(x), alpha, beta


def readable_parameters(x: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and beta as a backend wants them for this x."""
    dtype, channels = reference.compute_dtype(x), alpha.numel()
    if alpha.dtype is not dtype or beta.dtype is not dtype or beta.numel() != channels:
        channels = max(channels, beta.numel())
        alpha, beta = alpha.to(dtype).expand(channels), beta.to(dtype).expand(channels)
    return (
        alpha if alpha.is_contiguous() else alpha.contiguous(),
        beta if beta.is_contiguous() else beta.contiguous(),
    )


def channel_stride(x: Tensor, channels: int) -> int:
    """Return how many elements of x in a row have the same one of so many parameters.

    In a dense tensor, a stride is the size of what it steps over, whatever the order of the dimensions.
    """
    return x.stride(1) if channels > 1 else x.numel()


def _dense(x: Tensor) -> Tensor:
    """Return x if its elements lie without gap or overlap, whatever the order of its dimensions, else a copy."""
    if x.is_contiguous(memory_format=torch.channels_last):  # the usual case: sorting takes 2 us
        return x
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return x.clone()
            expected *= size
    return x


def alike(grad: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    """Return both dense and with the same strides."""
    if not saved.is_contiguous():  # a hook on saved tensors may have changed the layout
        saved = _dense(saved)
    elif grad.is_contiguous():
        return grad, saved
    return grad if grad.stride() == saved.stride() else torch.empty_like(saved).copy_(grad), saved


@cache
def function(backend: Backend) -> Callable[..., Tensor]:
    """Return MPELU by the kernels of a backend, of x, alpha and beta as they are described there.

    Each backend has an autograd function of its own: what passes through ``ctx`` takes time. So does a separate
    ``setup_context``, for which torch would bind the signature anew in each call (30 us).
    """

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
            ctx.save_for_backward(x, alpha, beta)
            return backend.forward(x, alpha, beta)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            x, alpha, beta = ctx.saved_tensors
            if not torch.is_grad_enabled() and torch_only_computes():
                gradients = backend.backward(grad, x, alpha, beta)
                if gradients is not None:
                    return gradients
            return reference.backward(grad, x, alpha, beta, wanted=ctx.needs_input_grad)

    # Function.apply would first unwrap what functorch left behind, which no plain tensor is
    compute: Callable[..., Tensor] = super(torch.autograd.Function, Fused).apply
    return compute
