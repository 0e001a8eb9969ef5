"""ImageNet, plain nets of 30 and 52 layers: ELU and MPELU with and without BN, from two scales of weights, and which
activations converge from which fan.

Source:   Li et al., arXiv:1606.00305, sections 4.3 and 4.4 and Table 5; the authors' released Caffe files.
Target:   Table 5, top-1 error without BN: ELU 37.08, MPELU 36.49 from Eq. 22, and no learning from Gaussian(0.01);
          MPELU with BN: 44.28 from Gaussian(0.01), 42.96 from Eq. 22. The other nets of the text have no numbers.
Command:  mpelu train --recipe imagenet30-mpelu --scale cpu, mpelu reproduce table5, mpelu reproduce claim26
Duration: 750,000 steps of 64 images (here 760,722, which is 38 epochs), at scale cpu 192 on the digits and 632 on
          larger sets: "mpelu recipes" prints the measured time of a step times the steps. An H200 was not measured.

The text gives Eq. 22 for all weights; the released files give it to the convolutions only, and Gaussian weights to the
fully connected layers, with other standard deviations for ReLU than for the rest. fan_in, fan_out and average differ in
the first convolution most of all: it reads 147 numbers and feeds 3,136. Standard deviations of the code are meant for
its widths; narrow_std and entering_std say what gives a narrow net the same gains.

Scale cpu keeps the depth, the raw pixels less their mean image, the learning rate 0.01, momentum, decay and batches of
64. It shortens the width, the images, the number of steps, and with them the schedule, of which the last drop is left.
Dropout is off: a net that has no time to overfit would only learn more slowly.
"""

import math
from dataclasses import replace
from typing import Any, Literal

from mpelu.recipes.imagenet import BIASES, COMMON, SHORT, SHORTENED, WIDTH
from mpelu.recipes.row import Row, Target
from mpelu.train.recipe import Recipe

Fan = Literal["fan_in", "fan_out", "average"]
FANS: tuple[Fan, ...] = ("fan_in", "fan_out", "average")
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu", "init": "msra"},  # Eq. 22 with the slope 0
    "prelu": {"activation": "prelu", "alpha": 0.25},
    "elu": {"activation": "elu", "alpha": 1.0},
    "mpelu": {"activation": "mpelu", "alpha": 1.0, "beta": 1.0},
    "mpelu0.25": {"activation": "mpelu", "alpha": 0.25, "beta": 1.0},
}
LABELS = {
    "relu": "ReLU",
    "prelu": "PReLU (0.25)",
    "elu": "ELU",
    "mpelu": "MPELU (1, 1)",
    "mpelu0.25": "MPELU (0.25, 1)",
}
SLOPES = {"relu": 0.0, "prelu": 0.25, "elu": 1.0, "mpelu": 1.0, "mpelu0.25": 0.25}
"""alpha * beta at the start: the slope of Eq. 22."""

PAPER = Recipe(model="imagenet30", init="eq22", **COMMON)
FULLY_CONNECTED = {"fc1.weight": 0.005, "fc2.weight": 0.005, "fc3.weight": 0.01}
FULLY_CONNECTED_RELU = {"fc1.weight": 0.01, "fc2.weight": 0.01, "fc3.weight": 0.001}
RELEASED_RATES = {
    "mpelu": {"alpha_beta_lr": 1.0},
    "mpelu0.25": {"alpha_beta_lr": 2.0, "alpha_beta_weight_decay": 1.0},
}
FAN_IN = {"fc1.weight": 256 * 85, "fc2.weight": 4096, "fc3.weight": 4096}
"""Of the fully connected layers; 85 bins of the pyramid."""

CPU = {**SHORT, "model": "plain30", "dropout": 0.0}
FACTORS = (
    *SHORTENED,
    "38 epochs down to 8, first drop of the learning rate left out",
    "dropout 0.5 to 0",
    "the stem 7x7 with stride and pooling to 3x3 without; late maps keep their size instead of growing",
    "kept: depth, raw pixels less the mean image, lr 0.01, momentum 0.9, decay 5e-4, batch 64",
)


def connected_std(activation: str) -> dict[str, float]:
    """Return the standard deviations of the fully connected layers in the released 30-layer files."""
    return FULLY_CONNECTED_RELU if activation == "relu" else FULLY_CONNECTED


def released_std(activation: str, *, fan: Fan = "fan_in") -> dict[str, float]:
    """Return the standard deviations of the released 30-layer files where they are not those of Eq. 22."""
    if SLOPES[activation] != 0.25:  # the image counts as slope 1 here, and as that of the net in the files
        return connected_std(activation)
    fan_in, fan_out = 147, 3136
    count = {"fan_in": fan_in, "fan_out": fan_out, "average": (fan_in + fan_out) / 2}[fan]
    return {"conv1.weight": math.sqrt(2 / (count * (1 + SLOPES[activation] ** 2))), **connected_std(activation)}


def entering_std(activation: str, *, fan: Fan, fan_in: int) -> float:
    """Return the std of a narrow net's first convolution with which its trunk sees what the paper's trunk sees.

    In the paper's net fan_out and average are smaller than fan_in in three convolutions: 64 x 7 x 7 outputs against
    3 x 7 x 7 inputs, and twice 2 to 1. A net of one width has only the first, and that to another degree.

    Args:
        activation: A key of :data:`SLOPES`.
        fan: Of the paper's net.
        fan_in: Of the narrow net's first convolution.
    """
    ratio = {"fan_in": 1.0, "fan_out": 3136 / 147 * 2 * 2, "average": (1 + 3136 / 147) / 2 * 1.5 * 1.5}[fan]
    return math.sqrt(2 / (fan_in * (1 + SLOPES[activation] ** 2) * ratio))


def narrow_std(activation: str, *, width: int = WIDTH) -> dict[str, float]:
    """Return the released stds of the fully connected layers at the gains that they have in the paper's net.

    Args:
        activation: ``relu`` has its own; every other name gives those of the other files.
        width: Of the plain net; its fully connected layers read 21 and 8 times as many numbers.
    """
    fans = {"fc1.weight": 21 * width, "fc2.weight": 8 * width, "fc3.weight": 8 * width}
    return {name: std * math.sqrt(FAN_IN[name] / fans[name]) for name, std in connected_std(activation).items()}


def name_of(activation: str, *, init: str = "eq22", batch_norm: bool = False, fan: Fan = "fan_in") -> str:
    """Return the name of a row of the 30-layer net."""
    parts = ("imagenet30", activation, "bn" if batch_norm else "", "" if init == "eq22" else init)
    return "-".join((*(part for part in parts if part), *(() if fan == "fan_in" else (fan.replace("_", "-"),))))


def _table5(activation: str, *, init: Literal["gaussian", "eq22"], batch_norm: bool) -> Row:
    learns = init == "eq22" or batch_norm
    where = {
        "activation": "ELU" if activation == "elu" else "MPELU(1,1) no decay",
        "BN": "yes" if batch_norm else "no",
        "init": "Eq. 22" if init == "eq22" else "Gaussian",
    }
    start = "Eq. 22" if init == "eq22" else "Gaussian(0.01)"
    return Row(
        name=name_of(activation, init=init, batch_norm=batch_norm),
        about=f"30 layers, {LABELS[activation]}, {'BN' if batch_norm else 'no BN'}, {start}",
        paper=replace(
            PAPER,
            **ACTIVATIONS[activation] | {"init": init},
            batch_norm=batch_norm,
            dropout=None if batch_norm else 0.5,
        ),
        code=_code(activation, init),
        cpu=CPU,
        factors=FACTORS,
        targets=(Target("table05", where, "top1"),) if learns else (Target("table05", where, "outcome"),),
    )


def _code(activation: str, init: str = "eq22", fan: Fan = "fan_in") -> dict[str, Any]:
    stds = {name: FULLY_CONNECTED[name] for name in ("fc1.weight", "fc2.weight")}
    if init != "gaussian":
        stds = released_std(activation, fan=fan)
    return {**BIASES, "layer_std": stds} | RELEASED_RATES.get(activation, {})


def _fan(activation: str, fan: Fan) -> Row:
    return Row(
        name=name_of(activation, fan=fan),
        about=f"30 layers, {LABELS[activation]}, no BN, Eq. 22 with {fan}",
        paper=replace(PAPER, **ACTIVATIONS[activation], init_mode=fan, batch_norm=False, dropout=0.5),
        code=_code(activation, fan=fan),
        cpu=CPU,
        factors=FACTORS,
    )


def _elu(depth: int, init: Literal["eq22", "lsuv"]) -> Row:
    start = {"eq22": "Eq. 22", "lsuv": "LSUV"}[init]
    return Row(
        name=f"imagenet{depth}-elu" + ("" if init == "eq22" else f"-{init}"),
        about=f"{depth} layers, ELU, no BN, {start}",
        paper=replace(
            PAPER, **ACTIVATIONS["elu"] | {"init": init}, model=f"imagenet{depth}", batch_norm=False, dropout=0.5
        ),
        code=_code("elu") if init == "eq22" else BIASES,
        cpu={**CPU, "model": f"plain{depth}"},
        factors=FACTORS,
    )


ROWS: tuple[Row, ...] = (
    *(
        _table5(activation, init=init, batch_norm=batch_norm)
        for batch_norm in (False, True)
        for init in ("gaussian", "eq22")
        for activation in ("elu", "mpelu")
    ),
    *(_fan(activation, fan) for activation in ("relu", "prelu") for fan in FANS),
    *(_fan(activation, fan) for activation in ("elu", "mpelu") for fan in FANS if fan != "fan_in"),
    _fan("mpelu0.25", "fan_in"),  # a released file of which the paper says nothing
    _elu(30, "lsuv"),
    _elu(52, "eq22"),
    _elu(52, "lsuv"),
)
