"""A recipe: every choice that changes the numbers of a run, and nothing else. It imports no torch."""

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from mpelu.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """How one network is trained. None means: the value of the paper for that family of networks.

    Args:
        model: Family and depth, e.g. plain30, nopre164 ("mpelu models" lists them); a function of your own that
            returns a network, module:function or file.py:function; or a name that timm knows, where it is installed.
        activation: relu, lrelu, prelu, elu, spelu, mpelu or srelu.
        alpha: Start value of alpha (mpelu: 0.25 if not given; elu, spelu: 1), or slope (lrelu: 0.1, prelu: 0.25,
            srelu on the left: 0.2).
        beta: Start value of beta (mpelu: 1 if not given).
        width: Channels of the convolutions (plain nets: 16 if not given; nin, of the widest: 192).
        batch_norm: Batch normalization without scale and shift before each activation (plain nets only).
        dropout: Dropout probability after the hidden fully connected layers (plain nets only).
        model_options: Further options of the network, e.g. --model_options.shortcut B.
        init: Weights: eq22 (slope of the feeding activation), released (as in the authors' code), msra, xavier,
            gaussian, lsuv (orthonormal, scaled on the first batch), or default (torch's own); second_moment, critical
            or auto (exact for every activation); tailored (activations too, by depth).
        init_mode: Fan of the initialization: fan_in, fan_out or average.
        init_std: Standard deviation of the gaussian initialization.
        layer_std: Standard deviations of single parameters in the place of what init gives, by patterns of their names.
        layer_lr: Multipliers of the learning rates of single parameters, beside those below, likewise.
        data: digits (built in), cifar10, cifar100 (from the Hub), a folder with Parquet or official CIFAR files or one
            folder for each class, or module:function, which returns a data set of your own.
        preprocess: none, or gcn_zca: global contrast normalization and ZCA whitening, as NIN was trained on.
        resize: Scale every image to this height and width, in pixels, whatever its aspect.
        center: What is subtracted from the pixels: the mean of each channel, the mean image of the training set
            (the paper's ImageNet nets), or nothing.
        pixel_scale: std divides by the standard deviation of each channel; raw leaves the pixels as they are stored, 0
            to 255 (the paper's ImageNet nets).
        stream: Decode photographs while they are needed, for data that does not fit into memory: squash to 256 x 256
            (the paper's) or short side to 256 pixels, then a crop of 224, mirrored half of the time. off holds all
            images in memory.
        damaged: Of stream, an image that cannot be read is fatal, or skipped and counted.
        limit: Use the first so many training images only.
        augment: none, pad4 (pad 4, crop, flip), pad4-noflip, crop28 (28 pixel crop, flip) or crop14 (the same for 16
            pixel images); not given: pad4 for 32 pixel images, else none.
        epochs: Passes over the training images (plain: 38, nin: 307, residual nets: 200).
        batch_size: Images in a step, over all processes (plain: 64, others: 128).
        accumulate: Parts in which each process works on its images of a step, one after the other: less memory, and the
            gradient of the whole batch. Batch normalization sees each part by itself.
        sync_batch_norm: In training, batch normalization sees the images of all processes together; if not, each
            process its own, as in the paper's code. One process alone trains the same either way.
        lr: Learning rate of the weights (plain: 0.01, others: 0.1).
        schedule: step (lr / 10 at each milestone) or cosine (down to 0 at the end).
        milestones: Of the step schedule, as fractions of the epochs (plain: 0.133 and 0.8; residual nets: 0.405
            and 0.61, which is after 81 and 122 of 200; nin: 0.833).
        warmup_epochs: First epochs at warmup_lr (step), or of a linear rise (cosine).
        warmup_lr: Learning rate of the warm-up.
        momentum: Of SGD.
        nesterov: Nesterov momentum (the authors' residual code has it, the paper does not mention it).
        weight_decay: Of all parameters (plain: 5e-4, others: 1e-4).
        alpha_beta_lr: Multiplier of lr for alpha and beta.
        alpha_beta_weight_decay: Multiplier of weight_decay for alpha and beta.
        bias_lr: Multiplier of lr for biases.
        bias_weight_decay: Multiplier of weight_decay for biases.
        clip_norm: Clip the norm of the gradient to this; 0 is off.
        precision: fp32, or bf16 (autocast).
        compile: Compile the network with torch.compile.
        channels_last: Keep images with channels in the last dimension of memory.
    """

    model: str = "nopre29"
    activation: str = "mpelu"
    alpha: float | None = None
    beta: float | None = None
    width: int | None = None
    batch_norm: bool | None = None
    dropout: float | None = None
    model_options: dict[str, Any] | None = None
    init: Literal[
        "eq22",
        "released",
        "msra",
        "xavier",
        "gaussian",
        "lsuv",
        "default",
        "second_moment",
        "critical",
        "auto",
        "tailored",
    ] = "eq22"
    init_mode: Literal["fan_in", "fan_out", "average"] = "fan_in"
    init_std: float = 0.01
    layer_std: dict[str, float] | None = None
    layer_lr: dict[str, float] | None = None
    data: str = "digits"
    preprocess: Literal["none", "gcn_zca"] = "none"
    resize: int | None = None
    center: Literal["channel", "image", "none"] = "channel"
    pixel_scale: Literal["std", "raw"] = "std"
    stream: Literal["off", "squash", "short"] = "off"
    damaged: Literal["fatal", "skip"] = "fatal"
    limit: int | None = None
    augment: Literal["none", "pad4", "pad4-noflip", "crop28", "crop14"] | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    sync_batch_norm: bool = False
    lr: float | None = None
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] | None = None
    warmup_epochs: int = 0
    warmup_lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float | None = None
    alpha_beta_lr: float = 5.0
    alpha_beta_weight_decay: float = 1.0
    bias_lr: float = 1.0
    bias_weight_decay: float = 1.0
    clip_norm: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = True

    def __post_init__(self) -> None:
        if self.milestones is not None:
            object.__setattr__(self, "milestones", tuple(self.milestones))  # YAML has lists only
        problems = [
            f"{name} must be {wanted}, got {getattr(self, name)}"
            for name, (wanted, holds) in RANGES.items()
            if getattr(self, name) is not None and not holds(getattr(self, name))
        ]
        if problems:
            raise UsageError("; ".join(problems))


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


RANGES: dict[str, tuple[str, Any]] = {
    "alpha": ("a finite number", math.isfinite),
    "beta": ("> 0", _positive),
    "width": ("at least 1", _positive),
    "dropout": ("in [0, 1)", lambda value: 0 <= value < 1),
    "init_std": ("> 0", _positive),
    "layer_std": ("patterns with a number >= 0", lambda given: all(_not_negative(value) for value in given.values())),
    "layer_lr": ("patterns with a number >= 0", lambda given: all(_not_negative(value) for value in given.values())),
    "resize": ("at least 1", _positive),
    "limit": ("at least 1", _positive),
    "epochs": ("at least 1", _positive),
    "batch_size": ("at least 1", _positive),
    "accumulate": ("at least 1", _positive),
    "lr": ("> 0", _positive),
    "milestones": ("rising fractions in (0, 1)", lambda value: list(value) == sorted({v for v in value if 0 < v < 1})),
    "warmup_epochs": (">= 0", _not_negative),
    "warmup_lr": ("> 0", _positive),
    "momentum": ("in [0, 1)", lambda value: 0 <= value < 1),
    "weight_decay": (">= 0", _not_negative),
    "alpha_beta_lr": (">= 0", _not_negative),
    "alpha_beta_weight_decay": (">= 0", _not_negative),
    "bias_lr": (">= 0", _not_negative),
    "bias_weight_decay": (">= 0", _not_negative),
    "clip_norm": (">= 0", _not_negative),
}
"""What each field must be, beside its type."""

PLAIN = {"epochs": 38, "batch_size": 64, "lr": 0.01, "milestones": (100 / 750, 600 / 750), "weight_decay": 5e-4}
RESIDUAL = {"epochs": 200, "batch_size": 128, "lr": 0.1, "milestones": (0.405, 0.61), "weight_decay": 1e-4}
RESIDUAL_FAMILIES = ("resnet", "nonbottleneck", "preact", "nopre", "fig5a", "fig5b", "fig5c", "fig5e")
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "imagenet": PLAIN,
    "nin": {"epochs": 307, "batch_size": 128, "lr": 0.1, "milestones": (100 / 120,), "weight_decay": 1e-4},
    **dict.fromkeys((*RESIDUAL_FAMILIES, "own", "timm"), RESIDUAL),
}
"""The paper's values. Its lengths are 750k iterations of 64 images on ImageNet (37.5 epochs) for the plain nets, 120k
iterations of 128 images (307 epochs) for NIN, and 200 epochs for the residual nets. Networks that are not of the
catalog, and families without a row here, are trained as residual nets."""
ADDED = {
    "model_options": None,
    "layer_std": None,
    "layer_lr": None,
    "preprocess": "none",
    "resize": None,
    "center": "channel",
    "pixel_scale": "std",
    "stream": "off",
    "damaged": "fatal",
    "accumulate": 1,
    "sync_batch_norm": False,
}
"""Fields that older recipes lack, and the value with which they are the same."""


def resolve(recipe: Recipe, *, family: str, image_size: int) -> Recipe:
    """Fill in what was left to the family of the network and to the data, so that nothing is implicit any more."""
    defaults = FAMILY_DEFAULTS.get(family, RESIDUAL)
    filled = {name: value for name, value in defaults.items() if getattr(recipe, name) is None}
    if recipe.augment is None:
        filled["augment"] = "pad4" if image_size == 32 else "none"
    return dataclasses.replace(recipe, **filled)


def recipe_name(recipe: Recipe) -> str:
    """Return the name of the run folder before the hash: model, activation and initialization."""
    return re.sub(r"[^\w.-]+", "-", f"{recipe.model}-{recipe.activation}-{recipe.init}").lstrip("-.")


def recipe_hash(recipe: Recipe, data_sha256: str, model_sha256: str = "") -> str:
    """Return 8 hexadecimal digits that change with every field and with the content of the data, not its path.

    Args:
        recipe: A resolved one.
        data_sha256: Digest of the data.
        model_sha256: Digest of the file that a network of the user's is written in.
    """
    fields = dataclasses.asdict(recipe) | {"data": data_sha256}
    fields = {name: value for name, value in fields.items() if name not in ADDED or value != ADDED[name]}
    if model_sha256:
        fields["model"] = f"{recipe.model.rpartition(':')[2]} {model_sha256}"
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
