from dataclasses import replace

import pytest

from mpelu.train.recipe import Recipe, resolve
from mpelu.train.schedule import learning_rate

PAPER = resolve(Recipe(model="nopre164"), family="nopre", image_size=32)


def test_standard_recipe_of_the_paper():
    """200 epochs, 0.1, divided by 10 after 81 and 122."""
    rates = [learning_rate(PAPER, epoch, 0.5) for epoch in range(200)]
    assert rates[:81] == pytest.approx([0.1] * 81)
    assert rates[81:122] == pytest.approx([0.01] * 41)
    assert rates[122:] == pytest.approx([0.001] * 78)


def test_warm_up_epoch():
    recipe = replace(PAPER, warmup_epochs=1)
    assert [learning_rate(recipe, epoch, 0.0) for epoch in (0, 1)] == [0.01, 0.1]


def test_cosine_rises_and_falls_to_zero():
    recipe = replace(PAPER, schedule="cosine", epochs=10, warmup_epochs=2, warmup_lr=0.02)
    assert learning_rate(recipe, 0, 0.0) == pytest.approx(0.02)
    assert learning_rate(recipe, 1, 0.0) == pytest.approx(0.06)
    assert learning_rate(recipe, 2, 0.0) == pytest.approx(0.1)
    assert learning_rate(recipe, 6, 0.0) == pytest.approx(0.05)
    assert learning_rate(recipe, 9, 0.999) < 1e-4
