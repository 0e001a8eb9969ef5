"""Functional form of the activation: arguments are checked here, once, and passed to the op."""

from typing import Literal

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from mpelu.errors import UsageError
from mpelu.ops import dispatch, reference

SAVE = ("input", "output")


def mpelu(
    x: Tensor,
    alpha: Tensor | float,
    beta: Tensor | float,
    *,
    save: Literal["input", "output"] = "input",
    inplace: bool = False,
) -> Tensor:
    r"""Apply the multiple parametric exponential linear unit, channel by channel.

    .. math:: f(x) = x \text{ if } x > 0, \text{ else } \alpha_c \, (e^{\beta_c x} - 1)

    Source: Li et al. (2018), Neurocomputing 301, arXiv:1606.00305, Eq. 3. With alpha = 0 it is ReLU, with
    alpha = beta = 1 it is ELU, and with small beta it comes near a PReLU of slope alpha * beta. It is differentiable
    at 0 only where alpha * beta = 1; at exactly 0 the derivative of the negative side is taken.

    The arithmetic is float32 (float64 for float64 input); half types are rounded once, at the end.

    Args:
        x: Pre-activations, shape ``(N, C, *)`` for per-channel parameters and any shape for shared ones, any
            floating dtype and memory format.
        alpha: Scale of the negative side, shape ``(C,)``, ``(1,)`` or ``()``, or a number; for beta > 0, f tends to
            -alpha.
        beta: Rate of the negative side, per unit of x, shape as for alpha. The paper wants beta > 0; here it is not
            checked (that would wait for the device), see :func:`mpelu.optim.keep_beta_positive`.
        save: What autograd keeps for the backward pass. ``"output"`` costs no memory where the next layer keeps its
            input, as convolutions do. It needs alpha * beta > 0 in every channel (checked: on a GPU that waits for the
            device), cannot be differentiated twice, and loses accuracy where the negative side has saturated: the
            gradient's error there is that of rounding alpha in the dtype of x. torch.compile decides by itself what is
            kept, and so ignores it.
        inplace: Write the output over x; the same conditions as ``save="output"``.

    Returns:
        Shape, dtype and memory format of ``x``.

    Raises:
        UsageError: If x is not floating, alpha or beta has another shape than those above, or ``save`` or ``inplace``
            asks for what these alpha and beta do not allow; names the channel.

    Example:
        >>> mpelu(torch.tensor([[-1.0, 2.0]]), torch.tensor(1.0), torch.tensor(1.0))
        tensor([[-0.6321,  2.0000]])
    """
    if has_torch_function_variadic(x, alpha, beta):  # a proxy of torch.fx becomes one call of this function
        overridden: Tensor = handle_torch_function(mpelu, (x, alpha, beta), x, alpha, beta, save=save, inplace=inplace)
        return overridden
    if save == "input" and not inplace:
        y = dispatch.at_once(x, alpha, beta)
        if y is not None:
            return y
    if not x.is_floating_point():
        cure = "put DeQuantStub before MPELU and QuantStub behind it" if x.is_quantized else "convert it with x.float()"
        raise UsageError(f"x must have a floating dtype, got {x.dtype}; {cure}")
    channels = x.shape[1:2]
    if not (isinstance(alpha, Tensor) and alpha.shape == channels):
        alpha = _parameter("alpha", alpha, x)
    if not (isinstance(beta, Tensor) and beta.shape == channels):
        beta = _parameter("beta", beta, x)
    if save == "input" and not inplace:
        return dispatch.apply(x, alpha, beta)
    if save not in SAVE:
        raise UsageError(f"save must be one of {', '.join(SAVE)}, got {save!r}")
    return dispatch.apply_keeping_output(x, alpha, beta, inplace=inplace)


def _parameter(name: str, parameter: Tensor | float, x: Tensor) -> Tensor:
    if not isinstance(parameter, Tensor):
        return torch.tensor(parameter, dtype=reference.compute_dtype(x), device=x.device)
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter
    channels = x.shape[1] if x.dim() >= 2 else None
    if parameter.shape != (channels,):
        wanted = f"() or ({channels},) to match the channels" if channels else "() because there is no channel dim"
        raise UsageError(
            f"{name} must have shape {wanted} of x with shape {tuple(x.shape)}, got {tuple(parameter.shape)}"
        )
    return parameter
