"""Predictions beside what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mpelu.diagnostics.backward import Backward
from mpelu.diagnostics.forward import Forward
from mpelu.diagnostics.measure import Observer
from mpelu.diagnostics.records import Estimate
from mpelu.diagnostics.spread import Sources, length
from mpelu.graph import Graph

SOURCES = 4
"""Of deviations, for each node of a graph: at most three are made on the way forward, and one on the way back."""


@dataclass(frozen=True)
class Prediction:
    """What is expected at a node; the meanings are those of :class:`mpelu.diagnostics.LayerRecord`."""

    second_moment: Estimate | None = None
    correlation: Estimate | None = None
    gradient_norm: Estimate | None = None


@dataclass(frozen=True)
class Predictions:
    """For each node, and the names of the nodes where a prediction began anew from what was measured."""

    of: Sequence[Prediction]
    forward_restarts: tuple[str, ...]
    backward_restarts: tuple[str, ...]


def predict(model: nn.Module, graph: Graph, observer: Observer) -> Predictions:
    """Predict second moments and correlations from the input on, and gradient norms from the output back.

    Mean field, for this graph and the variances, row sums and biases that its weights have; see
    :mod:`mpelu.diagnostics.spread` for the standard errors. A node whose law is not known, and a normalization by
    running statistics, is where the prediction begins anew, from what was measured there.

    Args:
        model: That of the graph, with the values that it was measured with.
        graph: Of the model.
        observer: Behind the forward and backward pass.
    """
    sources = Sources(SOURCES * len(graph.nodes))
    forward = Forward(model, graph, observer.measured, observer.units, sources)
    backward = Backward(graph, observer.measured, forward)
    found = []
    for node in graph.nodes:
        expected, returning = forward.expected[node.index], backward.returning[node.index]
        second_moment = correlation = gradient = None
        if expected.signal is not None and not expected.started and math.isfinite(expected.signal.second_moment):
            q = expected.signal.second_moment
            second_moment = Estimate(q, q * length(expected.square))
            if expected.signal.across is not None:
                correlation = Estimate(expected.signal.across, expected.correlation)
        if returning.square is not None and not returning.started and math.isfinite(returning.square):
            norm = math.sqrt(returning.square)
            gradient = Estimate(norm, norm * length(returning.deviation / 2))
        found.append(Prediction(second_moment, correlation, gradient))
    return Predictions(tuple(found), tuple(forward.restarts), tuple(backward.restarts))
