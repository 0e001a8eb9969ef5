"""MPELU under torch.compile on a CPU.

The forward pass is traced, so that inductor fuses it with its neighbours. The backward pass is the fused kernel, behind
an operator: inductor adds up the gradients of alpha and beta in further passes over memory, which costs more than what
it saves by fusing. Times are in docs/kernels.md.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpelu.ops import cpu, fused, reference


def _backward(grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor) -> fused.Gradients:
    """Return the gradients for x, alpha and beta. The last two are as :class:`mpelu.ops.fused.Backend` has them."""
    gradients = cpu.backward(grad, x, alpha, beta) if cpu.supports(x) else None
    if gradients is not None:
        return gradients
    grad_x, grad_alpha, grad_beta = reference.backward(grad, x, alpha, beta)
    assert grad_x is not None
    assert grad_alpha is not None
    assert grad_beta is not None
    return grad_x, grad_alpha, grad_beta


def _shapes(grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor) -> fused.Gradients:  # noqa: ARG001
    return torch.empty_like(x), torch.empty_like(alpha), torch.empty_like(beta)


torch.library.define(
    "mpelu::backward",
    "(Tensor grad, Tensor x, Tensor alpha, Tensor beta) -> (Tensor, Tensor, Tensor)",
    # inductor computes convolutions in channels last, whatever the model says, and need not convert back for us
    tags=(torch.Tag.flexible_layout,),
)
torch.library.impl("mpelu::backward", "cpu", _backward)
torch.library.register_fake("mpelu::backward", _shapes)


def supports(x: Tensor) -> bool:
    """Return whether :func:`apply` is for this tensor: subclasses may know the operators of torch only."""
    return x.is_cpu and type(x) in (Tensor, torch.nn.Parameter)


def apply(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute MPELU in a form for torch.compile. It is the reference, but for NaN at x = -inf where beta is 0."""
    result: Tensor = Compiled.apply(x, *fused.readable_parameters(x, alpha, beta))  # type: ignore[no-untyped-call]
    return result


class Compiled(torch.autograd.Function):
    """MPELU with a traced forward pass and an operator for the backward pass."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        a, b = reference.along_channels(alpha, x), reference.along_channels(beta, x)
        wide = x.to(reference.compute_dtype(x))
        # inductor's code for the clamp and the where of the reference takes 1.7 times as long: it turns comparisons
        # into vectors, an instruction that on Sapphire Rapids waits for the iteration before. relu is a maximum only
        return (F.relu(wide) + a * torch.expm1(-b * F.relu(-wide))).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> fused.Gradients:
        gradients: fused.Gradients = torch.ops.mpelu.backward(grad, *ctx.saved_tensors)
        return gradients
