"""What sums, products and concatenations make of several signals in mean field."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from mpelu.graph import Graph, Node
from mpelu.init.signal import Signal, profile_of, relative
from mpelu.moments import moments


def summed(node: Node, before: Sequence[Signal]) -> Signal:
    """Return the signal of a sum or difference, with the covariance of its terms where that is known."""
    factors: Sequence[float] = node.options.get("coefficients", (1.0,) * len(before))
    mean = sum(factor * part.mean for factor, part in zip(factors, before, strict=True))
    parts = [factor**2 * part.variance for factor, part in zip(factors, before, strict=True)]
    between, assumed = _between(before, factors)
    second_moment = max(0.0, sum(parts) + between) + mean**2

    def joint(correlations: Sequence[float | None]) -> float | None:
        apart = _shared(parts, [part.centered(c) for part, c in zip(before, correlations, strict=True)])
        return None if apart is None or second_moment == 0 else min(1.0, (apart + mean**2) / second_moment)

    largest = parts.index(max(parts))
    return replace(
        before[largest],
        mean=mean,
        second_moment=second_moment,
        within=joint([part.within for part in before]),
        across=joint([part.across for part in before]),
        normal=any(part.normal for part, own in zip(before, parts, strict=True) if own > 0.01 * sum(parts)),
        source=None,
        assumed=first(part.assumed for part in before) or (node.name if assumed else ""),
        unknown=first(part.unknown for part in before),
        profile=_together(before, parts),
    )


def _shared(parts: Sequence[float], correlations: Sequence[float | None]) -> float | None:
    """Return the sum of what each part has in common with itself elsewhere; None where that is not known of one."""
    known = [(own, c) for own, c in zip(parts, correlations, strict=True) if own > 0]
    return None if any(c is None for _, c in known) else sum(own * (c or 0.0) for own, c in known)


def first(names: Iterable[str]) -> str:
    return next((name for name in names if name), "")


def _together(before: Sequence[Signal], shares: Sequence[float]) -> torch.Tensor | None:
    """Return the profile of a sum of signals, or of signals side by side, with these shares of the second moment."""
    shapes = [part.profile.shape for part in before if part.profile is not None]
    if not shapes or not sum(shares) > 0:
        return None
    profiles = [share * profile_of(part, shapes[0]) for part, share in zip(before, shares, strict=True)]
    return relative(torch.stack(profiles).sum(0))


def _apart(before: Sequence[Signal]) -> bool:
    """True where no call of a weight, or input, feeds two of the signals."""
    seen = 0
    for part in before:
        if seen & part.origins:
            return False
        seen |= part.origins
    return True


def _between(before: Sequence[Signal], factors: Sequence[float]) -> tuple[float, bool]:
    """Return twice the covariance of the two values of a sum, and whether that is an assumption.

    Values of the same weights for two inputs, as behind the branches of a Siamese net, have the covariance of two
    examples. Values that come from the same call have one that no law here knows.
    """
    if len(before) != 2 or not before[0].names & before[1].names:
        return 0.0, not _apart(before)
    shared = [part.centered(part.across) for part in before]
    if None in shared or not _apart(before) or before[0].names != before[1].names:
        return 0.0, True
    sizes = math.sqrt(math.prod((part or 0.0) * own.variance for part, own in zip(shared, before, strict=True)))
    return 2 * factors[0] * factors[1] * sizes, False


def concatenated(graph: Graph, node: Node, before: Sequence[Signal]) -> Signal | None:
    """Return the signal of values side by side; None where it is not known how they lie."""
    dim, dims = node.options.get("dim", 0), len(node.shape)
    if node.op == "setitem" or not isinstance(dim, int):
        return None
    sizes = [graph.nodes[index].shape for index in node.inputs]
    stacked = any(len(size) != dims for size in sizes)
    shares = [1 / len(sizes)] * len(sizes) if stacked else [size[dim] / node.shape[dim] for size in sizes]
    parts = [share * part.second_moment for share, part in zip(shares, before, strict=True)]
    second_moment = sum(parts)

    def joint(correlations: Sequence[float | None]) -> float | None:
        shared = _shared(parts, correlations)
        return None if shared is None or second_moment == 0 else shared / second_moment

    variances = [part.variance for part in before]
    units = {part.unit for part in before if part.unit is not None}
    return replace(
        before[0],
        mean=sum(share * part.mean for share, part in zip(shares, before, strict=True)),
        second_moment=second_moment,
        within=joint([part.within for part in before]),
        across=joint([part.across for part in before]),
        normal=all(part.normal for part in before) and max(variances) <= 1.5 * min(variances),
        source=None,
        assumed=first(part.assumed for part in before),
        unknown=first(part.unknown for part in before),
        profile=_together(before, parts) if dims > 2 and dim % dims == 1 else None,
        unit=None if stacked or len(units) != 1 else units.pop(),
    )


def combined(graph: Graph, node: Node, before: Sequence[Signal]) -> Signal:
    """Take the product of independent values; a quotient, or a product of dependent ones, follows no law here."""
    if node.op == "glu":
        return _gated(node, before[0])

    def joint(correlations: Sequence[float | None]) -> float | None:
        return None if None in correlations else math.prod(correlation or 0.0 for correlation in correlations)

    before = [factor(graph.nodes[index], part) for index, part in zip(node.inputs, before, strict=True)]
    known = node.op == "mul" and _apart(before) and not before[0].names & before[-1].names
    shapes = [graph.nodes[index].shape for index in node.inputs]
    return replace(
        before[shapes.index(node.shape) if node.shape in shapes else 0],
        mean=math.prod(part.mean for part in before),
        second_moment=math.prod(part.second_moment for part in before),
        within=joint([part.within for part in before]),
        across=joint([part.across for part in before]),
        normal=False,
        source=None,
        assumed=first(part.assumed for part in before) or ("" if known else node.name),
        unknown=first(part.unknown for part in before),
    )


def factor(node: Node, signal: Signal) -> Signal:
    """Take a constant of which nothing is known, such as a mask that the model makes, for ones as a factor."""
    if node.kind != "constant" or signal.assumed != node.name:
        return signal
    return replace(signal, mean=1.0, second_moment=1.0, within=1.0, across=1.0)


def _gated(node: Node, signal: Signal) -> Signal:
    """One half of the units times the sigmoid of the other."""
    gate = moments(nn.Sigmoid(), mean=signal.mean, variance=signal.variance) if signal.variance else None
    square = gate.second_moment if gate else 0.25
    return replace(
        signal,
        mean=signal.mean * (gate.mean if gate else 0.5),
        second_moment=signal.second_moment * square,
        within=None,
        across=None,
        normal=False,
        source=None,
        assumed=signal.assumed or ("" if signal.normal else node.name),
    )
