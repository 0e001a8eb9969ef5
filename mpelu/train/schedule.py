"""Learning rate by epoch and step: pure functions of the recipe."""

import math

from mpelu.train.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: int, progress: float) -> float:
    """Return the learning rate of the weights.

    Args:
        recipe: A resolved recipe.
        epoch: Index of the epoch, from 0.
        progress: Fraction of that epoch already done, in [0, 1).

    ``step``: ``warmup_lr`` during the warm-up epochs, then lr, divided by 10 from each milestone on. A milestone is a
    fraction of the epochs, rounded to a whole epoch and at least 1: 0.405 of 200 is the drop after 81 epochs.
    ``cosine``: a linear rise from warmup_lr to lr, then half a cosine down to 0.
    """
    assert recipe.lr is not None
    assert recipe.epochs is not None
    assert recipe.milestones is not None
    if recipe.schedule == "step":
        if epoch < recipe.warmup_epochs:
            return recipe.warmup_lr
        drops = sum(epoch >= max(1, round(milestone * recipe.epochs)) for milestone in recipe.milestones)
        return recipe.lr / 10.0**drops
    now = epoch + progress
    if now < recipe.warmup_epochs:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * now / recipe.warmup_epochs
    fraction = (now - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1)
    return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * fraction))
