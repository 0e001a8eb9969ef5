"""What an optimizer must know about alpha and beta: their own learning rate and decay, and that beta stays positive."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from mpelu.errors import UsageError
from mpelu.nn import MPELU

MIN_BETA = 1e-4
"""Smallest beta after a step: a hundredth of the smallest start value of the paper (0.01), and normal in float16."""


class Plan(Protocol):
    """What is asked of a plan here; :class:`mpelu.init.InitPlan` is one."""

    @property
    def lr_multipliers(self) -> Mapping[str, float]:
        """Name of a parameter to the factor of its learning rate, where that is not 1."""
        ...


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    plan: Plan | None = None,
    alpha_beta_lr: float = 5.0,
    alpha_beta_weight_decay: float = 1.0,
    bias_lr: float = 1.0,
    bias_weight_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort the parameters of a model into groups for a torch optimizer.

    The paper trains alpha and beta at 5 times the learning rate of the weights (section 3.1); its Caffe nets train
    biases at twice the rate without decay. The four multipliers are relative to ``lr`` and ``weight_decay``.

    Args:
        model: Any module; parameters that need no gradient are left out, shared ones appear once.
        lr: Learning rate of the weights.
        weight_decay: Decay of the weights.
        plan: Of the initialization; parameters that it gives a learning rate of their own come in groups of their own
            (``alpha*0.01``), at that factor times the rate below. A tailored alpha is large and needs it.
        alpha_beta_lr: Multiplier of the learning rate for alpha and beta.
        alpha_beta_weight_decay: Multiplier of the decay for alpha and beta.
        bias_lr: Multiplier of the learning rate for every parameter named ``bias``.
        bias_weight_decay: Multiplier of the decay for every parameter named ``bias``.

    Returns:
        Groups named ``weight``, ``bias``, ``alpha`` and ``beta`` (empty ones left out), each with ``params``, ``lr``,
        ``weight_decay`` and ``lr_multiplier`` (what a schedule multiplies its base rate with).

    Raises:
        UsageError: If the plan names a parameter that the model does not have.

    Example:
        >>> groups = param_groups(nn.Sequential(nn.Linear(2, 3), MPELU(3)), lr=0.1, weight_decay=1e-4)
        >>> [(group["name"], group["lr"]) for group in groups]
        [('weight', 0.1), ('bias', 0.1), ('alpha', 0.5), ('beta', 0.5)]
    """
    multipliers = {
        "weight": (1.0, 1.0),
        "bias": (bias_lr, bias_weight_decay),
        "alpha": (alpha_beta_lr, alpha_beta_weight_decay),
        "beta": (alpha_beta_lr, alpha_beta_weight_decay),
    }
    members: dict[tuple[str, float], list[nn.Parameter]] = {}
    shape_parameters = {
        id(parameter): kind
        for module in model.modules()
        if isinstance(module, MPELU)
        for name, parameter in module.named_parameters()
        if (kind := _shape_parameter(name))
    }
    factors = dict(plan.lr_multipliers) if plan is not None else {}
    unknown = factors.keys() - dict(model.named_parameters()).keys()
    if unknown:
        raise UsageError(f"the plan is for another model: there is no parameter {', '.join(sorted(unknown)[:5])}")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            last = name.rpartition(".")[2]
            kind = shape_parameters.get(id(parameter), "bias" if last == "bias" else "weight")
            members.setdefault((kind, factors.get(name, 1.0)), []).append(parameter)
    return [
        {
            "name": kind if factor == 1.0 else f"{kind}*{factor:.6g}",
            "params": members[kind, factor],
            "lr": lr * lr_multiplier * factor,
            "weight_decay": weight_decay * decay_multiplier,
            "lr_multiplier": lr_multiplier * factor,
        }
        for wanted, (lr_multiplier, decay_multiplier) in multipliers.items()
        for kind, factor in sorted(members, key=lambda member: -member[1])
        if kind == wanted
    ]


def keep_beta_positive(
    optimizer: torch.optim.Optimizer, model: nn.Module, minimum: float = MIN_BETA
) -> RemovableHandle:
    """Project every beta of the model onto [minimum, inf) after each step of the optimizer.

    Projection, and not a clamp or a reparametrization in the forward pass: the function that is trained stays Eq. 3,
    beta keeps its gradient at the border (a clamp would cut it, and beta could never leave), learning rate and decay
    act on beta itself as in the paper, and nothing waits for the device.

    Args:
        optimizer: The hook is registered on it.
        model: Its MPELUs are looked up once, now. Their parameters may be sharded (``fully_shard``).
        minimum: Smallest beta allowed, > 0.

    Returns:
        A handle; its ``remove()`` takes the projection away.

    Raises:
        UsageError: If minimum is not > 0, or a beta is computed by a parametrization, which alone decides its values.
    """
    if not minimum > 0:
        raise UsageError(f"minimum must be > 0, or beta could reach 0, got {minimum}")
    units = {name: module for name, module in model.named_modules() if isinstance(module, MPELU)}
    computed = [name for name, unit in units.items() if parametrize.is_parametrized(unit, "beta")]
    if computed:
        raise UsageError(
            f"beta of {', '.join(computed[:5])} is computed by a parametrization, which no projection can reach; let "
            f"the parametrization give values > 0 (softplus, exp), and project the betas of other modules only"
        )

    def project(*_: object) -> None:
        with torch.no_grad():
            # looked up anew: load_state_dict(assign=True) and fully_shard put other tensors in their place
            _clamp_from_below_([unit.beta for unit in units.values()], minimum)

    return optimizer.register_step_post_hook(project)


def _shape_parameter(name: str) -> str:
    """Return "alpha" or "beta" for a parameter of an MPELU that holds it, or that it is computed from; else ""."""
    parts = name.split(".")
    kind = parts[1] if parts[0] == "parametrizations" else name
    return kind if kind in ("alpha", "beta") else ""


def _clamp_from_below_(tensors: list[Tensor], minimum: float) -> None:
    if tensors:
        torch._foreach_clamp_min_(tensors, minimum)  # one launch for all layers; there is no public name for it
