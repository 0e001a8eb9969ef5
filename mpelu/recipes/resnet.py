"""CIFAR-10, ResNet-110 with its ReLUs swapped: ELU, MPELU (A), and MPELU (B), near-identities behind the additions.

Source:   Li et al., arXiv:1606.00305, section 5.1, Table 9; ResNet* of Table 10 is the net with ReLU. No code of these
          nets was released. Shortcuts are of type A (not stated; the habit of the code that the authors began with).
Target:   Table 9, depth 110. The text gives no number of it but the cited 6.61 +- 0.16 % of He et al. for ReLU, and
          an order: ELU worse than ReLU, MPELU (A) better, MPELU (B) best. Table 9 has other depths; they are unknown.
Command:  mpelu reproduce table9
Duration: 78,200 steps of 128 images, at scale cpu 200 (digits: 60): "mpelu recipes" prints the measured time of a step
          times the steps, 2 to 3 days on a core of a CPU. An H200 was not measured.
At cpu:   20 layers instead of 110, images of 16 pixels, 5,000 of them, 5 epochs. The batch, the learning rate, the
          places of its drops, the decay and the blocks are kept.
"""

import dataclasses

from mpelu.recipes.row import Row, Target
from mpelu.train.recipe import Recipe

STANDARD = Recipe(
    model="resnet110",
    activation="mpelu",
    alpha=1.0,
    beta=1.0,
    init="eq22",
    init_mode="fan_in",
    data="cifar10",
    augment="pad4",
    epochs=200,
    batch_size=128,
    lr=0.1,
    schedule="step",
    milestones=(81 / 200, 122 / 200),
    momentum=0.9,
    weight_decay=1e-4,
    alpha_beta_lr=5.0,
    alpha_beta_weight_decay=1.0,
)
"""The paper's recipe for residual nets: no warm-up, decay of alpha and beta as of weights."""

SHORT = {"resize": 16, "limit": 5000, "augment": "none", "epochs": 5}
"""What scale cpu changes besides the depth."""


def shortened(depth: int, scaled: int, epochs: str = "200 to 5", drops: str = "2 and 3") -> tuple[str, ...]:
    """Return in words what that is, for a net whose depth is scaled too."""
    return (
        f"depth {depth} to {scaled}",
        "images of 32 to 16 pixels, 50,000 to 5,000 of them (digits: 1,500), without crops and flips",
        f"{epochs} epochs, the drops of the learning rate at the same fractions (after {drops})",
        "kept: batch size, learning rate, momentum, decay, initialization, widths and blocks",
    )


CPU = {**SHORT, "model": "resnet20"}
FACTORS = shortened(110, 20)


def _targets(activation: str, *more: Target) -> tuple[Target, ...]:
    where = {"depth": "110", "activation": activation}
    return (Target("table09", where, "mean_err"), Target("table09", where, "best_err"), *more)


ROWS = (
    Row(
        "resnet110-relu",
        "ResNet-110 with ReLU, 200 epochs",
        dataclasses.replace(STANDARD, activation="relu", alpha=None, beta=None, init="msra"),
        cpu=CPU,
        factors=FACTORS,
        targets=_targets("ReLU", Target("table10", {"network": "ResNet* (re-trained 200 epochs)"}, "mean_err")),
    ),
    Row(
        "resnet110-elu",
        "ResNet-110, every ReLU an ELU",
        dataclasses.replace(STANDARD, activation="elu", beta=None),
        cpu=CPU,
        factors=FACTORS,
        targets=_targets("ELU"),
    ),
    Row(
        "resnet110-mpelu-a",
        "ResNet-110, every ReLU an MPELU (1, 1)",
        STANDARD,
        cpu=CPU,
        factors=FACTORS,
        targets=_targets("MPELU (A)"),
    ),
    Row(
        "resnet110-mpelu-b",
        "the same, MPELU (98, 0.01) behind the additions",
        dataclasses.replace(STANDARD, model_options={"after": [98.0, 0.01]}),
        cpu=CPU,
        factors=FACTORS,
        targets=_targets("MPELU (B)"),
    ),
    Row(
        "resnet110-mpelu-b-nodecay",
        "the same without decay of alpha and beta (not in the paper)",
        dataclasses.replace(STANDARD, model_options={"after": [98.0, 0.01]}, alpha_beta_weight_decay=0.0),
        cpu=CPU,
        factors=FACTORS,
    ),
)
