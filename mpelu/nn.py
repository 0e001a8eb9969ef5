"""Learnable activations as modules. Those that torch has (PReLU, RReLU) are not repeated."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpelu.errors import UsageError
from mpelu.functional import SAVE, mpelu


class MPELU(nn.Module):
    """Multiple parametric exponential linear unit with learnable alpha and beta. See :func:`mpelu.functional.mpelu`.

    Every experiment of the paper is channel-wise (``num_parameters`` = channels) and starts at alpha 0.25 or 1 and
    beta 1. Learning rate and weight decay of alpha and beta matter: see :func:`mpelu.optim.param_groups`.

    Args:
        num_parameters: Number of alphas and of betas: 1 (shared by all channels) or the size of dim 1 of the input.
        init_alpha: Start value of alpha.
        init_beta: Start value of beta, > 0.
        device: Where the parameters live.
        dtype: Floating dtype of the parameters.
        save: ``"input"``, or ``"output"`` to keep only the output for the backward pass; see there for the conditions.
        inplace: Write the output over the input; the same conditions.

    Shape:
        Input ``(N, C, *)``, any number of further dimensions; output the same.

    Attributes:
        alpha: Learnable, shape ``(num_parameters,)``.
        beta: Learnable, shape ``(num_parameters,)``.

    Raises:
        UsageError: If num_parameters < 1, init_beta <= 0 or save is neither.

    Example:
        >>> activation = MPELU(16)
        >>> activation(torch.zeros(8, 16, 32, 32)).shape
        torch.Size([8, 16, 32, 32])
    """

    __constants__ = ["num_parameters"]  # noqa: RUF012  # as torch.nn writes it

    def __init__(
        self,
        num_parameters: int = 1,
        init_alpha: float = 0.25,
        init_beta: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        save: Literal["input", "output"] = "input",
        inplace: bool = False,
    ) -> None:
        super().__init__()
        _check_count(num_parameters)
        if not init_beta > 0:
            raise UsageError(f"init_beta must be > 0 (Eq. 3 of the paper), got {init_beta}")
        if save not in SAVE:
            raise UsageError(f"save must be one of {', '.join(SAVE)}, got {save!r}")
        self.num_parameters = num_parameters
        self.init_alpha = init_alpha
        self.init_beta = init_beta
        self.save: Literal["input", "output"] = save
        self.inplace = inplace
        self.alpha = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha and beta back to their start values."""
        _fill(self, "alpha", self.init_alpha)
        _fill(self, "beta", self.init_beta)

    def forward(self, x: Tensor) -> Tensor:
        return mpelu(x, self.alpha, self.beta, save=self.save, inplace=self.inplace)

    def extra_repr(self) -> str:
        memory = f", save={self.save!r}" * (self.save != "input") + ", inplace=True" * self.inplace
        start = f"init_alpha={self.init_alpha}, init_beta={self.init_beta}"
        return f"num_parameters={self.num_parameters}, {start}{memory}"


class SPELU(nn.Module):
    """ELU with a learnable alpha: MPELU whose beta stays 1. See :func:`mpelu.functional.mpelu`.

    The authors' released code has it under this name.

    Args:
        num_parameters: Number of alphas: 1 (shared by all channels) or the size of dim 1 of the input.
        init_alpha: Start value of alpha.
        device: Where the parameter lives.
        dtype: Floating dtype of the parameter.

    Shape:
        Input ``(N, C, *)``, any number of further dimensions; output the same.

    Attributes:
        alpha: Learnable, shape ``(num_parameters,)``.

    Raises:
        UsageError: If num_parameters < 1.

    Example:
        >>> SPELU(init_alpha=2.0)(torch.tensor([[-1.0, 1.0]])).detach()
        tensor([[-1.2642,  1.0000]])
    """

    __constants__ = ["num_parameters"]  # noqa: RUF012  # as torch.nn writes it

    def __init__(
        self,
        num_parameters: int = 1,
        init_alpha: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_count(num_parameters)
        self.num_parameters = num_parameters
        self.init_alpha = init_alpha
        self.alpha = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha back to its start value."""
        _fill(self, "alpha", self.init_alpha)

    def forward(self, x: Tensor) -> Tensor:
        return mpelu(x, self.alpha, torch.ones_like(self.alpha, requires_grad=False))

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}, init_alpha={self.init_alpha}"


class SReLU(nn.Module):
    r"""S-shaped rectified linear unit with four learnable parameters for each channel.

    .. math:: f(x) = t^r + a^r (x - t^r) \text{ if } x \ge t^r, \quad t^l + a^l (x - t^l) \text{ if } x \le t^l,
        \quad x \text{ between}

    Source: Jin et al., arXiv:1512.07030. It is no special case of MPELU: both of its ends are straight lines. It is
    computed as x + (a_right - 1) max(x - t_right, 0) + (a_left - 1) min(x - t_left, 0), which stays continuous even
    where training moves t_left past t_right.

    Args:
        num_parameters: 1 (shared by all channels) or the size of dim 1 of the input.
        init_t_left: Start value of the left threshold.
        init_a_left: Start value of the left slope.
        init_t_right: Start value of the right threshold.
        init_a_right: Start value of the right slope.
        device: Where the parameters live.
        dtype: Floating dtype of the parameters.

    Shape:
        Input ``(N, C, *)``, any number of further dimensions; output the same.

    Raises:
        UsageError: If num_parameters < 1, or the left threshold is not below the right one.

    Example:
        >>> SReLU()(torch.tensor([[-2.0, 0.5, 3.0]]))
        tensor([[-0.4000,  0.5000,  3.0000]], grad_fn=<AddBackward0>)
    """

    __constants__ = ["num_parameters"]  # noqa: RUF012  # as torch.nn writes it

    def __init__(
        self,
        num_parameters: int = 1,
        init_t_left: float = 0.0,
        init_a_left: float = 0.2,
        init_t_right: float = 1.0,
        init_a_right: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_count(num_parameters)
        if not init_t_left < init_t_right:
            raise UsageError(f"init_t_left must be below init_t_right, got {init_t_left} and {init_t_right}")
        self.num_parameters = num_parameters
        self.start = {
            "t_left": init_t_left,
            "a_left": init_a_left,
            "t_right": init_t_right,
            "a_right": init_a_right,
        }
        for name in self.start:
            self.register_parameter(name, nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the four parameters back to their start values."""
        for name, value in self.start.items():
            _fill(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *([1] * (x.dim() - 2))) if self.num_parameters > 1 else (1,) * x.dim()
        t_left, a_left, t_right, a_right = (getattr(self, name).to(x.dtype).view(shape) for name in self.start)
        above, below = (x - t_right).clamp(min=0), (x - t_left).clamp(max=0)
        result: Tensor = x + (a_right - 1) * above + (a_left - 1) * below
        return result

    def extra_repr(self) -> str:
        return ", ".join((f"num_parameters={self.num_parameters}", *(f"{k}={v}" for k, v in self.start.items())))


def _fill(module: nn.Module, name: str, value: float) -> None:
    """Set every entry of a parameter; one that a parametrization computes, through its ``right_inverse``."""
    if parametrize.is_parametrized(module, name):
        with torch.no_grad():
            setattr(module, name, torch.full_like(getattr(module, name), value))
    else:
        nn.init.constant_(module.get_parameter(name), value)


def _check_count(num_parameters: int) -> None:
    if num_parameters < 1:
        raise UsageError(f"num_parameters must be 1 or the number of channels, got {num_parameters}")
