r"""The residual of the linearization of MPELU, section 4.4 of the paper: how far a net is from what Eq. 22 assumes.

Eq. 15 takes the negative side of MPELU for the line :math:`\alpha \beta y`. What that leaves out, Eq. 14, is

.. math:: R_1(y) = \alpha (e^{\beta y} - 1 - \beta y) = \tfrac12 \alpha \beta^2 e^{\beta \xi} y^2, \quad y < \xi < 0

so that :math:`|R_1(y)| \le \tfrac12 |\alpha| \beta^2 y^2` (Eq. 23).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mpelu.diagnostics.text import number_text, percent_text, rows_text
from mpelu.diagnostics.untouched import untouched
from mpelu.errors import UsageError
from mpelu.graph import Example, Node, read, run

BOUNDS = (0.01, 0.5, 2.0, 4.5)
"""Table 8 counts the units whose residual is bounded by these: for alpha = beta = 1, y > -0.1414, -1, -2 and -3."""


def remainder(y: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    r"""Return :math:`R_1(y) = \alpha (e^{\beta y} - 1 - \beta y)` for y <= 0 (Eq. 14), and 0 for y > 0.

    Args:
        y: Pre-activations, any shape.
        alpha: Of MPELU, a number or a tensor that broadcasts with y; so is beta.

    Example:
        >>> [round(value, 4) for value in remainder(torch.tensor([-1.0, -2.0, -3.0, 1.0]), 1.0, 1.0).tolist()]
        [0.3679, 1.1353, 2.0498, 0.0]
    """
    z = (beta * y).clamp(max=0.0)
    # close to 0 the difference loses its digits, and the series has them: its next term is z / 5 of the last
    series = z * z * (0.5 + z * (1 / 6 + z * (1 / 24 + z / 120)))
    return alpha * torch.where(z > -0.02, series, torch.expm1(z) - z)


def remainder_bound(y: float, alpha: float, beta: float) -> float:
    r"""Return what bounds the remainder, :math:`\tfrac12 |\alpha| \beta^2 y^2` for y < 0 (Eqs. 23-26).

    Example:
        >>> [remainder_bound(y, alpha=1.0, beta=1.0) for y in (-3.0, -2.0, -1.0)]
        [4.5, 2.0, 0.5]
    """
    return 0.5 * abs(alpha) * beta**2 * min(y, 0.0) ** 2


def threshold(bound: float, alpha: float = 1.0, beta: float = 1.0) -> float:
    r"""Return the y above which the remainder is below a bound r, :math:`-\sqrt{2 r / (|\alpha| \beta^2)}` (Eq. 27).

    Example:
        >>> round(threshold(0.01), 4), threshold(4.5)
        (-0.1414, -3.0)
    """
    curvature = abs(alpha) * beta**2
    return -math.sqrt(2.0 * bound / curvature) if curvature > 0 else -math.inf


@dataclass(frozen=True)
class Residual:
    """How well the line stands for the negative side of one activation, over the inputs that it got."""

    layer: str
    alpha: float
    """Mean over channels; so is beta."""
    beta: float
    sigma: float
    """Root of the mean square of the inputs."""
    bounds: tuple[float, float, float]
    """Of the remainder at -3 sigma, -2 sigma and -sigma (Eqs. 24-26), for the mean alpha and beta."""
    promised: float
    """Share of the inputs for which Eq. 27, channel by channel, promises a remainder below ``bound``."""
    below: float
    """Share of the inputs whose remainder is below ``bound``."""
    largest: float
    """The largest remainder, without its sign; ``mean`` is the mean."""
    mean: float
    energy: float
    """E[f(y)^2] over what the line gives instead, E[y^2 for y > 0, (alpha beta y)^2 else]: the exact gain of Eq. 18."""
    histogram: tuple[float, ...]
    """Share of the inputs with a remainder from each of ``edges`` up to the next; the last has no end."""
    edges: tuple[float, ...]


def residuals(
    model: nn.Module, example: Example, *, bound: float = 0.01, edges: tuple[float, ...] = (0.0, *BOUNDS), seed: int = 0
) -> tuple[Residual, ...]:
    """Measure the residual of the linearization in every MPELU of a model, and in what is one: ELU and SPELU.

    Args:
        model: Any module; nothing about it changes. It runs in training mode.
        example: A batch, as for :func:`mpelu.diagnose`.
        bound: r of Eq. 27; the paper's is 0.01 (Eq. 28).
        edges: Of the histogram of the remainder, without its sign; rising, the first is 0.
        seed: Of dropout.

    Returns:
        For each such activation, in order of execution. ReLU, which is linear on its negative side, is none.

    Raises:
        UsageError: If the edges do not rise from 0, or no activation is an MPELU.

    Example:
        >>> from mpelu.nn import MPELU
        >>> found = residuals(MPELU(1, 1.0, 1.0), torch.tensor([[-3.0], [-1.0], [-0.1], [2.0]]))
        >>> found[0].promised, found[0].below, round(found[0].largest, 4)
        (0.5, 0.5, 2.0498)
    """
    if edges[0] != 0.0 or any(low >= high for low, high in pairwise(edges)):
        raise UsageError(f"edges must rise from 0, got {edges}")
    found: list[Residual] = []
    with untouched(model, training=True, seed=seed), torch.no_grad():
        graph = read(model, example)
        curved = {node.index: parameters for node in graph.nodes if (parameters := mpelu_of(node)) is not None}

        def visit(node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            if node.index in curved:
                found.append(_residual(node, inputs[0], *curved[node.index], bound, edges))

        run(model, example, graph, visit)
    if not found:
        raise UsageError(f"no activation of {type(model).__name__} is an MPELU or ELU, so that there is no residual")
    return tuple(found)


def mpelu_of(node: Node) -> tuple[Tensor, Tensor] | None:
    """Return alpha and beta, float64 of shape (channels,) or (1,), of an activation that is an MPELU with beta > 0.

    They are found from its values: f(-2) / f(-1) is 1 + exp(-beta), and f(-3) tells whether it is one.
    """
    if node.kind != "activation" or node.function is None or node.options.get("random"):
        return None
    channel_dim = node.options.get("channel_dim")
    channels = 1 if channel_dim is None else node.shape[channel_dim]
    points = torch.tensor([-1.0, -2.0, -3.0, 1.5], dtype=torch.float64, device=_device(node))
    y = points[:, None].expand(4, channels).clone()
    one, two, three, positive = _values(node.function, y)
    beta = -torch.log(two / one - 1.0)
    alpha = one / torch.expm1(-beta)
    is_flat = one == 0.0
    beta, alpha = torch.where(is_flat, 1.0, beta), torch.where(is_flat, 0.0, alpha)
    # 1e-6 stands between the 1e-12 that cancellation leaves at beta = 0.01, and any other smooth function
    right = torch.isclose(alpha * torch.expm1(-3.0 * beta), three, rtol=1e-6, atol=1e-12) & (positive == 1.5)
    return (alpha, beta) if bool(right.all()) and bool((beta > 1e-6).all()) and not bool(is_flat.all()) else None


def _device(node: Node) -> torch.device:
    own = [] if node.source is None else list(node.source.parameters())
    return own[0].device if own else torch.device("cpu")


def _values(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    with torch.no_grad():
        return function(y)


def _residual(node: Node, y: Tensor, alpha: Tensor, beta: Tensor, bound: float, edges: tuple[float, ...]) -> Residual:
    channel_dim = node.options.get("channel_dim")
    sizes = [1] * y.dim()
    if channel_dim is not None:
        sizes[channel_dim] = -1
    y, of_alpha, of_beta = y.detach().double(), alpha.reshape(sizes).to(y.device), beta.reshape(sizes).to(y.device)
    missing = remainder(y, of_alpha, of_beta)
    line = torch.where(y > 0, y, of_alpha * of_beta * y)
    limits = torch.tensor(edges[1:], dtype=torch.float64, device=y.device)
    counts = torch.bucketize(missing.abs().flatten(), limits, right=True).bincount(minlength=len(edges))
    sigma = y.square().mean().sqrt().item()
    mean_alpha, mean_beta = alpha.mean().item(), beta.mean().item()
    promised = (y > 0) | (0.5 * of_alpha.abs() * of_beta.square() * y.square() < bound)
    return Residual(
        layer=node.name,
        alpha=mean_alpha,
        beta=mean_beta,
        sigma=sigma,
        bounds=(
            remainder_bound(-3.0 * sigma, mean_alpha, mean_beta),
            remainder_bound(-2.0 * sigma, mean_alpha, mean_beta),
            remainder_bound(-sigma, mean_alpha, mean_beta),
        ),
        promised=promised.double().mean().item(),
        below=(missing.abs() < bound).double().mean().item(),
        largest=missing.abs().max().item(),
        mean=missing.abs().mean().item(),
        energy=((line + missing).square().mean() / line.square().mean()).item(),
        histogram=tuple((counts / missing.numel()).tolist()),
        edges=edges,
    )


def residual_table(found: tuple[Residual, ...], width: int | None = None) -> str:
    """Return residuals as text: the histogram of the remainder in percent, and what it does to E[f(y)^2]."""
    edges = found[0].edges
    bins = [f"<{edge:g}" for edge in edges[1:]] + [f">{edges[-1]:g}"]
    head = ["activation", "alpha", "beta", "sigma", *bins, "largest", "E[f^2]/line"]
    rows = [
        [
            each.layer,
            number_text(each.alpha),
            number_text(each.beta),
            number_text(each.sigma),
            *(percent_text(share) for share in each.histogram),
            number_text(each.largest),
            f"{each.energy:.3f}",
        ]
        for each in found
    ]
    return f"percent of the inputs with such a remainder |R_1(y)|\n{rows_text(head, rows, width)}"
