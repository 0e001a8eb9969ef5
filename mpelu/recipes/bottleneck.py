"""CIFAR-10, bottleneck residual nets of 164 layers: what a block may lack (Fig. 4c, 4d and 5).

Source:   Li et al., arXiv:1606.00305, section 5.3, Table 11. The code of nopre (Fig. 5d) is released and is what
          --follow code changes: Nesterov momentum, decay times 10 for alpha and beta, Eq. 22 with fan_out and one slope
          for all convolutions. Its file has the longer schedule of Table 12 and this one in a comment. Not stated, and
          chosen here: Fig. 5a, 5b and 5e begin and end as 5d does.
Target:   Table 11, mean test error: Pre-ResNet 5.46 %, with MPELU (4d) 5.32 %, 5b 5.49 %, nopre (5d) 5.04 %, nopre
          without BN1 5.29 %. 5a fails and 5c diverges without a warm-up, 5e and nopre without BN1 and BNend diverge.
Command:  mpelu reproduce table11
Duration: 78,200 steps of 128 images, at scale cpu 200 (digits: 60): "mpelu recipes" prints the measured time of a step
          times the steps, 3 to 10 days on a core of a CPU. An H200 was not measured.
At cpu:   29 layers instead of 164, images of 16 pixels, 5,000 of them, 5 epochs; a warm-up is 1 epoch of 40 steps
          instead of 391. The batch, the learning rate, the places of its drops, the decay and the blocks are kept.
"""

import dataclasses
from typing import Any

from mpelu.recipes.resnet import SHORT, STANDARD, shortened
from mpelu.recipes.row import Row, Target
from mpelu.train.recipe import Recipe

NOPRE = dataclasses.replace(STANDARD, model="nopre164", alpha=0.25, beta=1.0)
CODE = {"nesterov": True, "alpha_beta_weight_decay": 10.0, "init": "released", "init_mode": "fan_out"}
"""What the released code of nopre has instead."""
WARMUP: dict[str, Any] = {"warmup_epochs": 1, "warmup_lr": 0.01}
FACTORS = (*shortened(164, 29), "a warm-up of 391 to 40 steps, where there is one")

TABLE12: dict[str, dict[str, str]] = {
    "Pre-ResNet (ReLU full pre-activation)": {"network": "Pre-ResNet", "depth": "164"},
    "nopre (Fig. 5d)": {"network": "MPELU nopre ResNet", "depth": "164", "recipe": "standard"},
}
"""Lines of Table 12 by the networks of Table 11 that they are."""


def cpu(family: str, depth: int = 29) -> dict[str, object]:
    """Return the fields that scale cpu changes."""
    return {**SHORT, "model": f"{family}{depth}"}


def relu(recipe: Recipe) -> Recipe:
    """Return a recipe with ReLU in the place of MPELU, and nothing else changed: Eq. 22 with slope 0."""
    return dataclasses.replace(recipe, activation="relu", alpha=None, beta=None)


def _targets(network: str) -> tuple[Target, ...]:
    """Return the cells of Table 11, and those of Table 12 that stand for the same net."""
    cells = [Target("table11", {"network": network}, column) for column in ("mean_err", "best_err")]
    if network in TABLE12:
        columns = ("c10_best", "c10_mean_std", "c10_median")
        cells += [Target("table12", TABLE12[network], column) for column in columns]
    return tuple(cells)


def _row(name: str, about: str, family: str, network: str = "", **changes: Any) -> Row:
    paper = dataclasses.replace(NOPRE, model=f"{family}164", **changes)
    targets = _targets(network) if network else ()
    code = CODE if family == "nopre" else {}
    return Row(name, about, paper, code=code, cpu=cpu(family), factors=FACTORS, targets=targets)


ROWS = (
    Row(
        "preact164-relu",
        "Pre-ResNet-164 with ReLU (Fig. 4c)",
        dataclasses.replace(relu(NOPRE), model="preact164", init="msra"),
        cpu=cpu("preact"),
        factors=FACTORS,
        targets=_targets("Pre-ResNet (ReLU full pre-activation)"),
    ),
    _row("preact164-mpelu", "Pre-ResNet-164 with MPELU (Fig. 4d)", "preact", "MPELU full pre-activation (Fig. 4d)"),
    _row(
        "fig5a164-mpelu",
        "MPELU-only pre-activation, ends with BN (Fig. 5a)",
        "fig5a",
        "MPELU-only pre-activation, ends with BN (Fig. 5a)",
    ),
    _row("fig5a164-mpelu-warmup", "the same, first epoch at 0.01", "fig5a", **WARMUP),
    _row("fig5b164-mpelu", "MPELU-only pre-activation (Fig. 5b)", "fig5b", "MPELU-only pre-activation (Fig. 5b)"),
    _row("fig5c164-mpelu", "nopre ending with BN (Fig. 5c)", "fig5c", "nopre ending with BN (Fig. 5c)"),
    _row("fig5c164-mpelu-warmup", "the same, first epoch at 0.01", "fig5c", **WARMUP),
    _row("nopre164-mpelu", "nopre ResNet-164 (Fig. 5d)", "nopre", "nopre (Fig. 5d)"),
    _row(
        "fig5e164-mpelu",
        "nopre without BN in the branch (Fig. 5e)",
        "fig5e",
        "nopre without BN in the branch (Fig. 5e)",
    ),
    _row(
        "fig5e164-mpelu-warmup",
        "the same, first epoch at 0.01 (not in the paper)",
        "fig5e",
        **WARMUP,
    ),
    _row(
        "nopre164-mpelu-no-norms",
        "nopre without BN1 and BNend",
        "nopre",
        "nopre without BN1 and BNend",
        model_options={"first_norm": False, "end_norm": False},
    ),
    _row(
        "nopre164-mpelu-no-first-norm",
        "nopre without BN1, BNend kept",
        "nopre",
        "nopre without BN1, BNend kept",
        model_options={"first_norm": False},
    ),
    _row(
        "nopre164-mpelu-no-end-norm",
        "nopre without BNend, BN1 kept (not in the paper)",
        "nopre",
        model_options={"end_norm": False},
    ),
    _row(
        "nopre164-relu",
        "nopre ResNet-164 with ReLU (not in the paper)",
        "nopre",
        activation="relu",
        alpha=None,
        beta=None,
    ),
)
