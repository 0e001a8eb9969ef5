"""Alpha and beta of a run over its epochs, from what was watched, or else from its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mpelu.errors import DataError
from mpelu.report.signal import SIGNAL, read_signal
from mpelu.train import checkpoint
from mpelu.train.evaluation import load_trained
from mpelu.train.network import build
from mpelu.train.run import BEST, LAST


def learned(folder: Path) -> list[dict[str, Any]]:
    """Return alpha and beta of each activation at several points of training, in the form of watched steps.

    With ``signal.jsonl`` in the folder these are its steps; else the start, and the epochs of the checkpoints that are
    kept: the best, the last and the one before.

    Raises:
        DataError: If the folder is no run, no epoch of it was finished, or its network has no alpha and beta.
        CheckpointError: If a checkpoint is damaged.
    """
    if (folder / SIGNAL).exists():
        return read_signal(folder / SIGNAL)
    trained = load_trained(folder)
    start, _ = build(trained.recipe, trained.dataset, seed=0)  # alpha and beta do not depend on the seed
    paths = (folder / BEST, checkpoint.previous(folder / LAST), folder / LAST)
    states = {0: dict(start.state_dict())}
    for state in (checkpoint.load(path) for path in paths if path.exists()):
        states[state["epoch"]] = state["model"]
    steps = [
        {"step": epoch, "epoch": float(epoch), "records": _records(values)} for epoch, values in sorted(states.items())
    ]
    if not steps[0]["records"]:
        raise DataError(f"the network of {folder} has no activation with alpha and beta, so none were learned")
    return steps


def _records(state: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return a record for each activation, in the order of the modules."""
    names = [name.removesuffix(".alpha") for name in state if name.endswith(".alpha")]
    return [
        {
            "name": name,
            "kind": "activation",
            "alpha": state[f"{name}.alpha"].mean().item(),
            "beta": state[f"{name}.beta"].mean().item() if f"{name}.beta" in state else None,
        }
        for name in names
    ]
