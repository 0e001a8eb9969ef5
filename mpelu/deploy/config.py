"""``config.json``: everything about a network but its weights, as plain JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import mpelu
from mpelu.data import Dataset, Normalization, PhotographSet, Split, View
from mpelu.data.photographs import FolderPhotographs
from mpelu.deploy.network import Description, Result
from mpelu.errors import DataError, MpeluError
from mpelu.train.recipe import Recipe
from mpelu.train.supply import Data, Photographs

FORMAT = "mpelu network 1"


def to_config(description: Description) -> dict[str, Any]:
    """Return a description as plain values. A mean image is not in it: see :func:`mean_image`."""
    data = description.data
    return {
        "format": FORMAT,
        "mpelu": mpelu.__version__,
        "recipe_hash": description.recipe_hash,
        "recipe": dataclasses.asdict(description.recipe),
        "model_sha256": description.model_sha256,
        "folded": description.folded,
        "input_shape": list(description.input_shape),
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "classes": list(data.classes),
            **(_of_photographs(data) if isinstance(data, Photographs) else _of_dataset(data)),
        },
        "weights": description.weights,
        "epoch": description.epoch,
        "result": None if description.result is None else dataclasses.asdict(description.result),
        "environment": description.environment,
    }


def mean_image(description: Description) -> Tensor | None:
    """Return the mean image that is subtracted, on the scale of the data; None where each channel has one mean."""
    data = description.data
    if isinstance(data, Photographs):
        return data.normalization.mean if data.normalization.mean.shape[-1] > 1 else None
    return data.mean_image


def from_config(config: Mapping[str, Any], image: Tensor | None, *, where: str) -> Description:
    """Read what :func:`to_config` returned; no code is run and no file is read.

    Args:
        config: The plain values.
        image: The mean image, where there is one.
        where: What errors call the file.

    Raises:
        DataError: If it is no such config, or of a format that this version does not know.
    """
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise DataError(f"{where} must have the format {FORMAT!r}, got {found!r}; write it with 'mpelu export'")
    known = {field.name for field in dataclasses.fields(Recipe)}
    try:
        unknown = sorted(set(config["recipe"]) - known)
        if unknown:
            raise DataError(
                f"the recipe in {where} has fields that mpelu {mpelu.__version__} does not know "
                f"({', '.join(unknown)}); it was written by {config.get('mpelu')}: install that version"
            )
        return Description(
            recipe=Recipe(**config["recipe"]),
            data=_data(config["data"], image),
            recipe_hash=config["recipe_hash"],
            model_sha256=config["model_sha256"],
            weights=config["weights"],
            epoch=config["epoch"],
            folded=config["folded"],
            result=None if config["result"] is None else Result(**config["result"]),
            environment=config["environment"],
        )
    except MpeluError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"{where} is not a whole config ({reason}); export the network again") from error


def dumped(config: Mapping[str, Any]) -> str:
    """Return JSON with one line for each value on top and each field of the recipe."""
    return json.dumps(config, indent=2, allow_nan=False) + "\n"


def _of_dataset(data: Dataset) -> dict[str, Any]:
    return {
        "preprocess": data.preprocess,
        "image_shape": list(data.image_shape),
        "pixels": "0 to 1",
        "mean": "mean.safetensors" if data.mean_image is not None else list(data.mean),
        "channel_mean": list(data.mean),
        "std": list(data.std),
    }


def _of_photographs(data: Photographs) -> dict[str, Any]:
    whole = data.normalization.mean.shape[-1] > 1
    return {
        "view": dataclasses.asdict(data.view),
        "pixels": "0 to 255",
        "mean": "mean.safetensors" if whole else data.normalization.mean.flatten().tolist(),
        "std": data.normalization.std.flatten().tolist(),
    }


def _data(given: Mapping[str, Any], image: Tensor | None) -> Data:
    name, sha256, classes = given["name"], given["sha256"], tuple(given["classes"])
    labels = torch.empty(0, dtype=torch.int64)
    if "view" in given:
        none = FolderPhotographs((), labels)
        mean = torch.tensor(given["mean"]).view(3, 1, 1) if image is None else image
        std = torch.tensor(given["std"]).view(3, 1, 1)
        listed = PhotographSet(name, classes, none, none, sha256)
        return Photographs(listed, View(**given["view"]), Normalization(mean, std))
    channels, height, width = given["image_shape"]
    dtype = torch.uint8 if given["preprocess"] == "none" else torch.float16
    empty = Split(torch.empty(0, channels, height, width, dtype=dtype), labels)
    means, deviations = tuple(given["channel_mean"]), tuple(given["std"])
    if not len(means) == len(deviations) == channels:
        raise ValueError(f"{channels} channels, but {len(means)} means and {len(deviations)} standard deviations")
    return Dataset(name, classes, empty, empty, means, deviations, sha256, given["preprocess"], image)
