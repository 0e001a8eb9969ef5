"""MPELU that keeps its output for the backward pass, and not its input.

The layer behind an activation keeps that output anyway, so the activation then costs no memory of its own. The price:
where the negative side has saturated, y is -alpha to within rounding, and the gradient there has an absolute error of
that rounding (of alpha * beta * grad) instead of a relative one. In bfloat16 nothing of the gradient of beta is left
beyond beta * x = -6.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.ops import fused, reference
from mpelu.ops.plain import torch_only_computes


def apply(backend: fused.Backend | None, x: Tensor, alpha: Tensor, beta: Tensor, *, inplace: bool) -> Tensor:
    """Compute MPELU of plain tensors, with a backend's forward kernel if there is one.

    Raises:
        UsageError: If alpha * beta is not > 0 in every channel, or x cannot be written over.
    """
    refuse_lost_inputs(alpha, beta)
    if inplace:
        _refuse_shared_memory(x)
    if backend is not None:
        readable, alpha, beta = fused.readable(x, alpha, beta)
        if readable is x or not inplace:
            x = readable
        else:  # x has gaps: a kernel could write over a copy of it only
            backend = None
    return _from_output(backend, x, alpha, beta, inplace)


def refuse_lost_inputs(alpha: Tensor, beta: Tensor) -> None:
    """Raise if some output does not tell its input; the values are read, so on a GPU this waits for the device."""
    product = alpha.detach() * beta.detach()
    if product.min().item() > 0:
        return
    product = product.reshape(-1)
    lost = (~(product > 0)).nonzero().flatten().tolist()
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UsageError(
            f"save='output' and inplace=True need alpha * beta > 0 in every channel, or the output does not tell the "
            f"input; channel {lost[0]}{more} has alpha * beta = {product[lost[0]].item():.4g}; use save='input'"
        )


def _refuse_shared_memory(x: Tensor) -> None:
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return
    if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
        raise UsageError(
            f"inplace=True cannot write over an expanded tensor (shape {tuple(x.shape)}, strides {x.stride()}); "
            f"use inplace=False or x.contiguous()"
        )


class FromOutput(torch.autograd.Function):
    """MPELU whose backward works on y. It cannot be differentiated twice."""

    @staticmethod
    def forward(
        ctx: Any, backend: fused.Backend | None, x: Tensor, alpha: Tensor, beta: Tensor, inplace: bool
    ) -> Tensor:
        if backend is not None:
            y = backend.forward(x, alpha, beta, inplace=inplace)
        else:
            y = reference.forward(x, alpha, beta)
            y = x.copy_(y) if inplace else y
        if inplace:
            ctx.mark_dirty(x)
        ctx.backend = backend
        ctx.save_for_backward(y, alpha, beta)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise UsageError(
                "MPELU with save='output' or inplace=True cannot be differentiated twice; use save='input' where "
                "create_graph=True"
            )
        y, alpha, beta = ctx.saved_tensors
        if ctx.backend is not None and torch_only_computes():
            gradients = ctx.backend.backward(grad, y, alpha, beta, from_output=True)
            if gradients is not None:
                return None, *gradients, None
        return None, *reference.backward_from_output(grad, y, alpha, beta, ctx.needs_input_grad[1:4]), None


_from_output: Callable[..., Tensor] = super(torch.autograd.Function, FromOutput).apply  # as in mpelu.ops.fused
