"""Classes of images, in batches; what cannot be read is said, and the rest goes on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mpelu.deploy import images
from mpelu.deploy.network import Network, of_run
from mpelu.deploy.pretrained import CONFIG, load
from mpelu.errors import DataError, UsageError

BATCH = 64


@dataclass(frozen=True)
class Guess:
    """A class, and how much of the softmax falls on it."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """Of one image: the most probable classes, best first; or why it could not be read."""

    image: str
    top: tuple[Guess, ...] = ()
    error: str | None = None


def open_network(source: str, *, weights: str | None = None, model: str | None = None) -> Network:
    """Load the network of a run, of an exported folder, or of the Hugging Face Hub.

    Args:
        source: A run folder; a folder that ``mpelu export`` wrote, or the ``model.safetensors`` in it; ``owner/name``.
        weights: Of a run, ``last`` (if None) or ``best`` epoch.
        model: Of an export whose network is a function of its author's: where that function is.

    Raises:
        UsageError: If the weights are not those of the export, or ``model`` is missing or given for a run.
        DataError: If it is nothing of all that, or damaged.
        CheckpointError: If the checkpoint of a run is damaged.
    """
    if is_run(Path(source)):
        if model is not None:
            raise UsageError("a run knows its own network: --model is for what was exported; leave it out")
        return of_run(Path(source), weights=weights or "last")
    network = load(source, model=model)
    if weights not in (None, network.description.weights):
        raise UsageError(
            f"{source} holds the weights of the {network.description.weights} epoch, not of the {weights} one; leave "
            f"out --weights, or give the run"
        )
    return network


def is_run(folder: Path) -> bool:
    """Return whether a folder is to be read as that of a run."""
    return folder.is_dir() and not (folder / CONFIG).is_file()


def predict(network: Network, sources: Iterable[str], *, top: int = 5, batch: int = BATCH) -> Iterator[Prediction]:
    """Yield the most probable classes of each image, in order.

    Images are decoded, turned upright, resized and cut as the network's own test images: see
    :func:`mpelu.deploy.images.decode` and :func:`mpelu.deploy.images.pixels`.

    Args:
        network: The network.
        sources: Paths, or ``-`` for the bytes on stdin.
        top: How many classes; all of them if there are fewer.
        batch: Images that are computed together.

    Raises:
        UsageError: If ``top`` or ``batch`` is below 1, or the network takes images that were whitened.
        DataError: If the network does not return a number for each class.
    """
    if top < 1 or batch < 1:
        raise UsageError(f"--top and --batch must be at least 1, got {top} and {batch}")
    images.refuse_whitened(network.description)
    for part in _parts(sources, batch):
        yield from _of_batch(network, part, top)


def _parts(sources: Iterable[str], size: int) -> Iterator[list[str]]:
    part: list[str] = []
    for source in sources:
        part.append(source)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _of_batch(network: Network, part: list[str], top: int) -> Iterator[Prediction]:
    squares, errors = [], {}
    for place, source in enumerate(part):
        try:
            squares.append(images.pixels(images.decode(images.read(source)), network.description))
        except DataError as error:
            errors[place] = str(error)
    rows = iter(_tops(network, squares, top)) if squares else iter(())
    for place, source in enumerate(part):
        yield Prediction(source, error=errors[place]) if place in errors else Prediction(source, next(rows))


def _tops(network: Network, squares: list[images.Pixels], top: int) -> list[tuple[Guess, ...]]:
    classes = network.description.data.classes
    with torch.inference_mode():
        logits = network.net(images.inputs(squares, network.description))
    if logits.shape != (len(squares), len(classes)):
        raise DataError(
            f"the network must return a number for each of the {len(classes)} classes, shape ({len(squares)}, "
            f"{len(classes)}), got {tuple(logits.shape)}; give the network that was trained"
        )
    values, indices = logits.float().softmax(1).topk(min(top, len(classes)))
    return [
        tuple(Guess(classes[index], index, value) for value, index in zip(*row, strict=True))
        for row in zip(values.tolist(), indices.tolist(), strict=True)
    ]
