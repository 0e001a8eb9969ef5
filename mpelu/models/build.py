"""The network of a recipe: from the catalog, from a function of the user's, or from timm where that is installed."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mpelu.errors import UsageError
from mpelu.models.activations import activation_factory
from mpelu.models.catalog import FAMILIES, Costs, costs, create_model, parse_name
from mpelu.models.factory import load_factory

OWN = "own"
"""The family of networks that a function of the user's builds, ``module:function`` or ``file.py:function``."""
TIMM = "timm"
"""The family of networks that timm builds."""


def family_of(name: str) -> str:
    """Return the family of a network: one of the catalog, ``own`` for ``module:function``, or ``timm``.

    Raises:
        UsageError: If there is no such network.
    """
    if ":" in name:
        return OWN
    try:
        return parse_name(name)[0]
    except UsageError:
        if _is_of_timm(name):
            return TIMM
        raise


def takes_activation(name: str) -> bool:
    """True where the activation of a network is the recipe's choice."""
    family = family_of(name)
    return family in FAMILIES or (family == OWN and "activation" in _keywords(load_factory(name)))


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    input_size: int,
    activation: str = "mpelu",
    alpha: float | None = None,
    beta: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network by name, with the weights that it starts with by itself.

    A function of the user's is given those of ``num_classes``, ``in_channels``, ``input_size`` and ``activation`` (a
    callable of the number of channels) that it has parameters for, and all of ``options``.

    Args:
        name: As ``mpelu models`` lists them; ``module:function`` or ``file.py:function``; or a name that timm knows.
        num_classes: Size of the output.
        in_channels: Channels of the images.
        input_size: Height and width of the images in pixels.
        activation: As for :func:`mpelu.create_model`.
        alpha: Likewise.
        beta: Likewise.
        options: Further arguments of the family, of the function or of ``timm.create_model``.

    Raises:
        UsageError: If there is no such network, or it does not take an option.
    """
    family, wanted = family_of(name), dict(options or {})
    if family == TIMM:
        created: nn.Module = importlib.import_module("timm").create_model(
            name, num_classes=num_classes, in_chans=in_channels, **wanted
        )
        return created
    if family == OWN:
        factory = load_factory(name)
        given: dict[str, Any] = {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "input_size": input_size,
            "activation": activation_factory(activation, alpha, beta) if takes_activation(name) else None,
        }
        takes = _keywords(factory)
        unknown = sorted(set(wanted) - takes)
        if unknown:
            raise UsageError(
                f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(takes)) or 'none'}"
            )
        return factory(**{key: value for key, value in given.items() if key in takes} | wanted)
    decided = sorted(wanted.keys() & {"num_classes", "in_channels", "activation", "alpha", "beta"})
    if decided:
        raise UsageError(
            f"{', '.join(decided)} of {name} follow from the data and the recipe, and are no model_options"
        )
    if "input_size" in FAMILIES[family].options:
        wanted.setdefault("input_size", input_size)
    return create_model(name, num_classes, activation, alpha=alpha, beta=beta, in_channels=in_channels, **wanted)


def count_costs(name: str, *, in_channels: int, input_size: int, **arguments: Any) -> Costs:
    """Return what one image costs in a network that :func:`build_model` builds; no weight is allocated.

    Args:
        name: As for :func:`build_model`.
        in_channels: Likewise.
        input_size: Likewise.
        **arguments: Likewise.

    Raises:
        UsageError: As :func:`build_model`.

    Example:
        >>> count_costs("plain9", num_classes=10, in_channels=1, input_size=16).multiply_adds
        1132800
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(name, in_channels=in_channels, input_size=input_size, **arguments)
        return costs(model, torch.zeros(1, in_channels, input_size, input_size))


def _keywords(function: Callable[..., Any]) -> set[str]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in kinds}


def _is_of_timm(name: str) -> bool:
    if importlib.util.find_spec("timm") is None:
        return False
    return bool(importlib.import_module("timm").is_model(name))
