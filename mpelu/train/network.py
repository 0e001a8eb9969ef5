"""From a recipe to an initialized network."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from mpelu.data.batches import stream_seed
from mpelu.errors import UsageError
from mpelu.graph import read
from mpelu.init import InitPlan, PlanRow, apply, plan, tailor
from mpelu.init.fill import factoring_once
from mpelu.models import OWN, build_model, family_of, source_sha256
from mpelu.optim import keep_beta_positive, param_groups
from mpelu.train.recipe import Recipe, recipe_hash
from mpelu.train.supply import Data, first_batch

AS_BUILT = "as built"
"""Activation of a recipe whose network does not take one."""


def hash_of(recipe: Recipe, dataset: Data) -> str:
    """Return the hash of a recipe over everything that changes the numbers, a network of the user's included."""
    own = family_of(recipe.model) == OWN
    return recipe_hash(recipe, dataset.sha256, source_sha256(recipe.model) if own else "")


@factoring_once()
def build(recipe: Recipe, dataset: Data, *, seed: int) -> tuple[nn.Module, InitPlan | None]:
    """Build the network of a resolved recipe and initialize it; the same seed gives the same weights.

    ``lsuv`` looks at what the first step of the training is shown, in all processes together.

    Returns:
        The network, and what was done to it; None for torch's own initialization.

    Raises:
        UsageError: If the recipe names parameters that the network does not have.
    """
    torch.manual_seed(stream_seed(seed, "weights"))
    net = _network(recipe, dataset)
    example, stream = torch.zeros(1, *dataset.image_shape), stream_seed(seed, "init")
    if recipe.init == "default":
        return net, None
    if recipe.init == "tailored":
        made = tailor(net, example, stream)
    else:
        if recipe.init == "lsuv":
            example = first_batch(recipe, dataset, seed=seed)
        made = plan(net, example, method=recipe.init, mode=recipe.init_mode, std=recipe.init_std, seed=stream)
    made = _changed(made, recipe)
    apply(made, net)
    return net, made


def optimizer_of(recipe: Recipe, net: nn.Module, made: InitPlan | None) -> torch.optim.SGD:
    """Return the optimizer of a resolved recipe, which keeps beta above 0 after each step.

    Args:
        recipe: The recipe.
        net: The network, on its device.
        made: What :func:`build` returned with it.
    """
    assert recipe.lr is not None
    assert recipe.weight_decay is not None
    groups = param_groups(
        net,
        recipe.lr,
        recipe.weight_decay,
        plan=made,
        alpha_beta_lr=recipe.alpha_beta_lr,
        alpha_beta_weight_decay=recipe.alpha_beta_weight_decay,
        bias_lr=recipe.bias_lr,
        bias_weight_decay=recipe.bias_weight_decay,
    )
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    keep_beta_positive(optimizer, net)
    return optimizer


def skeleton(recipe: Recipe, dataset: Data) -> nn.Module:
    """Build the network of a resolved recipe for weights that are loaded into it afterwards.

    It is initialized only where that changes modules (``tailored``). Torch's global random state stays as it is.

    Args:
        recipe: The recipe.
        dataset: Its classes and the shape of its images are used.

    Raises:
        UsageError: If the network cannot be built so.
    """
    with torch.random.fork_rng(devices=[]):
        net = _network(recipe, dataset)
        if recipe.init == "tailored":
            tailor(net, torch.zeros(1, *dataset.image_shape), 0)
    return net


def check_network(recipe: Recipe, dataset: Data) -> None:
    """Raise a UsageError unless the network of a resolved recipe can be built and fits the data."""
    net = _network(recipe, dataset)
    names = [name for name, _ in net.named_parameters()]
    for option in ("layer_std", "layer_lr"):
        _check_patterns(option, getattr(recipe, option) or {}, names)
    if recipe.init == "default" and (recipe.layer_std or recipe.layer_lr):
        raise UsageError(
            "layer_std and layer_lr change the plan of an initialization, and init is default, which has none"
        )
    if family_of(recipe.model) == OWN:
        _check_outputs(net, recipe, dataset)


def _network(recipe: Recipe, dataset: Data) -> nn.Module:
    """Build the network of a recipe for the images and classes of a data set, with torch's default weights."""
    named = {name: getattr(recipe, name) for name in ("width", "batch_norm", "dropout")}
    return build_model(
        recipe.model,
        num_classes=len(dataset.classes),
        in_channels=dataset.image_shape[0],
        input_size=dataset.image_shape[-1],
        activation=recipe.activation,
        alpha=recipe.alpha,
        beta=recipe.beta,
        options={name: value for name, value in named.items() if value is not None} | (recipe.model_options or {}),
    )


def _changed(made: InitPlan, recipe: Recipe) -> InitPlan:
    """Return a plan with the standard deviations and learning rates that the recipe gives single parameters."""
    rows = []
    for row in made.rows:
        std = _of(row, recipe.layer_std or {})
        if std is not None:
            row = replace(
                row,
                fill="normal",
                std=std,
                equation=f"layer_std {std:g}",
                gain=None if row.fan is None else std * row.fan**0.5,
                second_moment=None,
                centered=False,
            )
        rate = _of(row, recipe.layer_lr or {})
        rows.append(row if rate is None else replace(row, lr_multiplier=rate * row.lr_multiplier))
    return replace(made, rows=tuple(rows))


def _of(row: PlanRow, given: Mapping[str, float]) -> float | None:
    """Return the value of the last pattern that matches the name of a parameter."""
    return next(
        (value for pattern, value in reversed(list(given.items())) if fnmatchcase(row.parameter, pattern)), None
    )


def _check_patterns(option: str, given: Mapping[str, float], names: Iterable[str]) -> None:
    unmatched = [pattern for pattern in given if not any(fnmatchcase(name, pattern) for name in names)]
    if unmatched:
        raise UsageError(
            f"{option}: no parameter of the network matches {', '.join(map(repr, unmatched))}; their names are those "
            f"that 'mpelu init' prints"
        )


def _check_outputs(net: nn.Module, recipe: Recipe, dataset: Data) -> None:
    """Raise a UsageError unless a network of the user's gives a number for each class."""
    graph = read(net, torch.zeros(2, *dataset.image_shape))
    output = [node.shape for node in graph.nodes if node.kind == "output"]
    if output != [(2, len(dataset.classes))]:
        raise UsageError(
            f"{recipe.model} must return one tensor with a number for each of the {len(dataset.classes)} classes of "
            f"{dataset.name}, shape (N, {len(dataset.classes)}); for a batch of 2 it returns {output}"
        )
