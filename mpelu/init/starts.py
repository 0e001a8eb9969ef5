"""What parameters start as that no signal is multiplied with: those of normalizations, and why others stay."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from mpelu.graph import Graph, Node
from mpelu.init.parametrized import why_not
from mpelu.init.rows import AS_IS, PlanRow
from mpelu.init.signal import started
from mpelu.init.uses import branches

REASONS = {
    "activation": "parameter of an activation",
    "scale": "a factor, or an offset",
    "attention": "no law for attention: torch's own initialization stays",
    "recurrent": "no law for recurrent layers: torch's own initialization stays",
    "embedding": "rows of a table, not a product",
    "constant": "used as a value",
}
"""Why a parameter that belongs to a node of this kind is left as it is."""

AS_IDENTITY = "normalization starts as the identity"
STATISTICS = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
"""Buffers of a normalization, and what they start as."""


@dataclass(frozen=True)
class Norm:
    """A normalization, which may be called several times.

    Attributes:
        node: Its first call.
        weight: Name of the factors, "" where there are none or they are left as they are.
        bias: Name of the shifts, in the same way.
        factor: What the factors start as.
        why: What the factors are for.
        statistics: Names of running statistics, to what they start as.
    """

    node: Node
    weight: str
    bias: str
    factor: float
    why: str
    statistics: Mapping[str, float]


class Norms:
    """The normalizations of a model: they start as the identity, with fresh running statistics.

    Args:
        graph: The model as a graph.
        model: The model.
        zero: Whether those that end a residual branch start at 0.
        skipped: True for the names of parameters that stay as they are; with them stay the running statistics.
    """

    def __init__(self, graph: Graph, model: nn.Module, *, zero: bool, skipped: Callable[[str], bool]) -> None:
        self._skipped = skipped
        self._held = dict(model.named_parameters())
        self._buffers = dict(model.named_buffers())
        self._ends = {index for index, branch in branches(graph).items() if zero and branch.last}
        self._norms: dict[tuple[str, ...], Norm] = {}
        for node in graph.nodes:
            if node.kind == "norm" and _key(node) not in self._norms:
                self._norms[_key(node)] = self._norm(node)

    def affine(self, node: Node) -> tuple[float, float, float]:
        """Return the mean square of the factors, and the mean and mean square of the shifts, as they will start."""
        norm = self._norms[_key(node)]
        _, square = (norm.factor, norm.factor**2) if norm.weight else self._present(node, "weight", 1.0)
        shift, shift_square = (0.0, 0.0) if norm.bias else self._present(node, "bias", 0.0)
        return square, shift, shift_square

    def rows(self) -> list[PlanRow]:
        """Return the rows of factors, shifts and running statistics."""
        rows = []
        for norm in self._norms.values():
            for name, value, why in ((norm.weight, norm.factor, norm.why), (norm.bias, 0.0, AS_IDENTITY)):
                if name:
                    rows.append(_constant(name, norm.node, value, why, self._held[name]))
            for name, value in norm.statistics.items():
                rows.append(_constant(name, norm.node, value, "running statistics start anew", self._buffers[name]))
        return rows

    def _norm(self, node: Node) -> Norm:
        weight, bias = (_only(node, role) for role in ("weight", "bias"))
        path = _only(node, "running_mean").removesuffix("running_mean")
        left = any(name and self._skipped(name) for name in (weight, bias))
        end = node.index in self._ends
        return Norm(
            node,
            weight="" if self._skipped(weight) or weight not in self._held else weight,
            bias="" if self._skipped(bias) or bias not in self._held else bias,
            factor=0.0 if end else 1.0,
            why="zero branch" if end else AS_IDENTITY,
            statistics={
                path + name: value
                for name, value in STATISTICS.items()
                if path + name in self._buffers and not left and not self._skipped(path + name)
            },
        )

    def _present(self, node: Node, role: str, neutral: float) -> tuple[float, float]:
        """Return mean and mean square of what stays as it is; the neutral value where there is none, or no memory."""
        parameter = self._held.get(_only(node, role))
        if parameter is None or parameter.is_meta:
            return neutral, neutral**2
        values = parameter.detach().double()
        return values.mean().item(), values.square().mean().item()


def _key(node: Node) -> tuple[str, ...]:
    """Return what the calls of one normalization have in common."""
    return tuple(name for names in node.parameters.values() for name in names) or (node.name,)


def _only(node: Node, role: str) -> str:
    """Return the name of the one parameter or buffer in a role, "" where there is none or several."""
    names = node.parameters.get(role, ())
    return names[0] if len(names) == 1 else ""


def _constant(name: str, node: Node, value: float, why: str, held: Tensor) -> PlanRow:
    return PlanRow(name, node.op, node.name, "constant", value, why, shape=tuple(held.shape))


def left_alone(graph: Graph, model: nn.Module, name: str, *, skipped: bool) -> PlanRow:
    """Return the row of a parameter that no rule fills, with the reason.

    A parameter of an activation that is on the meta device has no value that could stay: it gets the one that its
    module starts with.
    """
    users = [graph.nodes[index] for index in graph.parameters.get(name, ())]
    node = next((user for user in users if user.kind == "weight"), users[0] if users else None)
    row = PlanRow(
        parameter=name,
        layer="" if node is None else node.op,
        fed_by="" if node is None else node.name,
        fill=AS_IS,
        std=None,
        equation="skipped" if skipped else _reason(graph, model, node, name),
        shape=tuple(model.get_parameter(name).shape),
    )
    if skipped or node is None or node.kind != "activation" or not model.get_parameter(name).is_meta:
        return row
    value = _start(node, name)
    if value is None:
        return row
    return replace(row, fill="constant", std=value, equation="parameter of an activation, as its module starts")


def _reason(graph: Graph, model: nn.Module, node: Node | None, name: str) -> str:
    if node is None:
        return "the forward does not use it"
    if node.kind == "weight" and name not in node.parameters.get("weight", ()):
        return "its weight is left as it is"
    if node.kind == "weight":
        return why_not(graph, model, node)
    return REASONS.get(node.kind, f"belongs to {node.op}, for which there is no rule")


def _start(node: Node, name: str) -> float | None:
    """Return the value that the module of an activation starts a parameter with, None where it is not one number."""
    if node.source is None or not hasattr(node.source, "reset_parameters"):
        return None
    values = dict(started(node.source, node.name).named_parameters())[name.rpartition(".")[2]].detach()
    return values.flatten()[0].item() if values.numel() and bool((values == values.flatten()[0]).all()) else None


def warn_of_meta(rows: tuple[PlanRow, ...], model: nn.Module) -> None:
    """Warn of parameters on the meta device that nothing will give values to."""
    held = dict(model.named_parameters())
    empty = [
        row.parameter for row in rows if row.fill == AS_IS and row.parameter in held and held[row.parameter].is_meta
    ]
    if empty:
        warnings.warn(
            f"{len(empty)} parameters are on the meta device and the plan leaves them as they are: "
            f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}. After to_empty() they hold arbitrary numbers: "
            f"call reset_parameters() of their modules, or set them",
            UserWarning,
            stacklevel=4,
        )
