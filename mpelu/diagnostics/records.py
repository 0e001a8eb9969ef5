"""What a diagnosis consists of: a record for each step of a model, findings, and a verdict."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from mpelu.errors import DataError
from mpelu.report.words import strict_json, with_numbers

STATES = (
    "healthy",
    "vanishing",
    "exploding",
    "collapsing",
    "dead units",
    "dead gradient",
    "non-finite",
)
"""What a verdict may say, the last being the worst."""


@dataclass(frozen=True)
class Estimate:
    """A number that is expected, with its standard error."""

    value: float
    error: float

    def deviation(self, measured: float) -> float:
        """Return how many standard errors a measured value lies away."""
        distance = measured - self.value
        if distance == 0.0:
            return 0.0
        return distance / self.error if self.error > 0 else math.copysign(math.inf, distance)


@dataclass(frozen=True)
class LayerRecord:
    """What was measured at one node of the graph, in one forward and backward pass.

    None stands for what cannot be measured there (no gradient, one example, no weight) or is not predicted.
    """

    name: str
    """Of the node, as in :class:`mpelu.graph.Graph`."""
    kind: str
    """One of :data:`mpelu.graph.KINDS`."""
    op: str
    depth: int
    """Number of weights on the longest path from an input to this node, its own included."""
    shape: tuple[int, ...]
    """Of the output, with the batch."""
    mean: float
    second_moment: float
    """q, the mean square of the output."""
    channel_variance: float | None = None
    """Variance over the channels of their means over examples and positions."""
    correlation: float | None = None
    """Mean over pairs of different examples of their cosine, in [-1, 1]; not of activations and normalizations."""
    dead: float | None = None
    """Of an activation: share of channels or units whose slope is 0 for every entry that was looked at."""
    saturated: float | None = None
    """Of an activation: share of entries whose slope is below 1/100 of the steepest."""
    non_finite: float = 0.0
    """Share of the entries that are NaN or infinite."""
    gradient_norm: float | None = None
    """Euclidean norm of the gradient of the loss with respect to the output."""
    gradient_snr: float | None = None
    """Squared norm of the mean over examples of the gradient, over its variance over examples: 1 / N if it is noise.

    Not of activations and normalizations."""
    weight: str | None = None
    """Name of the parameter that the node multiplies with; the first of those that its weight is computed from, and the
    three norms below are of all of these together."""
    weight_norm: float | None = None
    weight_gradient_norm: float | None = None
    update_ratio: float | None = None
    """Norm of the step that the optimizer would take on the weight, over the norm of the weight; 0 of a frozen one."""
    predicted_second_moment: Estimate | None = None
    predicted_correlation: Estimate | None = None
    predicted_gradient_norm: Estimate | None = None
    """All three for this graph and the variances of its weights: forward from the input, backward from the output."""
    alpha: float | None = None
    """Of an activation with alpha and beta: the mean of alpha over channels."""
    beta: float | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where it starts and how fast it grows."""

    state: str
    """One of :data:`STATES`, but not healthy."""
    layer: str
    """Name of the node where it starts."""
    per_layer: float | None
    """Factor by which second moment or gradient norm change from weight to weight.

    Of a collapse it is that of 1 - cosine, and of residual growth that from sum to sum. None where it says nothing.
    """
    cause: str
    """In words."""
    advice: str
    """The one call that mends it, as code."""
    effect: str
    """What it is predicted to do, in words."""


@dataclass(frozen=True)
class Verdict:
    """The state of a network, and what is wrong with it, the worst first."""

    state: str
    findings: tuple[Finding, ...] = ()
    summary: str = ""
    """One sentence."""


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`mpelu.diagnose` returns; ``print`` shows it as a table with its verdict."""

    model: str
    """Name of the class."""
    records: tuple[LayerRecord, ...]
    """In execution order: inputs, weights, activations, norms, sums and outputs."""
    verdict: Verdict
    loss: float | None
    examples: int
    parameters: int
    singular_values: tuple[float, ...] = ()
    """Of the Jacobian of the outputs with respect to the inputs, one example, the largest first; () for large nets."""
    notes: tuple[str, ...] = field(default=())
    """What was left out and why."""

    def __getitem__(self, name: str) -> LayerRecord:
        """Return the record of a node."""
        return {record.name: record for record in self.records}[name]

    def __str__(self) -> str:
        from mpelu.diagnostics.text import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, as JSON has them."""
        return asdict(self)

    def to_json(self) -> str:
        """Return strict JSON; NaN and infinities are the words "NaN", "Infinity" and "-Infinity"."""
        return strict_json(self.to_dict())

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_dict` gave.

        Raises:
            DataError: If a field is missing or unknown.
        """
        try:
            records = tuple(_record(item) for item in found["records"])
            verdict = dict(found["verdict"])
            verdict["findings"] = tuple(Finding(**item) for item in verdict["findings"])
            rest = {key: value for key, value in found.items() if key not in ("records", "verdict")}
            rest["singular_values"] = tuple(rest.get("singular_values", ()))
            rest["notes"] = tuple(rest.get("notes", ()))
            return cls(records=records, verdict=Verdict(**verdict), **rest)
        except (KeyError, TypeError) as error:
            raise DataError(f"this is no diagnosis as to_json() writes it: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what :meth:`to_json` wrote.

        Raises:
            DataError: If it is something else.
        """
        try:
            found = json.loads(text)
        except ValueError as error:
            raise DataError(f"this is no JSON: {error}") from error
        return cls.from_dict(with_numbers(found))


def _record(item: Mapping[str, Any]) -> LayerRecord:
    values = dict(item)
    values["shape"] = tuple(values["shape"])
    for entry in fields(LayerRecord):
        if entry.name.startswith("predicted_") and values.get(entry.name) is not None:
            values[entry.name] = Estimate(**values[entry.name])
    return LayerRecord(**values)
