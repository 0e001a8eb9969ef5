"""Test a trained network again."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from mpelu.data import Dataset, evaluation_view, load, normalize
from mpelu.errors import DataError, UsageError
from mpelu.train import checkpoint
from mpelu.train.loop import batches_of
from mpelu.train.network import build, hash_of
from mpelu.train.recipe import Recipe
from mpelu.train.run import BEST, CONFIG, LAST

FILES = {"last": LAST, "best": BEST}


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found."""

    data: str
    images: int
    test_loss: float
    test_error_percent: float
    weights: str
    epoch: int
    images_per_second: float


def evaluate(folder: Path, *, weights: str = "last", data: str | None = None) -> Evaluation:
    """Load the network of a run and test it.

    Args:
        folder: The run folder.
        weights: ``last`` or ``best`` epoch.
        data: Another data set with the same classes and image shape; None is the run's own.

    Raises:
        UsageError: If ``weights`` is neither, or the other data set does not fit.
        DataError: If the folder is no run.
        CheckpointError: If the checkpoint is damaged or belongs to another model.
    """
    trained = load_trained(folder, weights=weights)
    net, recipe, trained_on = trained.net, trained.recipe, trained.dataset
    tested = trained_on if data is None else load(data, preprocess=recipe.preprocess, resize=recipe.resize)
    if recipe.preprocess != "none" and tested.sha256 != trained_on.sha256:
        raise UsageError(
            f"this network was trained on images preprocessed by {recipe.preprocess} with the statistics of "
            f"{trained_on.name}; {tested.name} would be preprocessed with its own. Leave out --data"
        )
    if tested.classes != trained_on.classes or tested.test.images.shape[1:] != trained_on.test.images.shape[1:]:
        raise UsageError(
            f"the net was trained on {trained_on.name} ({len(trained_on.classes)} classes, images "
            f"{tuple(trained_on.test.images.shape[1:])}); {tested.name} has {len(tested.classes)} classes and images "
            f"{tuple(tested.test.images.shape[1:])}"
        )
    assert recipe.augment is not None
    net.eval()
    loss, wrong = 0.0, 0
    started = time.perf_counter()
    with torch.inference_mode():
        for images, labels in batches_of(tested.test):
            view = normalize(evaluation_view(images, recipe.augment), trained_on.mean, trained_on.std)
            logits = net(view)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            wrong += int((logits.argmax(1) != labels).sum())
    count = len(tested.test.labels)
    return Evaluation(
        data=tested.name,
        images=count,
        test_loss=loss / count,
        test_error_percent=100.0 * wrong / count,
        weights=weights,
        epoch=trained.epoch,
        images_per_second=count / (time.perf_counter() - started),
    )


@dataclass(frozen=True)
class Trained:
    """The network of a run at the end of an epoch, with what it was trained on."""

    net: nn.Module
    recipe: Recipe
    dataset: Dataset
    epoch: int


def load_trained(folder: Path, *, weights: str = "last") -> Trained:
    """Build the network of a run folder and give it the weights of an epoch.

    Args:
        folder: The run folder.
        weights: ``last`` or ``best`` epoch.

    Raises:
        UsageError: If ``weights`` is neither.
        DataError: If the folder is no run, or no epoch of it was finished.
        CheckpointError: If the checkpoint is damaged or belongs to another model.
    """
    if weights not in FILES:
        raise UsageError(f"weights must be last or best, got {weights!r}")
    recipe = read_recipe(folder)
    dataset = load(recipe.data, preprocess=recipe.preprocess, resize=recipe.resize).limited(recipe.limit)
    net, _ = build(recipe, dataset, seed=0)
    path = folder / FILES[weights]
    if not path.exists():
        raise DataError(f"{path} is missing: no epoch of this run was finished; continue it with 'mpelu train'")
    state = checkpoint.load(path)
    wanted = hash_of(recipe, dataset)
    if state.get("hash") != wanted:
        raise checkpoint.CheckpointError(
            f"{path} belongs to recipe {state.get('hash')}, but {CONFIG} and the data beside it are recipe {wanted}; "
            f"put back the file of this run"
        )
    net.load_state_dict(state["model"])
    return Trained(net, recipe, dataset, state["epoch"])


def read_recipe(folder: Path) -> Recipe:
    """Read the resolved recipe of a run folder.

    Raises:
        DataError: If there is none, or it is not a recipe.
    """
    path = folder / CONFIG
    try:
        fields = yaml.safe_load(path.read_text())
        return Recipe(**fields)
    except FileNotFoundError:
        raise DataError(f"{folder} is not a run folder ({CONFIG} is missing); 'mpelu train' prints its name") from None
    except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a recipe ({reason}); run 'mpelu train' again to write it anew") from error
