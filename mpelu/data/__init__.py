"""Data sets in memory with their augmentation, and streams of photographs from disk."""

from mpelu.data.augment import (
    AUGMENTATIONS,
    Augmentation,
    augment,
    evaluation_view,
    normalize,
    random_crop,
    random_flip,
)
from mpelu.data.catalog import CATALOG, PREPROCESSINGS, Entry, describe, find_photographs, load
from mpelu.data.check import CheckReport, check, check_photographs
from mpelu.data.dataset import Dataset, Decoded, Source, Split
from mpelu.data.inputs import evaluation_inputs, training_inputs
from mpelu.data.photographs import PhotographSet, open_photographs
from mpelu.data.stream import Batch, Stream
from mpelu.data.survey import Normalization, Survey, normalization, training_survey
from mpelu.data.view import View

__all__ = [
    "AUGMENTATIONS",
    "CATALOG",
    "PREPROCESSINGS",
    "Augmentation",
    "Batch",
    "CheckReport",
    "Dataset",
    "Decoded",
    "Entry",
    "Normalization",
    "PhotographSet",
    "Source",
    "Split",
    "Stream",
    "Survey",
    "View",
    "augment",
    "check",
    "check_photographs",
    "describe",
    "evaluation_inputs",
    "evaluation_view",
    "find_photographs",
    "load",
    "normalization",
    "normalize",
    "open_photographs",
    "random_crop",
    "random_flip",
    "training_inputs",
    "training_survey",
]
