"""Statistics of pre-activations by layer, as in Tables 7 and 8 of the paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpelu.diagnostics.linearization import BOUNDS, threshold
from mpelu.diagnostics.text import number_text, rows_text
from mpelu.diagnostics.untouched import untouched
from mpelu.errors import UsageError
from mpelu.graph import Example, Graph, Node, read, run

PAPER_LAYERS = (1, 7, 14, 20, 27)
"""The convolutions of the 30-layer network that the paper's tables show."""


@dataclass(frozen=True)
class Distribution:
    """The outputs of one weight, over examples, channels and positions."""

    layer: str
    number: int
    """Position among the weights in order of execution, from 1."""
    mean: float
    variance: float
    thresholds: tuple[float, ...]
    above: tuple[float, ...]
    """Share of the outputs above each threshold."""

    @property
    def gaussian(self) -> tuple[float, ...]:
        """What ``above`` would be for N(mean, variance)."""
        sigma = math.sqrt(self.variance)
        if sigma == 0.0:
            return tuple(float(self.mean > limit) for limit in self.thresholds)
        return tuple(0.5 * math.erfc((limit - self.mean) / (sigma * math.sqrt(2.0))) for limit in self.thresholds)


def distributions(
    model: nn.Module,
    example: Example,
    *,
    layers: Sequence[int | str] | None = None,
    thresholds: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[Distribution, ...]:
    """Measure mean, variance, and the share above thresholds, of the output of each weight.

    Args:
        model: Any module; nothing about it changes. It runs in training mode.
        example: A batch, as for :func:`mpelu.diagnose`.
        layers: Names of weights, or their positions in order of execution, from 1, such as :data:`PAPER_LAYERS`; None
            is all.
        thresholds: None is those of Table 8 for alpha = beta = 1: -0.1414, -1, -2 and -3, above which the residual of
            the linearization is below 0.01, 0.5, 2 and 4.5 (Eq. 27, see :func:`~.linearization.threshold`).
        seed: Of dropout.

    Raises:
        UsageError: If there is no such layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512))
        >>> [(found.number, found.layer) for found in distributions(model, torch.randn(32, 64))]
        [(1, '0'), (2, '2')]
    """
    limits = tuple(map(threshold, BOUNDS)) if thresholds is None else tuple(thresholds)
    found: list[Distribution] = []
    with untouched(model, training=True, seed=seed), torch.no_grad():
        graph = read(model, example)
        numbers = _numbers(graph, layers)

        def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            if node.index in numbers:
                y = output.detach().double()
                above = tuple((y > limit).double().mean().item() for limit in limits)
                variance = y.var(correction=0).item()
                number = numbers[node.index]
                found.append(Distribution(node.name, number, y.mean().item(), variance, limits, above))

        run(model, example, graph, visit)
    return tuple(found)


def _numbers(graph: Graph, layers: Sequence[int | str] | None) -> dict[int, int]:
    """Return the number of each weight that is asked for, by the index of its node."""
    all_numbers = {node.index: number for number, node in enumerate(graph.weights, start=1)}
    if layers is None:
        return all_numbers
    names = {node.name: node.index for node in graph.weights} | {number: index for index, number in all_numbers.items()}
    unknown = [str(layer) for layer in layers if layer not in names]
    if unknown:
        raise UsageError(
            f"no weight {', '.join(unknown)}; there are {len(all_numbers)}: "
            f"{', '.join(node.name for node in graph.weights)}"
        )
    return {names[layer]: all_numbers[names[layer]] for layer in layers}


def distribution_table(found: Sequence[Distribution], width: int | None = None) -> str:
    """Return distributions as text; beside each share in percent stands what a Gaussian would have."""
    head = ["layer", "mean", "variance"]
    if found:
        head += [f"y>{limit:.4g}" for limit in found[0].thresholds]
    rows = [
        [
            each.layer,
            number_text(each.mean),
            number_text(each.variance),
            *(
                f"{100 * share:.1f} ({100 * normal:.1f})"
                for share, normal in zip(each.above, each.gaussian, strict=True)
            ),
        ]
        for each in found
    ]
    note = "percent of the outputs above a threshold (of a Gaussian with this variance)"
    return f"{note}\n{rows_text(head, rows, width)}"
