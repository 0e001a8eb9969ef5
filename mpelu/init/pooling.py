"""What pooling and interpolation make of a signal in mean field."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mpelu.graph import Graph, Node
from mpelu.init.fans import ADAPTIVE_AVERAGES, AVERAGES, propagate_profile
from mpelu.init.signal import Gaussian, Signal, profile_of, relative

MANY = 16
"""An average of so many entries counts as Gaussian."""
MOST_CHANNELS = 4
"""Of a function with parameters for each channel; the maximum is taken for these, spread evenly."""


def pooled(graph: Graph, node: Node, before: Signal, gaussian: Gaussian) -> Signal:
    """Return the signal behind a pooling, or a reduction over dims."""
    if node.options.get("mode") == "avg" or node.op == "sum":
        found = _averaged(graph, node, before)
    else:
        found = _largest(graph, node, before, gaussian) if node.options.get("mode") == "max" else None
    if found is None:
        return replace(
            before, normal=False, source=None, profile=None, within=None, assumed=before.assumed or node.name
        )
    return found


def resized(graph: Graph, node: Node, before: Signal) -> Signal:
    """Return the signal behind an interpolation, which is an average with given factors along each dim."""
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(str(node.options.get("mode")), node.options.get("mode"))
    sizes = graph.nodes[node.inputs[0]].shape
    count = len(sizes) - 2
    if node.op == "grid_sample" or mode not in ("nearest", "nearest-exact", "linear", "area") or count < 1:
        return replace(before, normal=False, source=None, profile=None, assumed=before.assumed or node.name)
    align = node.options.get("align_corners") if mode == "linear" else None
    matrices = [
        F.interpolate(
            torch.eye(old, dtype=torch.float64, device="cpu")[None], size=new, mode=str(mode), align_corners=align
        )[0].T
        for old, new in zip(sizes[2:], node.shape[2:], strict=True)
    ]
    found = _mixed(before, profile_of(before, sizes[2:]), matrices)
    if found is not None:
        return found
    return replace(before, normal=False, source=None, profile=None, assumed=before.assumed or node.name)


def _averaged(graph: Graph, node: Node, before: Signal) -> Signal | None:
    sizes = graph.nodes[node.inputs[0]].shape
    if node.op in ("mean", "sum"):
        return _reduced(node, before, sizes)
    count = (AVERAGES | ADAPTIVE_AVERAGES).get(node.op)
    if count is None or before.unit not in (None, -1 - count):
        return None
    profile = profile_of(before, sizes[-count:])

    def through(values: Tensor, correlation: float) -> Tensor:
        return propagate_profile(
            values, node.op, output_shape=node.shape, options=node.options, correlation=correlation
        )

    alike = _alike(before, profile)
    if alike is None:
        return None
    taps = round(1 / through(torch.ones_like(profile), 0.0).min().item())
    return _behind(before, through(profile, alike), through(profile, 1.0).sqrt(), taps)


def _reduced(node: Node, before: Signal, sizes: Sequence[int]) -> Signal | None:
    """Return the signal behind a mean or sum over whole dims."""
    dims = reduced_dims(node, sizes)
    positions = math.prod(sizes[dim] for dim in dims)
    if positions > 1 and (0 in dims or (before.unit is not None and before.unit % len(sizes) in dims)):
        return None
    alike = 1.0 if positions == 1 else _alike(before, None)
    if alike is None:
        return None
    found = _behind(
        before,
        torch.tensor([before.second_moment * (alike + (1 - alike) / positions)], device="cpu") / before.second_moment,
        torch.ones(1, device="cpu"),
        positions,
    )
    unit = before.unit
    if unit is not None and not node.options.get("keepdim"):
        unit += sum(dim > unit % len(sizes) for dim in dims)
    scale = positions if node.op == "sum" else 1
    return replace(
        found, mean=scale * found.mean, second_moment=scale**2 * found.second_moment, profile=None, unit=unit
    )


def reduced_dims(node: Node, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the dims that a mean, sum or maximum over dims takes together, counted from the left."""
    dim = node.options.get("dim")
    found = range(len(sizes)) if dim is None else [dim] if isinstance(dim, int) else dim
    return tuple(item % len(sizes) for item in found)


def _mixed(before: Signal, profile: Tensor, matrices: Sequence[Tensor]) -> Signal | None:
    """Return the signal behind averages whose factors are products of one for each dim."""
    alike = _alike(before, profile)
    if alike is None:
        return None
    independent = _along([matrix.square() for matrix in matrices], profile)
    equal = _along(matrices, profile.sqrt()).square()
    return _behind(before, (1 - alike) * independent + alike * equal, equal.sqrt(), 1)


def _along(matrices: Sequence[Tensor], profile: Tensor) -> Tensor:
    for dim, matrix in enumerate(matrices):
        profile = torch.tensordot(matrix, profile, dims=([1], [dim])).movedim(0, dim)
    return profile


def _alike(before: Signal, profile: Tensor | None) -> float | None:
    """Return the correlation of two positions; of one position there is no other."""
    return 1.0 if profile is not None and profile.numel() == 1 else before.within


def _behind(before: Signal, profile: Tensor, sums: Tensor, taps: int) -> Signal:
    """Return the signal behind averages.

    Args:
        before: What is averaged.
        profile: Second moments behind, over the one before.
        sums: What each average would be of equal values: the sum of its factors, times the roots of the profile before.
        taps: How many entries an average has.
    """
    ratio, same, count = profile.mean().item(), sums.square().mean().item(), profile.numel()
    apart = (sums.mean().item() ** 2 * count - same) / (count - 1) if count > 1 else same

    def joint(correlation: float | None, of: float) -> float | None:
        return None if correlation is None or ratio == 0.0 else min(1.0, max(0.0, correlation * of / ratio))

    return replace(
        before,
        mean=before.mean * sums.mean().item(),
        second_moment=before.second_moment * ratio,
        within=1.0 if count == 1 else joint(before.within, apart),
        across=joint(before.across, same),
        normal=before.normal or taps >= MANY,
        source=None,
        profile=relative(profile),
    )


def _largest(graph: Graph, node: Node, before: Signal, gaussian: Gaussian) -> Signal | None:
    """Return the signal behind a maximum over windows, of a Gaussian signal or of an activation of one."""
    sizes = graph.nodes[node.inputs[0]].shape
    count = _window(node, sizes, before)
    unit, base = before.source or (None, before)
    alike = base.centered(base.within)
    if count is None or alike is None or not base.normal:
        return None
    if unit is None:
        values: Callable[[Tensor], Tensor] = lambda points: points[:, None]  # noqa: E731
    else:
        of = gaussian.function(unit)
        chosen = torch.linspace(0, of.channels - 1, min(of.channels, MOST_CHANNELS), device="cpu").round().long()
        values = lambda points: of.values(points)[:, chosen]  # noqa: E731
    mean, second_moment, shared = maximum(values, count, mean=base.mean, variance=base.variance, correlation=alike)
    apart = base.centered(base.across)
    across = None
    if apart is not None and second_moment > 0:
        between = _between(apart, alike, shared - mean**2, second_moment - mean**2)
        across = min(1.0, (mean**2 + between) / second_moment)
    return replace(
        before,
        mean=mean,
        second_moment=second_moment,
        within=shared / second_moment if second_moment > 0 else None,
        across=across,
        normal=False,
        source=None,
        profile=None,
    )


def _between(apart: float, alike: float, shared: float, variance: float) -> float:
    """Return the covariance of two examples' maxima by lines through three points that are known.

    It is 0 where their entries are independent, that of two windows where examples are as alike as positions, and the
    variance where they are the same.

    Args:
        apart: Correlation of an entry in two examples.
        alike: Of two positions in one.
        shared: Covariance of the maxima of two windows.
        variance: Of a maximum.
    """
    if apart <= alike:
        return shared * (apart / alike if alike > 0 else 0.0)
    return shared + (variance - shared) * (apart - alike) / (1 - alike)


def _window(node: Node, sizes: Sequence[int], before: Signal) -> float | None:
    """Return how many entries a maximum is taken of, on average over positions; None where that is not known."""
    if node.op in ("amax", "max"):
        if "dim" not in node.options:
            return None
        dims = reduced_dims(node, sizes)
        unit = None if before.unit is None else before.unit % len(sizes)
        return None if 0 in dims or unit in dims else math.prod(sizes[dim] for dim in dims)
    if "kernel_size" not in node.options:
        sides = len(node.options.get("output_size", ()))
        pairs = list(zip(sizes, node.shape, strict=True))[len(sizes) - sides :]
        return math.prod(-(-old // new) for old, new in pairs) if sides else None
    windows = zip(
        node.options["kernel_size"], node.options["stride"], node.options["padding"], node.options["dilation"],
        sizes[-len(node.options["kernel_size"]) :], node.shape[-len(node.options["kernel_size"]) :], strict=True,
    )  # fmt: skip
    count = 1.0
    for taps, stride, padding, dilation, inputs, outputs in windows:
        inside = [
            0 <= output * stride + tap * dilation - padding < inputs for output in range(outputs) for tap in range(taps)
        ]
        count *= sum(inside) / outputs
    return count


def maximum(
    values: Callable[[Tensor], Tensor], count: float, *, mean: float, variance: float, correlation: float
) -> tuple[float, float, float]:
    """Return E m, E m^2 and E m m' of maxima m, m' of a function over ``count`` Gaussian variables each.

    The variables, of both maxima, have one correlation in common: they are sqrt(c) u + sqrt(1 - c) e, and given u they
    are independent. The values of the function are laid out on a grid in e and sorted; then the distribution function
    of a maximum is that of one value to the power of the count.

    Args:
        values: The function, from shape ``(n,)`` to ``(n, channels)``, float64.
        count: How many; a fraction is allowed.
        mean: Of the variables.
        variance: Of the variables.
        correlation: Of any two of them, in [0, 1].

    Example:
        >>> largest = maximum(lambda points: points[:, None], 2, mean=0.0, variance=1.0, correlation=0.0)
        >>> [round(number, 3) for number in largest]  # 1 / sqrt(pi), 1, 1 / pi
        [0.564, 1.0, 0.318]
    """
    shared = torch.linspace(-5, 5, 21 if correlation > 0 else 1, dtype=torch.float64, device="cpu")
    own = torch.linspace(-6.5, 6.5, 801, dtype=torch.float64, device="cpu")
    weights, masses = (torch.exp(-points.square() / 2) for points in (shared, own))
    weights, masses = weights / weights.sum(), masses / masses.sum()
    if correlation == 0:
        shared = torch.zeros_like(shared)
    points = math.sqrt(correlation) * shared[:, None] + math.sqrt(1 - correlation) * own
    found = values((mean + math.sqrt(variance) * points).reshape(-1)).reshape(len(shared), len(own), -1)
    ordered, order = found.sort(1)
    below = masses[order].cumsum(1).clamp(max=1.0) ** count
    steps = below.diff(dim=1, prepend=torch.zeros_like(below[:, :1]))
    first, second = (ordered * steps).sum(1), (ordered.square() * steps).sum(1)
    averages = [(part * weights[:, None]).sum(0).mean().item() for part in (first, second, first.square())]
    return averages[0], averages[1], averages[2]
