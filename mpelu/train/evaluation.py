"""Test a trained network again."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from mpelu.errors import DataError, UsageError
from mpelu.train import checkpoint
from mpelu.train.loop import sums_of, tested
from mpelu.train.network import hash_of, skeleton
from mpelu.train.recipe import Recipe
from mpelu.train.run import BEST, CONFIG, LAST
from mpelu.train.supply import Data, data_of, other_data, supply_of

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
    skipped_images: int = 0


def evaluate(folder: Path, *, weights: str = "last", data: str | None = None, workers: int = 0) -> Evaluation:
    """Load the network of a run and test it.

    Args:
        folder: The run folder.
        weights: ``last`` or ``best`` epoch.
        data: Another data set with the same classes and image shape, centred and scaled as the run's own; None is that.
        workers: Processes that decode photographs; 0 decodes in this one.

    Raises:
        UsageError: If ``weights`` is neither, or the other data set does not fit.
        DataError: If the folder is no run, or images cannot be read.
        CheckpointError: If the checkpoint is damaged or belongs to another model.
    """
    trained = load_trained(folder, weights=weights)
    shown = trained.dataset if data is None else other_data(trained.recipe, data, trained.dataset)
    return evaluate_trained(trained, shown, weights=weights, workers=workers)


def evaluate_trained(trained: "Trained", shown: Data, *, weights: str = "last", workers: int = 0) -> Evaluation:
    """Test a network on the images for testing of a data set.

    Args:
        trained: The network; it is left in evaluation mode.
        shown: What it was trained on, or what :func:`mpelu.train.supply.other_data` returns for it.
        weights: What the result says of them.
        workers: Processes that decode photographs; 0 decodes in this one.

    Raises:
        DataError: If images cannot be read.
    """
    device = torch.device("cpu")
    started = time.perf_counter()
    trained.net.eval()
    batches = supply_of(trained.recipe, shown, device=device, workers=workers).evaluation()
    found = tested(sums_of(trained.net, batches, device))
    return Evaluation(
        data=shown.name,
        images=found.images,
        test_loss=found.loss,
        test_error_percent=found.error_percent,
        weights=weights,
        epoch=trained.epoch,
        images_per_second=found.images / (time.perf_counter() - started),
        skipped_images=found.skipped,
    )


@dataclass(frozen=True)
class Trained:
    """The network of a run at the end of an epoch, with what it was trained on."""

    net: nn.Module
    recipe: Recipe
    dataset: Data
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
    dataset = data_of(recipe)
    net = skeleton(recipe, dataset)
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
