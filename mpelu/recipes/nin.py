"""CIFAR-10, Network in Network with ReLU, PReLU, ELU and MPELU, with and without augmentation.

Source:   Li et al., arXiv:1606.00305, section 4.1, the appendix, Table 1, Figure 2; the authors' released Caffe files.
Target:   Table 1, test error without / with augmentation: ELU 9.39 / 7.77, MPELU 9.06 / 7.30. The text does not say
          from which start MPELU has these, nor the other numbers; with augmentation, the means of PReLU and of
          MPELU (0.25) are 0.03 apart.
Command:  mpelu train --recipe nin-mpelu --scale cpu, mpelu reproduce table1
Duration: 120,000 steps of 128 images, at scale cpu 3,140 of 32 (digits: 940): "mpelu recipes" prints the measured time
          of a step times the steps. An H200 was not measured.

Without augmentation the geometry of the paper's net is not known and no file of it was released. Here it is our choice:
whole images of 32 pixels, and the pooling at the end global, so that the same network takes them.

The text has weights from Gaussian(0.01), the released files Gaussian(0.05) for all nine convolutions; the last one
learns there at a tenth of the rate. The text prints MPELU's second start as "0.25 and 1", and one caption as 0.25 for
both; the released file has alpha 0.25 and beta 1, as here.

Scale cpu keeps whitening, momentum, decay, dropout, nine convolutions and the crop of 28 of 32 pixels, as 14 of 16. It
shortens widths, images and steps. The learning rate goes down with the batch. The weights are wider than either source
has them: from Gaussian(0.01) and Gaussian(0.05) at the same gains, a ReLU net of this width did not leave ln 10 within
the time, where the paper's has a hundred times as many images to do so.
"""

from dataclasses import replace
from typing import Any

from mpelu.recipes.row import Row, Target
from mpelu.train.recipe import Recipe

PAPER = Recipe(
    model="nin",
    init="gaussian",
    init_std=0.01,
    data="cifar10",
    preprocess="gcn_zca",
    augment="none",
    epochs=307,  # 120,000 steps are 307.2
    batch_size=128,
    lr=0.1,
    schedule="step",
    milestones=(100 / 120,),
    momentum=0.9,
    weight_decay=1e-4,
    alpha_beta_lr=5.0,
    alpha_beta_weight_decay=0.0,
)
CODE: dict[str, Any] = {
    "init_std": 0.05,
    "bias_lr": 2.0,
    "bias_weight_decay": 0.0,
    "layer_lr": {"cccp6.weight": 0.1, "cccp6.bias": 0.05},  # 0.05 x 2: bias and weight both at a tenth
}
AUGMENTED = "-aug"
ACTIVATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]] = {
    # what is said of it, the text's values, the released ones, the line of Table 1
    "relu": ("ReLU", {"activation": "relu"}, {}, {"activation": "ReLU"}),
    "prelu": ("PReLU (0.25)", {"activation": "prelu", "alpha": 0.25}, {}, {"activation": "PReLU"}),
    "elu": ("ELU", {"activation": "elu", "alpha": 1.0}, {}, {"activation": "ELU"}),
    "mpelu0.25": (
        "MPELU (0.25, 1)",
        {"activation": "mpelu", "alpha": 0.25, "beta": 1.0},
        {"alpha_beta_lr": 2.0, "alpha_beta_weight_decay": 5.0},
        {"activation": "MPELU", "alpha_init": "0.25"},
    ),
    "mpelu": (
        "MPELU (1, 1)",
        {"activation": "mpelu", "alpha": 1.0, "beta": 1.0},
        {"alpha_beta_lr": 2.0},
        {"activation": "MPELU", "alpha_init": "1"},
    ),
}
CPU: dict[str, Any] = {
    "width": 24,
    "init_std": 0.2,
    "resize": 16,
    "limit": 5000,
    "epochs": 20,
    "batch_size": 32,
    "lr": 0.025,
}
FACTORS = (
    "widths 192, 160, 96 down to 24, 20, 12",
    "images 32 to 16 pixels, crops 28 to 14; 50,000 of them to 5,000",
    "307 epochs to 20, the drop of the learning rate at the same fraction",
    "batch 128 to 32 and learning rate 0.1 to 0.025",
    "Gaussian(0.01) weights to Gaussian(0.2)",
    "kept: whitening, dropout, momentum, decay, the rates and decays of alpha and beta",
)


def name_of(activation: str, *, augmented: bool) -> str:
    """Return the name of a row; ``activation`` is a key of :data:`ACTIVATIONS`."""
    return f"nin-{activation}{AUGMENTED if augmented else ''}"


def _row(activation: str, *, augmented: bool) -> Row:
    label, text, code, line = ACTIVATIONS[activation]
    crop = {"augment": "crop14" if augmented else "none"}
    return Row(
        name=name_of(activation, augmented=augmented),
        about=f"NIN, {label}, {'crops and flips' if augmented else 'no augmentation (32 pixels: our choice)'}",
        paper=replace(PAPER, **text, augment="crop28" if augmented else "none"),
        code=CODE | code,
        cpu=CPU | crop,
        factors=FACTORS,
        targets=(Target("table01", line, "err_aug" if augmented else "err_no_aug"),),
    )


ROWS: tuple[Row, ...] = tuple(
    _row(activation, augmented=augmented) for augmented in (False, True) for activation in ACTIVATIONS
)
