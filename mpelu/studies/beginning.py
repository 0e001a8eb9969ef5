"""The first steps of a training, one by one: the loss, and the norm of the gradient in each residual block."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from mpelu.recipes import row
from mpelu.report.summary import Record, finite
from mpelu.studies.jobs import Measurement, Setting
from mpelu.studies.work import loaded

if TYPE_CHECKING:
    from torch import nn

STEPS = 30
WATCHED = 21
"""Steps 0 to 20 are those whose gradients are kept."""
LAST = 10
"""A net fails to begin if the mean loss of so many last steps is not below that of guessing."""
SEEDS = 6
"""As many as it takes for 6 of 6, or 0 of 6, to say something about most runs: the interval then ends at 0.54."""
SECONDS = 45.0


def measurements(name: str, setting: Setting) -> tuple[Measurement, ...]:
    """Return the first steps of a row at the depth of the paper, once for each seed."""
    data = setting.data if setting.scale == "cpu" else row(name).paper.data
    options = {"row": name, "scale": setting.scale, "steps": STEPS}
    return tuple(
        Measurement(f"{__name__}:first_steps", options, seed, data, SECONDS) for seed in range(setting.seeds or SEEDS)
    )


def failed(record: Record) -> bool:
    """Return whether a net did not get below guessing within the first steps, or left the finite numbers."""
    values = record["values"]
    losses = [finite(loss) for loss in values["losses"]]
    if not losses or None in losses:
        return True
    last = [loss for loss in losses[-LAST:] if loss is not None]
    return values["reason"] is not None or sum(last) / len(last) >= math.log(values["classes"])


def unevenness(record: Record) -> float | None:
    """Return the powers of ten between the blocks with the largest and the smallest gradient, over steps 0 to 20.

    None if a gradient was not finite or 0 in a block.
    """
    spans = []
    for norms in record["values"]["block_gradient_norms"]:
        found = [value for norm in norms if (value := finite(norm)) is not None and value > 0]
        if len(found) < len(norms) or not found:
            return None
        spans.append(math.log10(max(found) / min(found)))
    return sum(spans) / len(spans) if spans else None


def first_steps(*, seed: int, data: str, row: str, scale: str, steps: int) -> dict[str, Any]:
    """Take the first steps of a training at full learning rate, and return what happened.

    The recipe is that of the row at the scale, but for the depth, which is always that of the paper.

    Args:
        seed: As of a training: same weights, same batches.
        data: Of the images.
        row: Name of the recipe.
        scale: ``paper`` or ``cpu``.
        steps: How many, at most: it ends where the loss or the gradient is not finite.

    Returns:
        ``losses`` before each step, ``gradient_norms`` of all parameters, and ``block_gradient_norms`` of the weights
        of each block for the first 21 steps; ``reason`` says what was not finite, None if nothing; ``classes``.
    """
    import torch
    from torch.nn import functional as F

    from mpelu.models import family_of
    from mpelu.recipes import row as row_of
    from mpelu.train.network import build, optimizer_of
    from mpelu.train.recipe import resolve
    from mpelu.train.supply import data_of, supply_of

    found = row_of(row)
    recipe = found.recipe("cpu" if scale == "cpu" else "paper", data=data)
    recipe = dataclasses.replace(recipe, model=found.paper.model)
    images = data_of(recipe, loaded=loaded(recipe.data, recipe.preprocess, recipe.resize))
    recipe = resolve(recipe, family=family_of(recipe.model), image_size=images.image_shape[-1])
    with torch.random.fork_rng(devices=[]):
        net, plan = build(recipe, images, seed=seed)
        if recipe.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in mpelu.train.run
        optimizer = optimizer_of(recipe, net, plan)
        supply = supply_of(recipe, images, device=torch.device("cpu"))
        losses, norms, by_block, reason = [], [], [], None
        net.train()
        for step, batch in enumerate(supply.training(seed=seed, start=0, stop=steps)):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(batch.images), batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            norms.append(_norm(net))
            if step < WATCHED:
                by_block.append([_norm(block) for name, block in net.named_children() if name.startswith("stage")])
            if not (math.isfinite(losses[-1]) and math.isfinite(norms[-1])):
                reason = f"the {'gradient' if math.isfinite(losses[-1]) else 'loss'} is not finite at step {step + 1}"
                break
            optimizer.step()
    return {
        "losses": losses,
        "gradient_norms": norms,
        "block_gradient_norms": by_block,
        "reason": reason,
        "classes": len(images.classes),
    }


def _norm(module: "nn.Module") -> float:
    import torch

    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
