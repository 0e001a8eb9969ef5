"""The one list of activations that laws are tested over: adding a case here adds its tests everywhere."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpelu.nn import MPELU


@dataclass(frozen=True)
class ActivationCase:
    """An activation as a module, as the plain formula it must equal, and by its name in the catalog of models."""

    name: str
    build: Callable[[int], nn.Module]
    """Called with the number of channels."""
    formula: Callable[[Tensor], Tensor]
    """Written with exp and where, apart from the code under test; exact enough in float64 for |x| > 1e-6."""
    slope: float
    """Derivative just below 0: alpha * beta for MPELU."""
    catalog: dict[str, Any]
    """The arguments of ``create_model`` that choose it."""
    linear: bool = field(kw_only=True)
    """True where both sides are straight lines: then Eq. 22 is exact."""

    def __repr__(self) -> str:
        return self.name


def plain_formula(x: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """Eq. 3 as it is printed: x where x > 0, else alpha * (exp(beta * x) - 1)."""
    return torch.where(x > 0, x, alpha * (torch.exp(beta * x) - 1))


def leaky(x: Tensor, slope: float) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def mpelu_case(alpha: float, beta: float) -> ActivationCase:
    return ActivationCase(
        f"mpelu({alpha:g},{beta:g})",
        lambda channels: MPELU(channels, alpha, beta),
        lambda x: plain_formula(x, alpha, beta),
        slope=alpha * beta,
        catalog={"activation": "mpelu", "alpha": alpha, "beta": beta},
        linear=alpha == 0,
    )


RELU = ActivationCase(
    "relu",
    lambda channels: nn.ReLU(),
    lambda x: torch.clamp(x, min=0),
    slope=0.0,
    catalog={"activation": "relu"},
    linear=True,
)
LRELU = ActivationCase(
    "lrelu(0.1)",
    lambda channels: nn.LeakyReLU(0.1),
    lambda x: leaky(x, 0.1),
    slope=0.1,
    catalog={"activation": "lrelu", "alpha": 0.1},
    linear=True,
)
PRELU = ActivationCase(
    "prelu(0.25)",
    lambda channels: nn.PReLU(channels, init=0.25),
    lambda x: leaky(x, 0.25),
    slope=0.25,
    catalog={"activation": "prelu", "alpha": 0.25},
    linear=True,
)
ELU = ActivationCase(
    "elu(1)",
    lambda channels: nn.ELU(1.0),
    lambda x: plain_formula(x, 1.0, 1.0),
    slope=1.0,
    catalog={"activation": "elu"},
    linear=False,
)
SHAPES = [(0.25, 1.0), (1.0, 1.0), (0.0, 1.0), (3.0, 1.0), (25.6302, 0.01), (98.0, 0.01), (-0.5, 2.0)]
"""(alpha, beta): the start values of the paper, those of its Fig. 1, and a negative alpha, which it allows."""

ACTIVATIONS = [RELU, LRELU, PRELU, ELU, *(mpelu_case(alpha, beta) for alpha, beta in SHAPES)]

over_activations = pytest.mark.parametrize("case", ACTIVATIONS, ids=lambda case: case.name)
over_shapes = pytest.mark.parametrize(("alpha", "beta"), SHAPES)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw from N(0, 1) without touching torch's default generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def off_the_kink(x: Tensor, distance: float = 0.1) -> Tensor:
    """Push every entry away from 0, where finite differences would straddle two branches."""
    return x + torch.where(x > 0, distance, -distance)


def parameters(channels: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return an alpha around 0.5 (some of them negative) and a beta in [0.5, 1.5], a value for each channel."""
    beta = torch.rand(channels, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) + 0.5
    return (0.5 + normal(channels, seed=seed)).to(dtype), beta.to(dtype)
