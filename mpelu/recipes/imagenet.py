"""What the plain ImageNet nets of the paper have in common, whatever their depth: images, steps, rates and decay."""

from typing import Any

COMMON: dict[str, Any] = {
    "data": "imagenet",
    "center": "image",
    "pixel_scale": "raw",
    "stream": "squash",
    "augment": "none",  # crops and flips are those of the stream
    "epochs": 38,  # 750,000 steps are 37.5
    "batch_size": 64,
    "lr": 0.01,
    "schedule": "step",
    "milestones": (100 / 750, 600 / 750),
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "alpha_beta_lr": 5.0,
    "alpha_beta_weight_decay": 0.0,
}
"""Fields of a recipe, as the text of the paper has them."""
BIASES = {"bias_lr": 2.0, "bias_weight_decay": 0.0}
"""What the released files have instead."""
WIDTH = 16
SHORT: dict[str, Any] = {
    "width": WIDTH,
    "resize": 16,
    "limit": 5000,
    "stream": "off",
    "epochs": 8,
    "milestones": (0.8,),
}
"""What scale cpu changes besides the network."""
SHORTENED = (
    "width 64 to 256 and 4096 down to 16 and 128",
    "images 224 down to 16 pixels, 1.28 million of them down to 5,000, without crops and flips",
)
"""The first of it in words."""
