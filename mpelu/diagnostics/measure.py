"""What is measured at each node while a training step runs, as numbers at once: no tensor is kept."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mpelu.diagnostics.records import LayerRecord
from mpelu.diagnostics.sampling import (
    ENTRIES,
    FEW,
    SINGLE,
    channel_means,
    finite_moments,
    likeness,
    moments,
    norm_of,
    of_pairs,
    products,
    sample,
    signal_to_noise,
    without_autocast,
)
from mpelu.diagnostics.units import depths, unit_dims
from mpelu.graph import Graph, Node, run
from mpelu.graph.capture import eagerly
from mpelu.ops import cpu

SHOWN = ("input", "weight", "attention", "recurrent", "embedding", "activation", "norm", "sum", "opaque", "output")
"""Kinds that have a record."""
PASSED = ("shape", "dropout", "pad", "constant")
"""Kinds that are not looked at."""
QUIET = ("activation", "norm")
"""Kinds whose examples are not compared: ``correlation`` and ``gradient_snr`` are looked at between them."""
SATURATED = 0.01
"""Of the steepest slope."""

SECANT = 2**-8
"""Of the size of what an activation reads: over so much its slope is taken."""
LEAST_STEP = 1e-30
TOGETHER = 2**16
"""Entries of samples that wait for slopes to be worked out."""
PAIRS_TOGETHER = 128
"""Matrices of inner products that wait to be made numbers."""
PAIRS = {"values": (likeness, ("correlation", "cosines")), "gradients": (signal_to_noise, ("gradient_snr",))}

Slopes = Callable[[], tuple[float | None, float | None]]
Stepped = Callable[[str, Tensor], float]
"""From the name of a parameter and its gradient to the norm of the step that the optimizer would take."""


@dataclass
class Measured:
    """What was seen at a node; the meanings are those of :class:`mpelu.diagnostics.LayerRecord`.

    ``cosines`` is the root mean square where ``correlation`` is the mean; ``within`` is the correlation E[x x'] / q of
    two positions of a channel, for kinds that start a prediction.
    """

    mean: float
    second_moment: float
    channel_variance: float | None = None
    correlation: float | None = None
    cosines: float | None = None
    within: float | None = None
    dead: float | None = None
    saturated: float | None = None
    non_finite: float = 0.0
    gradient_norm: float | None = None
    gradient_snr: float | None = None


@dataclass
class Weighed:
    """What was seen of a parameter."""

    norm: float
    gradient_norm: float | None = None
    step_norm: float | None = None


class Observer:
    """Looks at every node of a graph during one forward and backward pass.

    Args:
        graph: Of the model.
        scale: What gradients are divided by: that of a ``torch.amp.GradScaler``.

    Attributes:
        measured: By the index of the node.
        weighed: By the name of the parameter.
        units: For each node the dim of its channels, as :func:`mpelu.diagnostics.units.unit_dims` has it.
    """

    def __init__(self, graph: Graph, *, scale: float = 1.0) -> None:
        self.graph = graph
        self.measured: dict[int, Measured] = {}
        self.weighed: dict[str, Weighed] = {}
        self._scale = scale
        self.units = unit_dims(graph)
        self._points: dict[int, Tensor] = {}  # what an activation reads, a sample of it
        self._same_gradient = _same_gradients(graph)
        self._pending: list[tuple[Measured, str, Tensor]] = []
        self._means: list[tuple[Measured, Tensor]] = []
        self._sloping: list[tuple[Measured, Slopes]] = []
        self._held = 0
        self._activations = [
            [reader for reader in graph.readers(node.index) if reader.kind == "activation"] for node in graph.nodes
        ]

    def visit(self, node: Node, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG002
        """Look at the value of a node; this is what :func:`mpelu.graph.run` calls."""
        index = node.index
        if node.kind in PASSED or not output.is_floating_point() or not output.numel():
            return
        with torch._C.DisableTorchFunction():
            self.measured[index] = self._look(node, output.detach())
            if output.requires_grad and index not in self._same_gradient:
                output.register_hook(partial(self._see_gradient, index))  # type: ignore[no-untyped-call]  # untyped in torch

    def _look(self, node: Node, output: Tensor) -> Measured:
        unit = self.units[node.index] if output.dim() == len(node.shape) else -1
        found = self._moments(output, unit)
        readers = self._activations[node.index]
        if node.kind == "norm" and not readers:
            return found
        if not readers and node.kind == "weight":
            self._wait(found, "values", output, unit, FEW)
            return found
        some = sample(output, unit, ENTRIES if readers or node.kind == "activation" else FEW)
        some = some.clone(memory_format=torch.contiguous_format) if some.dtype in SINGLE else some.float()
        if node.kind not in QUIET:
            self._wait(found, "values", some, unit, some.numel())
        if node.kind not in ("weight", *QUIET):
            found.within = _within(some, unit)
        for reader in readers:
            self._points[reader.index] = some
        if node.kind == "activation":
            points = self._points.pop(node.index, None)
            if points is not None:
                self._wait_for_slopes(found, partial(_slopes, node, points, some, unit), 2 * points.numel())
        return found

    def _moments(self, output: Tensor, unit: int) -> Measured:
        known = moments(output, unit)
        if known is not None and math.isfinite(known[0]):
            return Measured(known[1], known[0], known[2])
        values = output if output.dtype in SINGLE else output.float()
        found = Measured(math.nan, torch.linalg.vector_norm(values).item() ** 2 / values.numel())
        if math.isfinite(found.second_moment):
            self._means.append((found, channel_means(values, unit)))
        else:
            found.mean, found.second_moment, found.non_finite = finite_moments(values)
        return found

    def _see_gradient(self, index: int, gradient: Tensor) -> None:
        found, gradient = self.measured[index], gradient.detach()
        found.gradient_norm = norm_of(gradient) / self._scale
        if self.graph.nodes[index].kind not in QUIET:
            self._wait(found, "gradients", gradient, self.units[index], FEW)

    def _wait(self, found: Measured, name: str, values: Tensor, unit: int, entries: int) -> None:
        if values.dim() > 1 and values.shape[0] > 1:
            self._pending.append((found, name, products(values, unit, entries)))
        if len(self._pending) > PAIRS_TOGETHER:
            self._settle_pairs()

    def _wait_for_slopes(self, found: Measured, slopes: Slopes, entries: int) -> None:
        self._sloping.append((found, slopes))
        self._held += entries
        if self._held > TOGETHER:
            self._settle_slopes()

    def _settle_slopes(self) -> None:
        """Work out the slopes that wait: one after the other they take half the time."""
        with torch.no_grad(), without_autocast("cpu"), without_autocast("cuda"):
            for found, slopes in self._sloping:
                found.dead, found.saturated = slopes()
        self._sloping.clear()
        self._held = 0

    def _settle_pairs(self) -> None:
        """Make numbers of the products that wait, of many at a time."""
        waiting: dict[tuple[str, torch.Size], list[tuple[Measured, Tensor]]] = defaultdict(list)
        for found, name, inner in self._pending:
            waiting[name, inner.shape].append((found, inner))
        self._pending.clear()
        self._settle_means()
        for (name, _), items in waiting.items():
            function, fields = PAIRS[name]
            numbers = of_pairs(function, torch.stack([inner for _, inner in items]).cpu().double().numpy())
            for (seen, _), own in zip(items, numbers, strict=True):
                for field, value in zip(fields, own or (None,) * len(fields), strict=True):
                    setattr(seen, field, value)

    def _settle_means(self) -> None:
        if not self._means:
            return
        sizes = np.array([len(means) for _, means in self._means])
        values = torch.cat([means for _, means in self._means]).cpu().double().numpy()
        starts = np.concatenate([[0], sizes.cumsum()[:-1]])
        averages = np.add.reduceat(values, starts) / sizes
        spreads = np.add.reduceat(np.square(values - averages.repeat(sizes)), starts) / sizes
        for (found, means), mean, spread in zip(self._means, averages.tolist(), spreads.tolist(), strict=True):
            found.mean, found.channel_variance = mean, spread if len(means) > 1 else None
        self._means.clear()

    def see_parameters(self, parameters: Mapping[str, Tensor], stepped: Stepped | None = None) -> list[RemovableHandle]:
        """Look at the parameters that nodes multiply with, and at their gradients when they come.

        Args:
            parameters: By name.
            stepped: Says what step an optimizer would take.

        Returns:
            The handles of the hooks.
        """
        names = [name for node in self.graph.nodes for name in node.parameters.get("weight", ()) if name in parameters]
        handles = []
        for name in dict.fromkeys(names):
            parameter = parameters[name]
            self.weighed[name] = Weighed(norm_of(parameter.detach()))
            if parameter.requires_grad:
                hook = partial(self._see_own, name, stepped)
                handles.append(parameter.register_hook(hook))  # type: ignore[no-untyped-call]
            elif stepped is not None:
                self.weighed[name].step_norm = 0.0
        return handles

    def _see_own(self, name: str, stepped: Stepped | None, gradient: Tensor) -> None:
        found, gradient = self.weighed[name], gradient.detach()
        found.gradient_norm = norm_of(gradient) / self._scale
        if stepped is not None:
            with torch.no_grad():
                found.step_norm = stepped(name, gradient)

    def records(self) -> tuple[LayerRecord, ...]:
        """Return a record for each node that has one, without predictions."""
        self._settle_slopes()
        self._settle_pairs()
        for index, other in sorted(self._same_gradient.items(), reverse=True):
            if index in self.measured and other in self.measured:
                seen = self.measured[other]
                self.measured[index].gradient_norm = seen.gradient_norm
                self.measured[index].gradient_snr = seen.gradient_snr
        depth = depths(self.graph)
        return tuple(
            self._record(node, self.measured[node.index], depth[node.index])
            for node in self.graph.nodes
            if node.kind in SHOWN and node.index in self.measured
        )

    def _record(self, node: Node, found: Measured, depth: int) -> LayerRecord:
        names = tuple(name for name in node.parameters.get("weight", ()) if name in self.weighed)
        weighed = [self.weighed[name] for name in names]
        norm = _together([item.norm for item in weighed])
        step = _together([item.step_norm for item in weighed])
        return LayerRecord(
            name=node.name,
            kind=node.kind,
            op=node.op,
            depth=depth,
            shape=node.shape,
            mean=found.mean,
            second_moment=found.second_moment,
            channel_variance=found.channel_variance,
            correlation=found.correlation,
            dead=found.dead,
            saturated=found.saturated,
            non_finite=found.non_finite,
            gradient_norm=found.gradient_norm,
            gradient_snr=found.gradient_snr,
            weight=names[0] if names else None,
            weight_norm=norm,
            weight_gradient_norm=_together([item.gradient_norm for item in weighed]),
            update_ratio=None if step is None or not norm else step / norm,
            alpha=self._parameter_mean(node, "alpha"),
            beta=self._parameter_mean(node, "beta"),
        )

    def _parameter_mean(self, node: Node, role: str) -> float | None:
        """Return the mean over channels of a parameter of an activation; None where it has none of that name."""
        held = getattr(node.source, role, None)
        return held.detach().mean().item() if node.kind == "activation" and isinstance(held, Tensor) else None


def _together(norms: list[float | None]) -> float | None:
    """Return the norm of several tensors together; None where none has one."""
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) if known else None


def _within(some: Tensor, unit: int) -> float | None:
    """Return E[x x'] / q of two positions, from the mean square of means over the positions of a sample."""
    positions = [dim for dim in range(1, some.dim()) if dim != unit]
    count = math.prod(some.shape[dim] for dim in positions)
    total = norm_of(some) ** 2 / some.numel()
    if count < 2 or unit < 0 or not 0 < total < math.inf:
        return None
    means = some.mean(positions)
    averaged = norm_of(means) ** 2 / means.numel() / total
    return max(0.0, min(1.0, (averaged * count - 1) / (count - 1)))


def _slopes(node: Node, points: Tensor, values: Tensor, unit: int) -> tuple[float | None, float | None]:
    r"""Return the share of dead channels and of saturated entries of an activation.

    The slope is that of the secant from x to x + SECANT (\|x\| + m), m the mean of \|x\| in the channel: so it needs no
    derivative, and a channel that is far off does not blur the others.

    Args:
        node: The activation.
        points: A sample of what it reads.
        values: The same sample of what it gives.
        unit: The dim of the channels.
    """
    if node.function is None or node.options.get("random") or values.shape != points.shape:
        return None, None
    # a module's forward is quicker than the function of the node, which takes any dtype
    single = points.dtype == values.dtype and node.source is not None
    of = node.source.forward if single and node.source is not None else node.function
    if _alike(points, values):
        beside, steps = cpu.step_aside(points, unit, SECANT, LEAST_STEP)
        beside = of(beside)
        if _alike(beside, values):
            return cpu.shares(values, steps, beside, unit, SATURATED)
    axes = [dim for dim in range(points.dim()) if dim != unit]
    steps = points.abs()
    steps = steps.add_(steps.mean(axes, keepdim=True)).mul_(SECANT).clamp_(min=LEAST_STEP)
    beside = of(points + steps)
    if beside.shape != values.shape:
        return None, None
    found = beside.sub_(values).abs_().div_(steps).cpu().numpy()
    largest = found.max(axis=0)
    if unit > 0:
        largest = np.moveaxis(largest, unit - 1, 0).reshape(found.shape[unit], -1).max(axis=1)
    steepest = float(largest[np.isfinite(largest)].max(initial=0.0))
    saturated = np.count_nonzero(found < SATURATED * steepest) / found.size if steepest else 1.0
    return float(np.count_nonzero(largest == 0) / largest.size), float(saturated)


def _alike(some: Tensor, others: Tensor) -> bool:
    """Return whether the compiled module can compare two samples, entry by entry."""
    return (
        some.shape == others.shape
        and some.dtype == others.dtype
        and some.is_contiguous()
        and others.is_contiguous()
        and cpu.readable(some)
        and cpu.readable(others)
    )


def _same_gradients(graph: Graph) -> dict[int, int]:
    """Return the nodes whose gradient is that of their one reader: a sum that adds them as they are, or an output."""
    found = {}
    for node in graph.nodes:
        readers = graph.readers(node.index)
        if len(readers) != 1 or readers[0].shape != node.shape or readers[0].inputs.count(node.index) != 1:
            continue
        (reader,) = readers
        places = dict(zip(reader.inputs, reader.options.get("coefficients", (1.0,) * len(reader.inputs)), strict=True))
        if reader.kind in ("sum", "output") and places[node.index] == 1.0:
            found[node.index] = reader.index
    return found


class _Forward(nn.Module):
    """The forward of a module as a module of its own, so that it can be followed from within a call of the module."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self._forward = (forward,)  # a bound method of a module is no submodule

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call it."""
        return self._forward[0](*args, **kwargs)


@contextmanager
def observed(
    model: nn.Module, graph: Graph, *, scale: float = 1.0, stepped: Stepped | None = None
) -> Iterator[Observer]:
    """Observe the one forward and backward pass that runs within, and that is otherwise as it would be.

    Args:
        model: That of the graph, in the mode that it was read in; where it is wrapped in DDP, the module inside.
        graph: What :func:`mpelu.graph.read` returned for it.
        scale: What gradients are divided by.
        stepped: Says what step an optimizer would take; see :func:`mpelu.diagnostics.steps.steps_of`.

    Yields:
        The observer; its records are complete behind the backward pass. Of several forward passes it keeps the last.
    """
    observer = Observer(graph, scale=scale)
    inner = _Forward(model.forward)
    had = vars(model).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return run(inner, (args, kwargs), graph, observer.visit)

    handles = observer.see_parameters(dict(model.named_parameters()), stepped)
    with eagerly():
        vars(model)["forward"] = forward
        try:
            yield observer
        finally:
            del vars(model)["forward"]
            if had is not None:
                vars(model)["forward"] = had
            for handle in handles:
                handle.remove()
