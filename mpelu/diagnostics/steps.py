"""The step that an optimizer would take on a parameter, without taking it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpelu.diagnostics.sampling import norm_of, pieces

Group = Mapping[str, Any]


class Steps:
    """Norms of the steps of an optimizer; its state and the parameters stay as they are.

    ``torch.optim.SGD`` (momentum, dampening, Nesterov, weight decay), ``Adam`` and ``AdamW`` (AMSGrad too) are worked
    out exactly from their groups and their state. Of any other it is taken to be lr times the gradient.

    Args:
        optimizer: Any; what it does not hold gets no step.
        model: Its parameters by name.
        scale: What gradients are divided by first.

    Attributes:
        exact: False where the step is only taken to be lr times the gradient.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, *, scale: float = 1.0) -> None:
        groups = {id(own): group for group in optimizer.param_groups for own in group["params"]}
        self._held = {name: (own, groups.get(id(own))) for name, own in model.named_parameters()}
        self._state = optimizer.state
        self._law = LAWS.get(type(optimizer))
        self._scale = scale
        self.exact = self._law is not None

    def __call__(self, name: str, gradient: Tensor) -> float:
        """Return the norm of the step on a parameter."""
        parameter, group = self._held[name]
        if group is None:
            return 0.0
        if self._law is None:
            return float(group["lr"]) * norm_of(gradient) / self._scale
        state = self._state.get(parameter, {})
        held = {key: item for key, item in state.items() if isinstance(item, Tensor) and item.shape == parameter.shape}
        rest = {key: item for key, item in state.items() if key not in held}
        keys = list(held)
        total = 0.0
        for values, slope, *own in zip(
            *(pieces(item.detach()) for item in (parameter, gradient, *held.values())), strict=True
        ):
            signed = (-1.0 if group.get("maximize") else 1.0) / self._scale
            step = self._law(values, slope * signed, group, {**rest, **dict(zip(keys, own, strict=True))})
            total += torch.linalg.vector_norm(step).item() ** 2
        return math.sqrt(total)


def _sgd(values: Tensor, gradient: Tensor, group: Group, state: Mapping[str, Any]) -> Tensor:
    if group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * values
    momentum = group["momentum"]
    if momentum:
        before = state.get("momentum_buffer")
        buffer = gradient if before is None else momentum * before + (1 - group["dampening"]) * gradient
        gradient = gradient + momentum * buffer if group["nesterov"] else buffer
    return float(group["lr"]) * gradient


def _adam(values: Tensor, gradient: Tensor, group: Group, state: Mapping[str, Any], *, decoupled: bool) -> Tensor:
    rate, decay = float(group["lr"]), group["weight_decay"]
    if decay and not decoupled:
        gradient = gradient + decay * values
    first, second = (float(beta) for beta in group["betas"])
    count = float(state.get("step", 0)) + 1
    mean = (1 - first) * gradient + first * state.get("exp_avg", 0.0)
    square = (1 - second) * gradient.square() + second * state.get("exp_avg_sq", 0.0)
    if group.get("amsgrad"):
        square = torch.maximum(square, state.get("max_exp_avg_sq", torch.zeros_like(square)))
    root = square.sqrt() / math.sqrt(1 - second**count) + float(group["eps"])
    step: Tensor = rate / (1 - first**count) * mean / root
    return step + rate * decay * values if decay and decoupled else step


def _adam_with_l2(values: Tensor, gradient: Tensor, group: Group, state: Mapping[str, Any]) -> Tensor:
    return _adam(values, gradient, group, state, decoupled=bool(group.get("decoupled_weight_decay")))


def _adamw(values: Tensor, gradient: Tensor, group: Group, state: Mapping[str, Any]) -> Tensor:
    return _adam(values, gradient, group, state, decoupled=True)


LAWS = {torch.optim.SGD: _sgd, torch.optim.Adam: _adam_with_l2, torch.optim.AdamW: _adamw}
"""From pieces of a parameter, its gradient and its state to that of the step, by the type of the optimizer."""
