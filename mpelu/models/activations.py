"""The activations that a network of the catalog can be built with: name to a factory that is given the channels."""

from collections.abc import Callable
from functools import partial

from torch import nn

from mpelu.errors import UsageError
from mpelu.nn import MPELU, SPELU, SReLU

ActivationFactory = Callable[[int], nn.Module]
"""Called with the number of channels, returns the module that follows them."""


def _relu(channels: int, alpha: float, beta: float) -> nn.Module:  # noqa: ARG001
    return nn.ReLU(inplace=True)


def _lrelu(channels: int, alpha: float, beta: float) -> nn.Module:  # noqa: ARG001
    return nn.LeakyReLU(alpha, inplace=True)


def _prelu(channels: int, alpha: float, beta: float) -> nn.Module:  # noqa: ARG001
    return nn.PReLU(channels, init=alpha)


def _elu(channels: int, alpha: float, beta: float) -> nn.Module:  # noqa: ARG001
    return nn.ELU(alpha)


def _mpelu(channels: int, alpha: float, beta: float) -> nn.Module:
    return MPELU(channels, alpha, beta)


def _spelu(channels: int, alpha: float, beta: float) -> nn.Module:  # noqa: ARG001
    return SPELU(channels, alpha)


def _srelu(channels: int, alpha: float, beta: float) -> nn.Module:  # noqa: ARG001
    return SReLU(channels, init_a_left=alpha)


BUILDERS = {
    "relu": _relu,
    "lrelu": _lrelu,
    "prelu": _prelu,
    "elu": _elu,
    "spelu": _spelu,
    "mpelu": _mpelu,
    "srelu": _srelu,
}
DEFAULT_ALPHA = {"lrelu": 0.1, "prelu": 0.25, "elu": 1.0, "spelu": 1.0, "mpelu": 0.25, "srelu": 0.2}
"""Slope of the leaky units (the paper's LReLU A; PReLU's usual start), alpha of the exponential ones."""


def activation_factory(name: str, alpha: float | None = None, beta: float | None = None) -> ActivationFactory:
    """Return the factory for an activation by name.

    Args:
        name: a key of :data:`BUILDERS`.
        alpha: Start value of alpha (mpelu, spelu), alpha (elu) or the slope (lrelu, prelu, srelu's left one); None is
            the usual value.
        beta: Start value of beta (mpelu only); None is 1.

    Raises:
        UsageError: If the name is unknown or the activation has no such parameter.
    """
    if name not in BUILDERS:
        raise UsageError(f"unknown activation {name!r}; known: {', '.join(BUILDERS)}")
    if alpha is not None and name not in DEFAULT_ALPHA:
        raise UsageError(f"activation {name!r} has no alpha, got alpha={alpha}; leave it out")
    if beta is not None and name != "mpelu":
        raise UsageError(f"activation {name!r} has no beta, got beta={beta}; leave it out")
    value = DEFAULT_ALPHA.get(name, 0.0) if alpha is None else alpha
    return partial(BUILDERS[name], alpha=value, beta=1.0 if beta is None else beta)
