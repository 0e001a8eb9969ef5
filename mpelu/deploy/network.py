"""A trained network that goes out: its weights with its recipe, its data set without the images, and its result."""

import dataclasses
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from mpelu.data import AUGMENTATIONS, Split
from mpelu.data.photographs import FolderPhotographs
from mpelu.errors import UsageError
from mpelu.init import FoldReport, fold
from mpelu.models import OWN, family_of, source_sha256
from mpelu.train.network import hash_of, skeleton
from mpelu.train.recipe import Recipe
from mpelu.train.records import RESULT, read_metrics, read_result
from mpelu.train.supply import Data, Photographs

RUN_CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
FETCHES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "file")
"""Options of timm that load files of their own. The weights come from the export, so none of them is needed."""


@dataclass(frozen=True)
class Result:
    """How well a network does.

    Attributes:
        error_percent: Test error, of one training.
        images: Images that it was tested on.
        data: Name of their data set.
        seed: Of the training; None if that is not known.
        best_epoch: True if the epoch was chosen by this very test error, which then looks better than it is.
    """

    error_percent: float
    images: int
    data: str
    seed: int | None = None
    best_epoch: bool = False


@dataclass(frozen=True)
class Description:
    """All of a network but its weights.

    Attributes:
        recipe: How it was trained, with nothing left open; ``data`` is a name, never a folder.
        data: What it was trained on, without the images: classes, shapes, what is subtracted and divided by.
        recipe_hash: As in the name of the run folder.
        model_sha256: Digest of the file that a network of the user's is written in; "" for others.
        weights: ``last`` or ``best`` epoch.
        epoch: Its number.
        folded: True if :func:`mpelu.fold` was applied.
        result: None where it is not known.
        environment: What computed it; see :func:`mpelu.train.environment.describe_environment`.
    """

    recipe: Recipe
    data: Data
    recipe_hash: str
    model_sha256: str = ""
    weights: str = "last"
    epoch: int | None = None
    folded: bool = False
    result: Result | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of what the network is given."""
        channels, height, width = self.data.image_shape
        if isinstance(self.data, Photographs) or self.recipe.augment is None:
            return channels, height, width
        size = AUGMENTATIONS[self.recipe.augment].size
        return (channels, height, width) if size is None else (channels, size, size)


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, and all that is known about it."""

    net: nn.Module
    description: Description


def of_run(folder: Path, *, weights: str = "last") -> Network:
    """Take the network out of a run folder.

    Args:
        folder: What 'mpelu train' printed.
        weights: ``last`` or ``best`` epoch.

    Raises:
        UsageError: If ``weights`` is neither.
        DataError: If the folder is no run, no epoch of it was finished, or its data set cannot be read.
        CheckpointError: If the checkpoint is damaged or belongs to another model.
    """
    from mpelu.train.evaluation import load_trained

    trained = load_trained(folder, weights=weights)
    recipe, data = trained.recipe, trained.dataset
    description = Description(
        recipe=without_places(recipe, data.name),
        data=without_images(data),
        recipe_hash=hash_of(recipe, data),
        model_sha256=source_sha256(recipe.model) if family_of(recipe.model) == OWN else "",
        weights=weights,
        epoch=trained.epoch,
        result=_result(folder, trained.epoch, data, best=weights == "best"),
        environment=_environment(folder),
    )
    return Network(trained.net.eval(), description)


def built(description: Description, *, model: str | None = None) -> nn.Module:
    """Build the network of a description, with weights that mean nothing yet.

    No code of others is run unless ``model`` names it.

    Args:
        description: The description.
        model: Of a network that is a function of the user's: where this function is, as ``file.py:function``.

    Raises:
        UsageError: If such a network comes without ``model``, or another with it, or it cannot be built.
    """
    recipe = description.recipe
    if ":" in recipe.model:
        if model is None:
            raise UsageError(
                f"this network is a function of its author's ({recipe.model}), and code is not run unasked: get that "
                f"file, read it, and name it with model='file.py:{recipe.model.rpartition(':')[2]}' (--model)"
            )
        if description.model_sha256 and source_sha256(model) != description.model_sha256:
            warnings.warn(
                f"the file of {model} is not the one that was trained with (sha256 {source_sha256(model)[:12]}..., "
                f"wanted {description.model_sha256[:12]}...); the weights may mean something else there",
                RuntimeWarning,
                stacklevel=2,
            )
        recipe = dataclasses.replace(recipe, model=model)
    elif model is not None:
        raise UsageError(f"this network is {recipe.model}, which needs no code of its own; leave out model (--model)")
    given = sorted(set(recipe.model_options or {}) & set(FETCHES))
    if given:
        raise UsageError(f"model_options {', '.join(given)} would load further files, which is not done; remove them")
    net = skeleton(recipe, description.data)
    if description.folded:
        fold(net, torch.zeros(1, *description.input_shape))
    return net.eval()


def folded(network: Network) -> tuple[Network, FoldReport]:
    """Absorb the wrappers of tailored activations into the weights beside them, in place; see :func:`mpelu.fold`."""
    report = fold(network.net, torch.zeros(1, *network.description.input_shape))
    if not report.rows:
        return network, report
    return dataclasses.replace(network, description=dataclasses.replace(network.description, folded=True)), report


def without_images(data: Data) -> Data:
    """Return what is left of a data set for a network that goes out."""
    if isinstance(data, Photographs):
        none = FolderPhotographs((), torch.empty(0, dtype=torch.int64))
        return dataclasses.replace(data, listed=dataclasses.replace(data.listed, train=none, test=none))
    none_of_them = Split(data.train.images[:0].clone(), torch.empty(0, dtype=torch.int64))
    return dataclasses.replace(data, train=none_of_them, test=none_of_them)


def without_places(recipe: Recipe, data: str) -> Recipe:
    """Return a recipe that names no folder of the machine it was used on."""
    place, colon, function = recipe.model.rpartition(":")
    model = f"{Path(place).name}:{function}" if colon else recipe.model
    options = {name: value for name, value in (recipe.model_options or {}).items() if name not in FETCHES}
    return dataclasses.replace(recipe, data=data, model=model, model_options=options or None)


def _result(folder: Path, epoch: int, data: Data, *, best: bool) -> Result | None:
    """Read the test error after an epoch; a run that is not finished has it too."""
    row = next((row for row in read_metrics(folder) if row["epoch"] == str(epoch)), None)
    if row is None:
        return None
    number = re.fullmatch(r"seed(\d+)", folder.resolve().name)
    seed = int(number[1]) if number else None
    skipped = int(row.get("skipped_test_images") or 0)
    return Result(float(row["test_error_percent"]), len(data.test.labels) - skipped, data.name, seed, best)


def _environment(folder: Path) -> dict[str, Any]:
    if (folder / RESULT).exists():
        return dict(read_result(folder)["environment"])
    path = folder / ENVIRONMENT
    found = yaml.safe_load(path.read_text()) if path.exists() else {}
    return found if isinstance(found, dict) else {}
