"""The definition of MPELU, forward and backward written out. Every backend is compared with this file.

Source: Li et al., arXiv:1606.00305, Eq. 3 (definition) and the partial derivatives that follow it.
The kink at 0 belongs to the negative branch, as in the released code (the test is ``x > 0``).
"""

from typing import Any

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for float64 input, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def along_channels(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter of shape ``()``, ``(1,)`` or ``(C,)`` so that it broadcasts over dim 1 of ``x``."""
    parameter = parameter.to(compute_dtype(x))
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape(1, -1, *([1] * (x.dim() - 2)))


def negative_part(x: Tensor) -> Tensor:
    """Return min(x, 0) in the compute dtype, finite even for x = -inf (NaN stays NaN).

    Without the clamp at 0, ``where`` would differentiate exp(large) in the branch it does not take: 0 * inf is NaN.
    Without the clamp from below, the term x * exp(beta * x) of grad_beta would be -inf * 0.
    """
    dtype = compute_dtype(x)
    return x.to(dtype).clamp(torch.finfo(dtype).min, 0.0)


def sum_to_parameter(terms: Tensor, parameter: Tensor) -> Tensor:
    """Sum over every position that used one entry of the parameter, space first and then the batch."""
    if parameter.numel() == 1:
        total = terms.sum()
    else:
        total = (terms.sum(tuple(range(2, terms.dim()))) if terms.dim() > 2 else terms).sum(0)
    return total.reshape(parameter.shape).to(parameter.dtype)


def forward(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return f(x) = x where x > 0, else alpha * (exp(beta * x) - 1), in the dtype of ``x``."""
    a, b = along_channels(alpha, x), along_channels(beta, x)
    return torch.where(x > 0, x, (a * torch.expm1(b * negative_part(x))).to(x.dtype))


def backward(
    grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor, wanted: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients for x, alpha and beta; each is None where ``wanted`` says so.

    On x <= 0 the three derivatives are alpha * beta * exp(beta x), exp(beta x) - 1 and alpha * x * exp(beta x).
    None of them divides by alpha, so alpha = 0 (ReLU) is an ordinary value.
    """
    a, b = along_channels(alpha, x), along_channels(beta, x)
    negative = negative_part(x)
    positive = x > 0
    slope = a * torch.exp(b * negative)
    grad_negative = grad.to(slope.dtype).masked_fill(positive, 0.0)
    grad_x = torch.where(positive, grad, (grad_negative * (b * slope)).to(grad.dtype)) if wanted[0] else None
    grad_alpha = sum_to_parameter(grad_negative * torch.expm1(b * negative), alpha) if wanted[1] else None
    grad_beta = sum_to_parameter(grad_negative * (negative * slope), beta) if wanted[2] else None
    return grad_x, grad_alpha, grad_beta


def backward_from_output(
    grad: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, wanted: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return what :func:`backward` returns, from the output alone; right only where alpha * beta > 0.

    There y < 0 exactly where x < 0, and exp(beta x) - 1 = y / alpha, exp(beta x) = 1 + y / alpha,
    x = log(1 + y / alpha) / beta. The clamp at -1 is for outputs that rounding put below -alpha.
    """
    a, b = along_channels(alpha, y), along_channels(beta, y)
    positive = y > 0
    expm1 = (y.to(a.dtype).masked_fill(positive, 0.0) / a).clamp(min=-1.0)
    grad_negative = grad.to(a.dtype).masked_fill(positive, 0.0)
    grad_exp = grad_negative * (1.0 + expm1)
    grad_x = torch.where(positive, grad, (grad_exp * (a * b)).to(grad.dtype)) if wanted[0] else None
    grad_alpha = sum_to_parameter(grad_negative * expm1, alpha) if wanted[1] else None
    grad_beta = None
    if wanted[2]:  # where exp(beta x) is 0, x is to be finite: the term is 0, and not 0 * inf
        x = (torch.log1p(expm1) / b).clamp(min=torch.finfo(a.dtype).min)
        grad_beta = sum_to_parameter((grad_exp * x) * a, beta)
    return grad_x, grad_alpha, grad_beta


class Traceable(torch.autograd.Function):
    """MPELU with the hand-written backward, in the form that torch.compile can trace (it refuses a custom jvp)."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return forward(x, alpha, beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, alpha, beta = ctx.saved_tensors
        return backward(grad, x, alpha, beta, ctx.needs_input_grad)


class Reference(Traceable):
    """Eager MPELU: as :class:`Traceable`, and also under vmap and forward-mode differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, alpha_tangent: Tensor | None, beta_tangent: Tensor | None) -> Tensor:
        x, alpha, beta = ctx.saved_tensors
        a, b = along_channels(alpha, x), along_channels(beta, x)
        negative = negative_part(x)
        slope = a * torch.exp(b * negative)
        tangent = torch.zeros_like(slope)
        if x_tangent is not None:
            tangent = tangent + torch.where(x > 0, 1.0, b * slope) * x_tangent
        if alpha_tangent is not None:  # both factors below are 0 where x > 0
            tangent = tangent + torch.expm1(b * negative) * along_channels(alpha_tangent, x)
        if beta_tangent is not None:
            tangent = tangent + negative * slope * along_channels(beta_tangent, x)
        return tangent.to(x.dtype)
