"""ImageNet, plain net of 15 layers with BN: activations, their starts, decay of alpha and beta, and scales of weights.

Source:   Li et al., arXiv:1606.00305, section 4.2, Tables 2, 3 and 6; the authors' released Caffe files.
Target:   Table 2, top-1 error from Gaussian(0.01): PReLU (0.25) 39.48, ELU 40.36, MPELU without decay of alpha and beta
          40.94 (0.25) and 39.53 (1), with decay 37.81 (0.25) and 38.04 (1); from Eq. 22 MPELU (1) without decay 38.42.
          The best cell, 37.33, is an MPELU of unknown start with decay. No number of Tables 3 and 6 is in the text.
Command:  mpelu train --recipe imagenet15-mpelu1-decay --scale cpu, mpelu reproduce table2
Duration: 750,000 steps of 64 images (here 38 epochs, which are 760,722), at scale cpu 1,256 of 32 (digits: 376): "mpelu
          recipes" prints the measured time of a step times the steps. An H200 was not measured.

"Gaussian" is 0.01 for all weights in the text, and 0.005 for the two hidden fully connected layers in the files. The
other start is MSRA for ReLU and PReLU, and Eq. 22 for ELU and MPELU; in the files of PReLU it is Eq. 22 with fan_out,
and the fully connected layers never have it. In the files Eq. 22 has the slope of the net in the first convolution
too; here, without --follow code, the image counts as slope 1. No file was released of MPELU without decay of alpha and
beta, of LSUV for this net, or of ELU from Gaussian weights. The slopes of LReLU A to D are those of the released files;
the text has only that D is 1. Which activation Table 6 has is unknown: here ELU, and MPELU (1) with decay.

Scale cpu keeps depth, batch normalization without scale and shift, raw pixels less their mean image, the learning rate
0.01, momentum and the decay of the weights. Where alpha and beta decay, their decay is 10 times that of the weights: by
it alone (learning rate 5 x 0.01, momentum 0.9) they halve in 2,800 of the paper's first 100,000 steps, which end in a
balance with the gradient, and here in 280 of 1,256.
"""

import math
from dataclasses import replace
from typing import Any, Literal

from mpelu.recipes.imagenet import BIASES, COMMON, SHORT, SHORTENED
from mpelu.recipes.row import Row, Target
from mpelu.train.recipe import Recipe

Start = Literal["gaussian", "msra", "eq22", "lsuv"]

PAPER = Recipe(model="imagenet15", batch_norm=True, init_std=0.01, **COMMON)
GAUSSIAN = {"fc1.weight": 0.005, "fc2.weight": 0.005}
OTHER = {"fc1.weight": 0.01, "fc2.weight": 0.01, "fc3.weight": 0.01}
OTHER_PRELU = OTHER | {"fc3.weight": 0.001}
FAN_IN, FAN_OUT = 3 * 7 * 7, 64 * 7 * 7
"""Of the first convolution."""

CPU = {**SHORT, "model": "plain15", "batch_size": 32}
CPU_DECAY = 10.0
FACTORS = (
    *SHORTENED,
    "38 epochs down to 8, batch 64 to 32, first drop of the learning rate left out",
    "the stem 7x7 with stride and pooling to 3x3 without",
    "decay of alpha and beta, where there is one, from that of the weights to 10 times as much",
    "kept: depth, BN without scale and shift, raw pixels less the mean image, lr 0.01, momentum 0.9, decay 5e-4",
)
LABELS = {"gaussian": "Gaussian(0.01)", "msra": "MSRA", "eq22": "Eq. 22", "lsuv": "LSUV"}
IN_TABLE = {"gaussian": "Gaussian", "msra": "MSRA", "eq22": "Eq. 22"}
SLOPES = {"a": 0.1, "b": 0.25, "c": 0.5, "d": 1.0}
STARTS = {"prelu": (0.0, 0.25, 1.0), "mpelu": (0.0, 0.25, 1.0)}


def first_std(alpha: float, fan: int) -> dict[str, float]:
    """Return the released std of the first convolution: Eq. 22 with the slope of the net, not with 1 for the image."""
    return {"conv1.weight": math.sqrt(2 / (fan * (1 + alpha**2)))}


def name_of(activation: str, *, decay: bool = False, init: Start = "gaussian") -> str:
    """Return the name of a row, e.g. ``imagenet15-mpelu0.25-decay-eq22``.

    Args:
        activation: ``relu``, ``elu``, ``prelu0``, ``prelu0.25``, ``prelu1``, the same of ``mpelu``, or ``lrelu-a`` to
            ``lrelu-d``.
        decay: Whether alpha and beta decay (MPELU only).
        init: How the weights start.
    """
    parts = ("imagenet15", activation, "decay" if decay else "", "" if init == "gaussian" else init)
    return "-".join(part for part in parts if part)


def _row(
    activation: str,
    label: str,
    fields: dict[str, Any],
    *,
    init: Start = "gaussian",
    decay: bool = False,
    code: dict[str, Any] | None = None,
    targets: tuple[Target, ...] = (),
) -> Row:
    stds = {"gaussian": GAUSSIAN, "lsuv": None}.get(init, OTHER)
    return Row(
        name=name_of(activation, decay=decay, init=init),
        about=f"15 layers, BN, {label}{', decay of alpha and beta' if decay else ''}, {LABELS[init]}",
        paper=replace(PAPER, **fields, init=init, alpha_beta_weight_decay=float(decay)),
        code=BIASES | ({"layer_std": stds} if stds else {}) | (code or {}),
        cpu=CPU | ({"alpha_beta_weight_decay": CPU_DECAY} if decay else {}),
        factors=FACTORS,
        targets=targets,
    )


def _relu(init: Start) -> Row:
    where = {"activation": "ReLU", "init": IN_TABLE[init]}
    third = (Target("table03", {"activation": "ReLU"}, "top1"),) if init == "gaussian" else ()
    return _row("relu", "ReLU", {"activation": "relu"}, init=init, targets=(Target("table02", where, "top1"), *third))


def _prelu(alpha: float, init: Start) -> Row:
    gaussian = init == "gaussian"
    where = {
        "activation": "PReLU",
        "alpha_init": f"{alpha:g}" if gaussian else "0 / 0.25 / 1",
        "init": IN_TABLE[init],
    }
    return _row(
        f"prelu{alpha:g}",
        f"PReLU ({alpha:g})",
        {"activation": "prelu", "alpha": alpha},
        init=init,
        code={}
        if gaussian
        else {"init": "eq22", "init_mode": "fan_out", "layer_std": first_std(alpha, FAN_OUT) | OTHER_PRELU},
        targets=(Target("table02", where, "top1"),),
    )


def _elu(init: Start) -> Row:
    target = Target("table06", {"init": "LSUV"}, "top1")
    if init != "lsuv":
        target = Target("table02", {"activation": "ELU", "init": IN_TABLE[init]}, "top1")
    return _row("elu", "ELU", {"activation": "elu", "alpha": 1.0}, init=init, targets=(target,))


def _mpelu(alpha: float, init: Start, *, decay: bool) -> Row:
    where = {
        "activation": "MPELU",
        "alpha_init": f"{alpha:g}",
        "alpha_beta_decay": "yes" if decay else "no",
        "init": IN_TABLE.get(init, ""),
    }
    released: dict[str, Any] = {"alpha_beta_lr": 2.0}
    if init == "eq22":
        released["layer_std"] = first_std(alpha, FAN_IN) | OTHER
    if decay and init == "eq22" and alpha != 1.0:
        released["alpha_beta_weight_decay"] = 2.0
    return _row(
        f"mpelu{alpha:g}",
        f"MPELU ({alpha:g}, 1)",
        {"activation": "mpelu", "alpha": alpha, "beta": 1.0},
        init=init,
        decay=decay,
        code=released,
        targets=(Target("table06", {"init": "LSUV"}, "top1") if init == "lsuv" else Target("table02", where, "top1"),),
    )


def _lrelu(letter: str) -> Row:
    where = {"activation": f"LReLU {letter.upper()}"}
    return _row(
        f"lrelu-{letter}",
        f"LReLU {letter.upper()} ({SLOPES[letter]:g})",
        {"activation": "lrelu", "alpha": SLOPES[letter]},
        targets=(Target("table03", where, "top1"),),
    )


TABLE2: tuple[Row, ...] = (
    *(_relu(init) for init in ("gaussian", "msra")),
    *(_prelu(alpha, init) for alpha in STARTS["prelu"] for init in ("gaussian", "msra")),
    *(_elu(init) for init in ("gaussian", "eq22")),
    *(
        _mpelu(alpha, init, decay=decay)
        for alpha in STARTS["mpelu"]
        for decay in (False, True)
        for init in ("gaussian", "eq22")
    ),
)
TABLE3: tuple[Row, ...] = tuple(map(_lrelu, SLOPES))
TABLE6: tuple[Row, ...] = (_elu("lsuv"), _mpelu(1.0, "lsuv", decay=True))
ROWS = TABLE2 + TABLE3 + TABLE6
