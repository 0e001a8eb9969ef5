"""Trained networks in use: answers for images, files for other programs, folders to share."""

from mpelu.deploy.evaluating import evaluate
from mpelu.deploy.exporting import Export, export
from mpelu.deploy.network import Description, Network, Result
from mpelu.deploy.predicting import Guess, Prediction, open_network, predict
from mpelu.deploy.pretrained import from_pretrained, push_to_hub, save_pretrained

__all__ = [
    "Description",
    "Export",
    "Guess",
    "Network",
    "Prediction",
    "Result",
    "evaluate",
    "export",
    "from_pretrained",
    "open_network",
    "predict",
    "push_to_hub",
    "save_pretrained",
]
