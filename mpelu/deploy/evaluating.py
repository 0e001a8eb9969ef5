"""Test a network again, from its run or from an export."""

from pathlib import Path

from mpelu.deploy.predicting import open_network
from mpelu.deploy.pretrained import CONFIG, WEIGHTS
from mpelu.errors import DataError, UsageError
from mpelu.train import evaluation
from mpelu.train.evaluation import Evaluation, Trained
from mpelu.train.supply import other_data


def evaluate(
    source: Path, *, weights: str | None = None, data: str | None = None, model: str | None = None, workers: int = 0
) -> Evaluation:
    """Test a network.

    Args:
        source: A run folder, or a folder that ``mpelu export`` wrote.
        weights: Of a run, ``last`` (if None) or ``best`` epoch.
        data: A data set with the same classes and image shape, centred and scaled as the network's own. An export
            needs one, because it holds no images; of a run, None is its own.
        model: As for :func:`mpelu.from_pretrained`.
        workers: Processes that decode photographs; 0 decodes in this one.

    Raises:
        UsageError: If the data set does not fit, or an export comes without one.
        DataError: If the folder holds no network, or images cannot be read.
        CheckpointError: If the checkpoint of a run is damaged.
    """
    if workers < 0:
        raise UsageError(f"--workers must be at least 0, got {workers}")
    if source.is_file() and source.name != WEIGHTS:
        raise DataError(f"{source} is a file; give the folder of a run, or one that 'mpelu export' wrote")
    if not (source / CONFIG).is_file() and source.name != WEIGHTS:
        return evaluation.evaluate(source, weights=weights or "last", data=data, workers=workers)
    network = open_network(str(source), weights=weights, model=model)
    description = network.description
    if data is None:
        raise UsageError(
            f"{source} is an export, which holds no images: name those to test with, --data {description.data.name}"
        )
    shown = other_data(description.recipe, data, description.data)
    trained = Trained(network.net, description.recipe, shown, description.epoch or 0)
    return evaluation.evaluate_trained(trained, shown, weights=description.weights, workers=workers)
