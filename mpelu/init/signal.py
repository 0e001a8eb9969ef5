"""What is known of the values at a node in mean field, and what a weight or an activation makes of it.

Weights are independent with mean 0, layers are wide, and inputs are independent draws from N(0, 1). Then a
pre-activation is Gaussian over the units, with mean 0, and jointly so for two positions and two examples.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.graph import Graph, Node
from mpelu.init.fans import CONVOLUTIONS, TRANSPOSED, Taps, propagate_profile
from mpelu.init.gains import negative_slope
from mpelu.moments import Activation, Moments, elementwise, moments
from mpelu.moments.elementwise import Elementwise


@dataclass(frozen=True)
class Signal:
    """Values at a node, averaged over examples, units and positions.

    Attributes:
        mean: Average.
        second_moment: q.
        within: E[x x'] / q for one unit at two positions of an example; None where that is not known.
        across: E[x x'] / q for one unit and position in two examples.
        normal: True for a Gaussian variable.
        source: The activation that made it of a Gaussian signal, with that signal; None for anything else.
        assumed: Name of the first node for which an assumption stands in for a law; "" where everything is known.
        unknown: Name of a node that is not understood, with no normalization behind it.
        profile: Second moment at each position over its mean, float64; None where all positions are alike.
        unit: The dim of the units, counted from the right (-1 is the last); None where that is not known.
        origins: Bits of the calls that it comes from, back to the last weights: two signals with none in common are
            independent.
        names: The same by the names of their weights.
    """

    mean: float = 0.0
    second_moment: float = 1.0
    within: float | None = 0.0
    across: float | None = 0.0
    normal: bool = True
    source: "tuple[Node, Signal] | None" = None
    assumed: str = ""
    unknown: str = ""
    profile: Tensor | None = None
    unit: int | None = None
    origins: int = 0
    names: int = 0

    @property
    def variance(self) -> float:
        return max(0.0, self.second_moment - self.mean**2)

    def centered(self, correlation: float | None) -> float | None:
        """Return the correlation of x - mean and x' - mean, in [0, 1], from E[x x'] / q."""
        if correlation is None or self.variance == 0.0:
            return None
        return min(1.0, max(0.0, (self.second_moment * correlation - self.mean**2) / self.variance))


class Gaussian:
    """Moments of the activations of one plan; equal ones are computed once."""

    def __init__(self) -> None:
        self._functions: dict[int, tuple[Activation, object, Elementwise]] = {}
        self._alike: dict[object, Elementwise] = {}
        self._slopes: dict[object, float] = {}
        self._moments: dict[tuple[object, float, float], Moments] = {}
        self._expansions: dict[tuple[object, float, float], Tensor] = {}

    def __call__(self, node: Node, *, mean: float = 0.0, variance: float = 1.0) -> Moments:
        """Return the moments of an activation of N(mean, variance)."""
        key = self._key(node, mean, variance)
        if key not in self._moments:
            self._moments[key] = moments(self.function(node), mean=mean, variance=variance)
        return self._moments[key]

    def negative_slope(self, node: Node) -> float:
        """Return the slope of an activation just below 0; the errors are those of :func:`mpelu.init.negative_slope`."""
        key = self._known(node)[1]
        if key not in self._slopes:
            self._slopes[key] = negative_slope(self.function(node))
        return self._slopes[key]

    def joint(self, node: Node, *, mean: float, variance: float, correlation: float) -> float:
        """Return E f(u) f(v), to about 1e-3: enough for what is averaged or compared, and fast.

        The correlation enters by the squared coefficients of f in Hermite polynomials; those above number 24 are added
        up. :func:`mpelu.moments.covariance` has 9 more digits and takes up to 100 times as long.
        """
        key = self._key(node, mean, variance)
        if key not in self._expansions:
            values = self.function(node).values(mean + math.sqrt(variance) * POINTS)
            squares = (HERMITE @ values).square().mean(1)
            rest = max(0.0, self(node, mean=mean, variance=variance).second_moment - squares.sum().item())
            self._expansions[key] = torch.cat([squares, squares.new_tensor([rest])])
        squares = self._expansions[key]
        return (squares * correlation ** torch.arange(len(squares), device="cpu")).sum().item()

    def function(self, node: Node) -> Elementwise:
        """Return what a node applies: its module where there is one, since closed forms go by its type.

        A module on the meta device has no values: it is looked at as it starts.

        Raises:
            UsageError: If such a module has no ``reset_parameters``.
        """
        return self._known(node)[2]

    def _known(self, node: Node) -> tuple[Activation, object, Elementwise]:
        of: Activation | None = node.function if node.source is None else node.source
        assert of is not None
        if id(of) not in self._functions:
            held = started(of, node.name) if isinstance(of, nn.Module) else of
            key = signature(held), channels(node)
            if key not in self._alike:
                self._alike[key] = elementwise(held, channels(node))
            self._functions[id(of)] = of, key, self._alike[key]
        return self._functions[id(of)]

    def _key(self, node: Node, mean: float, variance: float) -> tuple[object, float, float]:
        return self._known(node)[1], float(f"{mean:.12g}"), float(f"{variance:.12g}")


def _hermite(points: Tensor, count: int) -> Tensor:
    """Return the normalized polynomials at points times the weights of their integral, shape (count, points)."""
    rows = [torch.ones_like(points), points]
    for degree in range(2, count):
        rows.append((points * rows[-1] - math.sqrt(degree - 1) * rows[-2]) / math.sqrt(degree))
    density = torch.exp(-points.square() / 2) * ((points[-1] - points[0]) / (len(points) - 1) / math.sqrt(2 * math.pi))
    return torch.stack(rows) * density


POINTS = torch.linspace(-9, 9, 1801, dtype=torch.float64, device="cpu")
HERMITE = _hermite(POINTS, 25)


def started(module: nn.Module, name: str) -> nn.Module:
    """Return a module that has values: the same one, or of one on the meta device a copy as its module starts it.

    Raises:
        UsageError: If it has no ``reset_parameters``.
    """
    if not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return module
    reset = getattr(module, "reset_parameters", None)
    if reset is None:
        raise UsageError(
            f"{name} ({type(module).__name__}) is on the meta device, where its parameters have no values, and has no "
            f"reset_parameters() that says how they start; give the model memory first: model.to_empty(device='cpu')"
        )
    found = copy.deepcopy(module).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        found.reset_parameters()  # type: ignore[operator]  # it was found above
    return found


def channels(node: Node) -> int | None:
    """Return for how many channels the function of a node has parameters; None where all are alike."""
    dim = node.options.get("channel_dim", 1)
    return node.shape[dim] if node.parameters and len(node.shape) > 1 else None


def signature(function: Activation) -> object:
    """Return what two activations share only if they are the same function."""
    if not isinstance(function, nn.Module):
        return id(function)
    values = tuple(tensor.detach().cpu().double().numpy().tobytes() for tensor in function.state_dict().values())
    return type(function), repr(function), values


def activated(node: Node, before: Signal, gaussian: Gaussian) -> Signal:
    """Return the signal behind a function that is applied entry by entry."""
    mean, variance = before.mean, before.variance
    if variance <= 1e-12 * before.second_moment:
        values = elementwise(gaussian.function(node), channels(node)).values(
            torch.tensor([mean], dtype=torch.float64, device="cpu")
        )
        return replace(
            before, mean=values.mean().item(), second_moment=values.square().mean().item(), normal=False, source=None
        )
    of = gaussian(node, mean=mean, variance=variance)

    def joint(correlation: float | None) -> float | None:
        centered = before.centered(correlation)
        if centered is None or of.second_moment == 0.0:
            return None
        return gaussian.joint(node, mean=mean, variance=variance, correlation=centered) / of.second_moment

    affine = node.kind == "scale"
    return replace(
        before,
        mean=of.mean,
        second_moment=of.second_moment,
        within=joint(before.within),
        across=joint(before.across),
        normal=before.normal and affine,
        source=(node, before) if before.normal else None,
        assumed=before.assumed or ("" if before.normal or affine else node.name),
        profile=_bent(before.profile, of.growth * variance / of.second_moment if of.second_moment else 0.0),
    )


def _bent(profile: Tensor | None, elasticity: float) -> Tensor | None:
    """Return the profile behind a function whose second moment grows with that power of the one before it."""
    return None if profile is None else (1 + elasticity * (profile - 1)).clamp_min(0)


@dataclass(frozen=True)
class Reach:
    """How a call of a weight reads its input: where it meets borders and strides.

    Attributes:
        fan_in: Effective, for the signal that it reads.
        overlap: Of the taps that one position uses, how many another one uses too, on average: 1 without borders.
        profile: Second moment of the products at each position over its mean, None where all are alike.
    """

    fan_in: float
    overlap: float = 1.0
    profile: Tensor | None = None


def reach(
    graph: Graph, node: Node, weight_shape: Sequence[int], fan_in: float, signal: Signal, *, taps: Taps = "all"
) -> Reach:
    """Return how a call reads a signal; only borders and strides of convolutions change the nominal fan_in."""
    count = (CONVOLUTIONS | TRANSPOSED).get(node.op)
    if count is None:
        return Reach(fan_in)
    inputs = graph.nodes[node.inputs[0]].shape[-count:]
    behind = propagate_profile(
        profile_of(signal, inputs),
        node.op,
        output_shape=node.shape,
        weight_shape=weight_shape,
        options=node.options,
        taps=taps,
    )
    return Reach(
        behind.mean().item(), 1.0 if taps == "centre" else _overlap(node, weight_shape, inputs), relative(behind)
    )


def _overlap(node: Node, weight_shape: Sequence[int], inputs: Sequence[int]) -> float:
    """Return the share of a position's taps that another position uses too, as a mean over pairs of positions.

    With h_t the share of positions that use tap t, a pair, be it one position twice, has sum h_t^2 taps in common.
    """
    outputs = node.shape[-len(inputs) :]
    together, positions = 1.0, math.prod(outputs)
    sides = (node.options[name] for name in ("stride", "dilation"))
    for old, new, count, stride, dilation, padding in zip(
        inputs, outputs, weight_shape[2:], *sides, _left(node, weight_shape), strict=True
    ):
        if node.op in TRANSPOSED:
            used = [sum(0 <= at * stride - padding + tap * dilation < new for at in range(old)) for tap in range(count)]
        else:
            used = [sum(0 <= at * stride - padding + tap * dilation < old for at in range(new)) for tap in range(count)]
        together *= sum(number**2 for number in used) / (sum(used) * new) if sum(used) else 0.0
    return 1.0 if positions < 2 else max(0.0, (together * positions - 1) / (positions - 1))


def _left(node: Node, weight_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the padding before the first position."""
    padding = node.options["padding"]
    if padding == "same":
        taps = zip(weight_shape[2:], node.options["dilation"], strict=True)
        return tuple(dilation * (count - 1) // 2 for count, dilation in taps)
    return (0,) * len(weight_shape[2:]) if padding == "valid" else tuple(padding)


def multiplied(
    node: Node,
    before: Signal,
    read: Reach,
    *,
    std: float,
    bias_std: float = 0.0,
    centered: bool = False,
) -> Signal:
    """Return the signal behind a weight.

    Args:
        node: The call.
        before: What it reads.
        read: How it reads it.
        std: Of the entries of the weight.
        bias_std: Of the biases.
        centered: True where the rows of the weight sum to 0, so that they do not see the mean.
    """
    weight_variance, bias_variance = read.fan_in * std**2, bias_std**2
    hidden = before.mean**2 if centered else 0.0
    total = weight_variance * (before.second_moment - hidden) + bias_variance

    def joint(correlation: float | None, overlap: float = 1.0) -> float | None:
        if correlation is None or total == 0.0:
            return None
        shared = max(0.0, before.second_moment * correlation - hidden) * overlap
        return min(1.0, (weight_variance * shared + bias_variance) / total)

    # read along another dim than the units', positions are entries of different units, which share the mean alone
    same_units = before.unit in (None, unit_of(node)) or before.second_moment == 0.0
    profile = read.profile
    return Signal(
        second_moment=total,
        within=joint(before.within if same_units else before.mean**2 / before.second_moment, read.overlap),
        across=joint(before.across),
        assumed=before.assumed,
        unknown=before.unknown,
        profile=None if profile is None or not total else (profile * (total - bias_variance) + bias_variance) / total,
        unit=unit_of(node),
    )


def unit_of(node: Node) -> int:
    """Return the dim of the units behind a weight, counted from the right, since the batch may be missing."""
    if node.op == "matmul" and node.options.get("side") == "left":
        return -2
    return -1 - (CONVOLUTIONS | TRANSPOSED).get(node.op, 0)


def profile_of(signal: Signal, positions: Sequence[int]) -> Tensor:
    """Return the profile of a signal over so many positions; that of another shape has lost its meaning."""
    if signal.profile is not None and tuple(signal.profile.shape) == tuple(positions):
        return signal.profile
    return torch.ones(tuple(positions), dtype=torch.float64, device="cpu")


def relative(profile: Tensor) -> Tensor | None:
    """Return a profile over its mean, None where all positions are alike."""
    mean = profile.mean()
    return None if bool((profile - mean).abs().max() <= 1e-9 * mean) else profile / mean
