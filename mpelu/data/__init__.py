"""Data sets as uint8 tensors, and their augmentation."""

from mpelu.data.augment import (
    AUGMENTATIONS,
    Augmentation,
    augment,
    evaluation_view,
    normalize,
    random_crop,
    random_flip,
)
from mpelu.data.catalog import CATALOG, describe, load
from mpelu.data.check import CheckReport, check
from mpelu.data.dataset import Dataset, Split

__all__ = [
    "AUGMENTATIONS",
    "CATALOG",
    "Augmentation",
    "CheckReport",
    "Dataset",
    "Split",
    "augment",
    "check",
    "describe",
    "evaluation_view",
    "load",
    "normalize",
    "random_crop",
    "random_flip",
]
