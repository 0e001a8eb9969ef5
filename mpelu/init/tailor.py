"""Tailoring: how nonlinear each activation is at the start, chosen from the depth that the graph reveals.

Keeping second moment and gradient is not enough: in a deep stack of ordinary activations all inputs become alike, and
nothing is learned from inputs that look the same. A tailored net is nearly linear at the start, layer by layer just so
much that the whole stack is as nonlinear as a shallow net; training makes it as nonlinear as it needs to be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn
from torch.nn.utils import parametrize

from mpelu.errors import UsageError
from mpelu.graph import Graph, Node, read
from mpelu.graph.capture import Example
from mpelu.init.calibrate import in_training
from mpelu.init.fill import factoring_once
from mpelu.init.plan import InitPlan, apply, plan
from mpelu.init.rows import PlanRow
from mpelu.init.shape import ETA, tailored_shape, tailored_slope
from mpelu.init.transform import Transformed, shapes_of, tailored
from mpelu.init.uses import read_uses, sums, trunk_length
from mpelu.moments import Activation
from mpelu.nn import MPELU

HEAD_GAIN = 1.5
"""Standard deviation of the outputs at the start.

To tell classes apart, logits have to become several units large. The smaller the head, the more the layers in front of
it have to change for that, and the further a deep stack is moved from its tailored start; the larger, the more wrong
confidence has to be unlearned, and the smaller the learning rates that do not diverge. With 1, 1.5 and 2, 52 layers of
GELU learned the digits in 32, 26 and 26 steps, and 100 layers in 30, 25 and 32 (``benchmarks/bench_tailor.py``; medians
of five seeds, each at its best learning rate).
"""


@factoring_once()
def tailor(
    model: nn.Module,
    example: Example,
    seed: int | None = None,
    *,
    eta: float = ETA,
    tau: float | None = None,
    wrap: bool = False,
    residual: str = "scale",
    heads: str = "signal",
    head_gain: float = HEAD_GAIN,
    refine: str = "noise",
) -> InitPlan:
    """Tailor the activations of a model to its depth and initialize its weights for them, in place.

    - MPELU: through its own alpha and beta, the same in every channel, without a change of the architecture; their
      learning rate is in the plan: give the plan to :func:`mpelu.param_groups`.
    - ReLU, LeakyReLU, PReLU: through the slope of the negative side. A ReLU is replaced by a LeakyReLU.
    - Any smooth activation (ELU, GELU, SiLU, Mish, tanh, softplus ...): wrapped in a fixed
      :class:`mpelu.init.Transformed`, which :func:`mpelu.fold` absorbs into the weights for export.

    The weights are orthogonal with the gain that keeps the second moment, calibrated on noise; biases are 0. Only
    weights behind which nothing but the output stands give a signal of ``head_gain``. Where branches are added to a
    trunk, each counts with its share: see :func:`nonlinear_depth`.

    Args:
        model: Its activations have to be modules.
        example: As for :func:`mpelu.plan`.
        seed: Of the weights.
        eta: Correlation with which two orthogonal inputs leave a stack of leaky units; nearer to 1 is more nonlinear.
        tau: Curvature of a stack of smooth activations and of MPELU; larger is more nonlinear. None means the value
            that each of the two was measured to train best with (:data:`mpelu.init.transform.TAU` and
            :data:`mpelu.init.shape.TAU`).
        wrap: Whether an MPELU with alpha * beta = 1 is wrapped as a smooth activation instead of getting another alpha
            and beta.
        residual: As for :func:`mpelu.plan`.
        heads: As for :func:`mpelu.plan`.
        head_gain: Root mean square of the outputs of the model at the start, > 0. The default was measured for classes
            (:data:`HEAD_GAIN` says why); 1 suits a regression of standardized targets.
        refine: As for :func:`mpelu.plan`.

    Returns:
        The plan that was applied; ``fed_by`` and ``layer`` name the changed activations.

    Raises:
        UsageError: If an activation is a function call and not a module, or has a kink that no slope can be tailored
            for (SELU, Hardswish, ...): all of them are named; or head_gain is not > 0. The model is unchanged then.
        UnknownNodeError: As :func:`mpelu.plan`.

    Example:
        >>> layers = [layer for _ in range(50) for layer in (nn.Linear(16, 16), nn.GELU())]
        >>> model = nn.Sequential(*layers, nn.Linear(16, 4))
        >>> init_plan = tailor(model, torch.zeros(2, 16), seed=0)
        >>> type(model[1]).__name__, init_plan.method
        ('Transformed', 'tailored')
    """
    if not (head_gain > 0 and math.isfinite(head_gain)):
        raise UsageError(f"head_gain must be a number > 0, got {head_gain}; heads='zero' starts heads at 0")
    with in_training(model):
        graph = read(model, example)
    units, depth = _units(graph), nonlinear_depth(graph)
    changes = _Changes(depth, eta=eta, tau=tau, wrap=wrap).of(units)
    for change in changes:
        _carry_out(model, change)
    base = plan(model, example, method="tailored", seed=seed, residual=residual, heads=heads, refine=refine)
    rows = {row.parameter: row for row in base.rows}
    for use in read_uses(graph, model):
        if use.head:
            rows[use.weight] = _times(rows[use.weight], head_gain)
    for change in changes:
        for parameter, value, lr_multiplier in change.values:
            row = rows[f"{change.name}.{parameter}"]
            rows[row.parameter] = replace(
                row,
                layer=change.layer,
                fill="constant",
                std=value,
                equation=f"tailored to depth {depth:.3g}",
                lr_multiplier=lr_multiplier,
            )
    result = replace(base, rows=tuple(rows.values()))
    apply(result, model)
    _leave(model, shapes_of(example))
    return result


def _times(row: PlanRow, factor: float) -> PlanRow:
    """Return the row of a weight that is so many times as large."""
    if not row.std or factor == 1.0:
        return row
    return replace(
        row,
        std=row.std * factor,
        gain=None if row.gain is None else row.gain * factor,
        second_moment=None if row.second_moment is None else row.second_moment * factor**2,
        equation=f"{row.equation}, head times {factor:g}",
    )


def _leave(model: nn.Module, shapes: object) -> None:
    """Let every wrapper know what the model takes, for :func:`mpelu.fold`."""
    for module in model.modules():
        if isinstance(module, Transformed):
            module.example_shapes = shapes


def nonlinear_depth(graph: Graph) -> float:
    r"""Return how many activations one behind the other the network amounts to.

    With C'(1) = 1 in every layer, the curvatures C''(1) of the correlation maps add up along a path, and at a sum they
    are averaged with the shares of the second moment. So an activation counts 1, and in a branch that makes up the
    share p of a sum it counts p. The largest value at any node is returned, at least 1, since a branch alone must not
    collapse either. Source: Martens et al., arXiv:2110.01765, Sec. 6, where it is the maximal C-value of subnetworks.
    """
    residual = sums(graph)
    length = trunk_length(graph, residual)
    depth: list[float] = []
    for node in graph.nodes:
        before = [depth[index] for index in node.inputs]
        if node.index in residual and len(before) > 1:
            share = 1.0 / (length[node.index] + 1)
            branch = depth[residual[node.index]]
            skip = max(value for index, value in zip(node.inputs, before, strict=True) if index != residual[node.index])
            depth.append((1 - share) * skip + share * branch)
        else:
            depth.append(max(before, default=0.0) + (node.kind == "activation"))
    return max([1.0, *depth])


def _units(graph: Graph) -> dict[str, nn.Module]:
    """Return the activation modules between weights, by their name in the model.

    Raises:
        UsageError: If one is a function call, or there is none.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    functions: list[str] = []
    for node in graph.nodes:
        if node.kind != "activation" or _ends(graph, node):
            continue
        if node.source is None:
            functions.append(f"{node.name} ({node.op})")
        else:
            found.setdefault(id(node.source), (node.name.partition("#")[0], node.source))
    if functions:
        raise UsageError(
            f"tailoring changes activations, and these are function calls that it cannot reach: "
            f"{', '.join(functions[:5])}{', ...' if len(functions) > 5 else ''}. Write them as modules, e.g. nn.GELU() "
            f"for F.gelu"
        )
    if not found:
        raise UsageError("there is no activation to tailor between the weights of this model")
    return dict(found.values())


def _ends(graph: Graph, node: Node) -> bool:
    """True for a gate, and for what stands behind the last weight: it feeds no weight."""
    return graph.is_head(node.index) or {reader.kind for reader in graph.readers(node.index)} == {"product"}


@dataclass(frozen=True)
class _Change:
    """What happens to one activation: what takes its place, and the values of its parameters by name, with rates."""

    name: str
    old: nn.Module
    new: nn.Module
    values: tuple[tuple[str, float, float], ...] = ()

    @property
    def layer(self) -> str:
        return type(self.new).__name__


class _Changes:
    """Works out the changes for one depth; equal activations are solved once."""

    def __init__(self, depth: float, *, eta: float, tau: float | None, wrap: bool) -> None:
        self._depth, self._tau, self._wrap = depth, tau, wrap
        self._slope = cache(lambda: tailored_slope(depth, eta=eta).negative_slope)
        self._shape = cache(lambda: tailored_shape(depth) if tau is None else tailored_shape(depth, tau=tau))
        self._solved: dict[object, Transformed] = {}

    def of(self, units: dict[str, nn.Module]) -> list[_Change]:
        """Return a change for each unit.

        Raises:
            UsageError: If some cannot be tailored, each with its reason.
        """
        changes, refused = [], []
        for name, unit in units.items():
            try:
                changes.append(self._change(name, unit))
            except UsageError as error:
                refused.append(f"{name}: {error}")
        if refused:
            more = f" (and {len(refused) - 1} more: {', '.join(names_of(refused[1:]))})" if len(refused) > 1 else ""
            raise UsageError(f"{refused[0]}{more}")
        return changes

    def _change(self, name: str, unit: nn.Module) -> _Change:
        if isinstance(unit, MPELU | nn.PReLU) and parametrize.is_parametrized(unit):
            raise UsageError("a parametrization computes its parameters; tailor before you register that")
        if isinstance(unit, MPELU) and not self._wrap:
            shape = self._shape()
            return _Change(
                name, unit, unit, (("alpha", shape.alpha, shape.alpha_lr), ("beta", shape.beta, shape.beta_lr))
            )
        if isinstance(unit, nn.ReLU | nn.LeakyReLU | nn.PReLU):
            slope = self._slope()
            if isinstance(unit, nn.PReLU):
                return _Change(name, unit, unit, (("weight", slope, 1.0),))
            return _Change(name, unit, nn.LeakyReLU(slope, inplace=unit.inplace))
        smooth = unit.activation if isinstance(unit, Transformed) else unit
        return _Change(name, unit, self._wrapped(smooth))

    def _wrapped(self, smooth: Activation) -> Transformed:
        key: object = smooth
        if isinstance(smooth, nn.Module):
            values = tuple(tensor.detach().cpu().numpy().tobytes() for tensor in smooth.state_dict().values())
            key = (type(smooth), repr(smooth), values)
        if key not in self._solved:
            self._solved[key] = (
                tailored(smooth, self._depth) if self._tau is None else tailored(smooth, self._depth, tau=self._tau)
            )
        found = self._solved[key]
        return Transformed(smooth, found.input_scale, found.input_shift, found.output_scale, found.output_shift)


def names_of(refused: Sequence[str]) -> list[str]:
    """Return what stands before the colons."""
    return [text.partition(":")[0] for text in refused]


def _carry_out(model: nn.Module, change: _Change) -> None:
    """Set the parameters of an activation, and put the new one wherever the old one is held."""
    with torch.no_grad():
        for parameter, value, _ in change.values:
            change.new.get_parameter(parameter).fill_(value)
    if change.new is change.old:
        return
    change.new.train(change.old.training)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is change.old and parent is not change.new:
                setattr(parent, name, change.new)
