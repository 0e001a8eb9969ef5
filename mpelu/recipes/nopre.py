"""CIFAR-10 and CIFAR-100, nopre ResNets beside Pre-ResNets: 164 and 1001 layers, the standard and the longer recipe.

Source:   Li et al., arXiv:1606.00305, section 5.4, Table 12; README of the authors' code. The longer recipe (marked
          with a dagger in the paper) is 300 epochs of batches of 64, the learning rate divided by 10 at 150 and 225.
          --follow code changes: Nesterov momentum, decay times 10 for alpha and beta, Eq. 22 with fan_out and one slope
          for all convolutions, and each drop one epoch earlier.
Target:   Table 12, best (mean +- std) test error, e.g. nopre-164 with the longer recipe: CIFAR-10 4.43 (4.53 +- 0.12) %
          and CIFAR-100 21.69 (21.88 +- 0.19) %; nopre-1001: 3.57 (3.71 +- 0.11) % and 18.81 (18.98 +- 0.19) %. The
          standard recipe on CIFAR-10 is in bottleneck.py. Pre-ResNets with the longer recipe are not in the paper.
Command:  mpelu reproduce table12
Duration: 78,200 steps of 128 images, or 234,600 of 64, at scale cpu 200 or 632 (digits: 60 or 192): "mpelu recipes"
          prints the measured time of a step times the steps, on a core of a CPU 3 to 8 days, a month for 1001 layers.
          An H200 was not measured.
At cpu:   29 layers instead of 164 and 47 instead of 1001, images of 16 pixels, 5,000 of them, 5 epochs instead of 200
          and 8 instead of 300. The batches, the learning rate, the places of its drops and the blocks are kept.
          CIFAR-100 is replaced by whatever data are given, so that there its rows are those of CIFAR-10.
"""

import dataclasses
from typing import Any

from mpelu.recipes.bottleneck import CODE, NOPRE, cpu, relu
from mpelu.recipes.resnet import shortened
from mpelu.recipes.row import Row, Target
from mpelu.train.recipe import Recipe

LONGER: dict[str, Any] = {"epochs": 300, "batch_size": 64, "milestones": (150 / 300, 225 / 300)}
DROPS_OF_THE_CODE = (149 / 300, 224 / 300)
SHORT_OF = {"cifar10": "c10", "cifar100": "c100"}
SCALED = {164: 29, 1001: 47}
"""Depth at scale cpu by that of the paper."""


def _nopre(data: str, depth: int, alpha: float, *, longer: bool) -> Row:
    name = f"nopre{depth}-mpelu{'' if alpha == 0.25 else '1'}-{SHORT_OF[data]}"
    paper = dataclasses.replace(NOPRE, model=f"nopre{depth}", alpha=alpha, data=data)
    where = {
        "network": "MPELU nopre ResNet",
        "depth": str(depth),
        "recipe": "dagger" if longer else "standard",
        "alpha_init": f"{alpha:g}",
    }
    code = CODE | ({"milestones": DROPS_OF_THE_CODE} if longer else {})
    made = _row(name, f"nopre ResNet-{depth}, alpha {alpha:g}", paper, "nopre", depth, longer=longer)
    return dataclasses.replace(made, code=code, targets=_targets(where, data))


def _preact(data: str, depth: int, *, batch_size: int = 128, longer: bool = False) -> Row:
    name = f"preact{depth}-relu-{SHORT_OF[data]}{'' if batch_size == 128 else f'-batch{batch_size}'}"
    paper = dataclasses.replace(relu(NOPRE), model=f"preact{depth}", init="msra", data=data, batch_size=batch_size)
    made = _row(name, f"Pre-ResNet-{depth} with ReLU", paper, "preact", depth, longer=longer)
    cited = "He et al." if depth == 164 else f"He et al. batch {batch_size}"
    where = {"network": "Pre-ResNet", "depth": str(depth), "recipe": cited}
    return made if longer else dataclasses.replace(made, targets=_targets(where, data))


def _row(name: str, about: str, standard: Recipe, family: str, depth: int, *, longer: bool) -> Row:
    """Return a row with the standard recipe, or with the longer one in its place."""
    paper = dataclasses.replace(standard, **LONGER) if longer else standard
    return Row(
        f"{name}{'-longer' if longer else ''}",
        f"{about}, {paper.epochs} epochs of batches of {paper.batch_size}",
        paper,
        cpu=cpu(family, SCALED[depth]) | ({"epochs": 8} if longer else {}),
        factors=shortened(depth, SCALED[depth], *(("300 to 8", "4 and 6") if longer else ())),
    )


def _targets(where: dict[str, str], data: str) -> tuple[Target, ...]:
    return tuple(Target("table12", where, f"{SHORT_OF[data]}_{column}") for column in ("best", "mean_std", "median"))


ROWS = (
    _nopre("cifar100", 164, 0.25, longer=False),
    *(_nopre(data, depth, alpha, longer=True) for depth in (164, 1001) for alpha in (0.25, 1.0) for data in SHORT_OF),
    _preact("cifar100", 164),
    *(_preact(data, 1001) for data in SHORT_OF),
    _preact("cifar10", 1001, batch_size=64),
    *(_preact(data, depth, longer=True) for depth in (164, 1001) for data in SHORT_OF),
)
