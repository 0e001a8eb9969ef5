"""From a graph to the rows of a plan: one walk that follows the signal and chooses weight after weight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from mpelu.graph import Graph, Node, UnknownNodeError
from mpelu.init.calibrate import Target
from mpelu.init.fans import Taps
from mpelu.init.fill import MATRICES
from mpelu.init.joining import factor
from mpelu.init.laws import Laws
from mpelu.init.rows import AS_IS, THROUGH, PlanRow
from mpelu.init.rules import METHODS, PUBLISHED, Choice, Question, slope
from mpelu.init.signal import Gaussian, Reach, Signal, multiplied, reach
from mpelu.init.starts import Norms, left_alone
from mpelu.init.uses import Branch, Use, behind, read_uses


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; the names and meanings are those of the arguments of :func:`mpelu.plan`."""

    method: str
    mode: str
    std: float
    distribution: str
    residual: str
    heads: str
    skip: tuple[str, ...]
    measured: bool

    def skipped(self, name: str) -> bool:
        """True for a parameter that is left as it is."""
        return any(fnmatchcase(name, pattern) for pattern in self.skip)


class Choices:
    """The rows of a plan; the work is done when it is made.

    Attributes:
        uses: The weights that are filled.
        targets: Second moment that the output of each weight is to have, by name.
        signals: What is expected behind each node of the graph.
        rows: For every parameter, those of the weights first, in execution order.

    Raises:
        UsageError: If no weight can restore what a layer reads, or a method does not cover an activation.
        UnknownNodeError: If a node that feeds a weight is not understood.
    """

    def __init__(self, model: nn.Module, graph: Graph, wishes: Wishes) -> None:
        self._model, self._graph, self._wishes = model, graph, wishes
        self.uses = [use for use in read_uses(graph, model) if not wishes.skipped(use.weight)]
        self.targets: dict[str, Target] = {}
        self._gaussian = Gaussian()
        self._norms = Norms(graph, model, zero=wishes.residual in ("zero", "fixup"), skipped=wishes.skipped)
        self._laws = Laws(graph, model, self._gaussian, self._norms)
        self._first = {use.node.index: use for use in self.uses}
        self._by_call = {node.index: use for use in self.uses for node in use.calls}
        self._chosen: dict[str, Choice] = {}
        self._again: dict[str, list[tuple[Node, float]]] = {}
        self._weight_rows: dict[str, PlanRow] = {}
        self._not_understood: dict[str, list[str]] = {}
        self.signals: list[Signal] = []
        self._walk()
        self.rows = self._all_rows()

    def _walk(self) -> None:
        signals = self.signals
        net_slope = self._net_slope()
        for node in self._graph.nodes:
            if node.index in self._first:
                signals.append(self._choose(self._first[node.index], signals, net_slope))
            elif node.kind == "weight":
                signals.append(self._called_again(node, signals))
            else:
                signals.append(self._laws.behind(node, signals))
        if self._not_understood:
            missing = self._not_understood.items()
            reasons = {
                name: f" ({self._laws.reasons[name]})" if name in self._laws.reasons else "" for name, _ in missing
            }
            feeds = "; ".join(f"{name!r}{reasons[name]}, which feeds {', '.join(weights)}" for name, weights in missing)
            weights = [weight for _, found in missing for weight in found]
            raise UnknownNodeError(
                f"not understood: {feeds}. Measure what it does (refine='noise', or 'data' with a batch as example), "
                f"or leave these as they are: skip={weights!r}"
            )

    def _net_slope(self) -> float:
        if self._wishes.method != "released":
            return 1.0
        first = next((use.source for use in self.uses if use.source.kind == "activation"), None)
        return 1.0 if first is None else slope(self._graph, first, self._gaussian)

    def _choose(self, use: Use, signals: Sequence[Signal], net_slope: float) -> Signal:
        wishes, reads = self._wishes, self._read(use.node, signals)
        self._check(use, reads)
        distribution = wishes.distribution if _fits(wishes.distribution, use) else "normal"
        taps: Taps = "centre" if distribution == "delta_orthogonal" else "all"
        reached = reach(self._graph, use.node, use.shape, use.fans.fan_in, reads, taps=taps)
        share = None if use.branch is None else self._share(use.branch, signals)
        target = 1.0 if share is None else share
        zero = target == 0.0 or (use.head and wishes.heads == "zero")
        if zero:
            why = "zero branch" if target == 0.0 else "zero head"
            choice = Choice(0.0, use.fans.of(wishes.mode), why, distribution="constant")
        else:
            choice = METHODS[wishes.method](
                Question(
                    use=use,
                    mode=wishes.mode,
                    std=wishes.std,
                    distribution=distribution,
                    net_slope=net_slope,
                    reads=reads,
                    before=self._before(use, signals),
                    fan_in=reached.fan_in,
                    target=target,
                    gaussian=self._gaussian,
                    graph=self._graph,
                )
            )
        self.targets[use.weight] = Target(target)
        if share and use.branch is not None and wishes.residual == "scale":
            self.targets[use.weight] = Target(target, use.branch.start, 1 / use.branch.length)
        self._chosen[use.weight] = choice
        found = self._signal(use, choice, use.node, reads, reached)
        self._note(use, choice, found, reads)
        return replace(found, unknown="")  # it has been noted, once

    def _read(self, node: Node, signals: Sequence[Signal]) -> Signal:
        """Return what a call reads; of a bilinear one, whose two inputs are multiplied, their product."""
        reads, *others = (factor(self._graph.nodes[index], signals[index]) for index in node.inputs)
        for other in others:
            reads = replace(
                reads,
                mean=reads.mean * other.mean,
                second_moment=reads.second_moment * other.second_moment,
                within=None,
                across=None,
                profile=None,
                assumed=reads.assumed or other.assumed,
                unknown=reads.unknown or other.unknown,
            )
        return reads

    def _before(self, use: Use, signals: Sequence[Signal]) -> Signal | None:
        """Return the signal that the activation reads which feeds a weight in a chain."""
        node = self._graph.nodes[use.node.inputs[0]]
        while node.kind != "activation" and node.inputs:
            node = self._graph.nodes[node.inputs[0]]
        return signals[node.inputs[0]] if node.kind == "activation" else None

    def _check(self, use: Use, reads: Signal) -> None:
        """Note a node that is not understood and that a rule would have to understand."""
        if self._wishes.measured:
            return
        if use.source.kind == "opaque":
            self._not_understood.setdefault(use.source.name, []).append(use.weight)
        elif reads.unknown and self._wishes.method not in PUBLISHED:
            self._not_understood.setdefault(reads.unknown, []).append(use.weight)

    def _share(self, branch: Branch, signals: Sequence[Signal]) -> float | None:
        """Return the second moment that a weight in a residual branch is to give; None where it is as any other."""
        kind = self._wishes.residual
        if kind == "none" or (kind in ("scale", "zero") and not branch.last):
            return None
        if kind == "zero" or (kind == "fixup" and branch.last):
            return 0.0
        trunk = signals[branch.start].second_moment if branch.start < len(signals) else 0.0
        if kind == "scale":
            return (trunk or 1.0) / branch.length
        return branch.length ** (-branch.place / (branch.size - 1)) if branch.place < branch.size else None

    def _called_again(self, node: Node, signals: Sequence[Signal]) -> Signal:
        """Follow the signal through a call whose weight was chosen at an earlier call, or is left as it is."""
        use = self._by_call.get(node.index)
        choice = self._chosen.get(use.weight) if use is not None else None
        bit = 1 << node.index
        if use is None or choice is None or choice.std is None or not node.inputs:
            return Signal(within=None, across=None, assumed=node.name, origins=bit, names=bit)
        reads = self._read(node, signals)
        found = self._signal(use, choice, node, reads, reach(self._graph, node, use.shape, use.fans.fan_in, reads))
        self._again[use.weight].append((node, found.second_moment))
        return found

    def _signal(self, use: Use, choice: Choice, node: Node, reads: Signal, reached: Reach) -> Signal:
        """Return the signal behind a call of a weight."""
        if choice.std is None:
            found = Signal(within=None, across=None, assumed=reads.assumed or node.name)
        else:
            found = multiplied(node, reads, reached, std=choice.std, bias_std=choice.bias_std, centered=choice.centered)
        return replace(found, origins=1 << node.index, names=1 << use.node.index)

    def _note(self, use: Use, choice: Choice, found: Signal, reads: Signal) -> None:
        layer, shape = use.layer, use.node.shape[1:]
        self._again[use.weight] = [(use.node, found.second_moment)]
        silent = self._wishes.measured or self._wishes.method in PUBLISHED or not choice.std
        assumed = "" if silent else reads.assumed
        taken = f"; behind {assumed} a second moment of {reads.second_moment:.3g} is assumed" if assumed else ""
        left = choice.std is None
        self._weight_rows[use.weight] = PlanRow(
            parameter=use.weight,
            layer=layer,
            fed_by=use.source.name,
            fill=AS_IS if left else choice.distribution,
            std=choice.std,
            equation=choice.equation + taken,
            fan=choice.fan,
            gain=None if choice.std is None else choice.std * choice.fan**0.5,
            slope=choice.slope,
            second_moment=None if found.assumed else found.second_moment,
            output_shape=tuple(shape),
            shape=use.behind.shape,
            groups=use.groups,
            centered=choice.centered,
        )
        for name in use.behind.originals:
            self._weight_rows[name] = PlanRow(
                name,
                layer,
                use.source.name,
                THROUGH if not left else AS_IS,
                None,
                f"{use.behind.computed_by} computes {use.weight} from it",
                shape=tuple(self._model.get_parameter(name).shape),
            )
        if use.bias is not None and not self._wishes.skipped(use.bias):
            self._weight_rows[use.bias] = PlanRow(
                parameter=use.bias,
                layer=layer,
                fed_by=use.source.name,
                fill=AS_IS if left else ("normal" if choice.bias_std else "constant"),
                std=None if left else choice.bias_std,
                equation=choice.equation if left else ("biases, critical" if choice.bias_std else "biases"),
                output_shape=tuple(shape),
                shape=tuple(self._model.get_parameter(use.bias).shape),
            )

    def _all_rows(self) -> tuple[PlanRow, ...]:
        rows = {row.parameter: row for row in (*self._weight_rows.values(), *self._norms.rows())}
        for use in self.uses:
            if use.shared > 1:
                row = rows[use.weight]
                rows[use.weight] = replace(row, equation=f"{row.equation}; {self._told(use)}")
        for name, _ in self._model.named_parameters():
            if name not in rows:
                rows[name] = left_alone(self._graph, self._model, name, skipped=self._wishes.skipped(name))
        return tuple(rows.values())

    def _told(self, use: Use) -> str:
        """Say how often a weight is read, and what the later calls make of a rule that looked at the first."""
        ops = list(dict.fromkeys(behind(self._graph, node.inputs[0]).op for node in use.calls))
        found = [second_moment for _, second_moment in self._again[use.weight]]
        times = f"read {use.shared} times"
        if len(ops) > 1:
            return f"{times}, fed by {', '.join(ops)}: set for the first"
        if max(found) > 1.01 * min(found):
            return f"{times}, set for the first (q up to {max(found):.3g})"
        return times


def _fits(distribution: str, use: Use) -> bool:
    """True where the dims of a parameter are those of a matrix or kernel, as an orthogonal fill takes them."""
    if distribution not in MATRICES:
        return True
    shape = use.behind.shape
    return len(shape) == 2 or (shape == use.shape and use.node.op not in ("matmul", "einsum"))
