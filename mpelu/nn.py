"""Learnable activations as modules."""

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.functional import mpelu


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

    Shape:
        Input ``(N, C, *)``, any number of further dimensions; output the same.

    Attributes:
        alpha: Learnable, shape ``(num_parameters,)``.
        beta: Learnable, shape ``(num_parameters,)``.

    Raises:
        UsageError: If num_parameters < 1 or init_beta <= 0.

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
    ) -> None:
        super().__init__()
        if num_parameters < 1:
            raise UsageError(f"num_parameters must be 1 or the number of channels, got {num_parameters}")
        if not init_beta > 0:
            raise UsageError(f"init_beta must be > 0 (Eq. 3 of the paper), got {init_beta}")
        self.num_parameters = num_parameters
        self.init_alpha = init_alpha
        self.init_beta = init_beta
        self.alpha = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha and beta back to their start values."""
        nn.init.constant_(self.alpha, self.init_alpha)
        nn.init.constant_(self.beta, self.init_beta)

    def forward(self, x: Tensor) -> Tensor:
        return mpelu(x, self.alpha, self.beta)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}, init_alpha={self.init_alpha}, init_beta={self.init_beta}"
