"""What a model is read into: nodes in execution order, and who reads whom."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from torch import Tensor, nn

from mpelu.errors import MpeluError, UsageError
from mpelu.graph.calls import Trace

KINDS = {
    "input": "a tensor that the model is given",
    "weight": "a product with a parameter: convolutions (transposed too), linear, bilinear, matmul, einsum",
    "activation": "a function, applied entry by entry, of ONE value; not affine",
    "scale": "an affine function, entry by entry, of one value: times and plus numbers or parameters",
    "norm": "batch, layer, group, instance, RMS and local response normalization, and F.normalize",
    "sum": "a sum or difference of two values",
    "product": "a product or quotient of two values, entry by entry or as matrices",
    "concat": "values side by side",
    "pad": "entries added at the borders",
    "pool": "one entry for many: pooling, and reductions over dimensions",
    "dropout": "entries dropped at random; only where they are, in training mode",
    "shape": "the same entries in another order or shape, or some of them",
    "resize": "interpolation between entries",
    "softmax": "a softmax and its relatives",
    "attention": "scaled dot-product attention, with or without its projections",
    "embedding": "rows of a table, chosen by integers",
    "recurrent": "an RNN, LSTM or GRU, or a cell of one",
    "constant": "a value that is computed from no input: a parameter, buffer or constant used as a value",
    "output": "a tensor that the model returns",
    "opaque": "anything else: known by its inputs and parameters only",
}

CARRIERS = ("weight", "attention", "recurrent", "embedding")
"""Kinds that multiply with a weight, or look up in one."""
PROBABILITIES = ("sigmoid", "logsigmoid")
"""Activations that turn the output of a head into probabilities; what stands before them is still the head."""


class UnknownNodeError(MpeluError):
    """The graph holds something whose effect on the signal is not known here."""


@dataclass(frozen=True)
class Node:
    """One step of a model. The kinds are those of :data:`KINDS`.

    A call that returns several tensors that are used (``chunk``, an LSTM) is a node for each; all but the first have
    the position of their tensor in ``options["output"]`` and no parameters.
    """

    index: int
    """Position in ``Graph.nodes``, which are in execution order."""
    kind: str
    name: str
    """Readable and unique: ``features.3``, ``features.3#2`` at the second use, ``block.0.relu``, ``add_4``."""
    op: str
    """The function's name without the marks of its spelling: ``conv2d``, ``relu``, ``add``, ``max_pool2d``."""
    inputs: tuple[int, ...]
    """Indices of the nodes that it reads."""
    shape: tuple[int, ...]
    """Of its output, with the batch dimension."""
    module: str
    """Path of the innermost module that made the call; "" is the model itself."""
    parameters: Mapping[str, tuple[str, ...]]
    """Role (``weight``, ``bias``, ...) to the names of the parameters and buffers that it depends on."""
    options: Mapping[str, Any]
    """The other arguments by name. Some are added, or put in one form:

    - ``weight``: ``stride``, ``padding`` and so on as tuples; ``weight_shape`` as it is used; ``computed`` where it is
      more than a parameter in another shape; ``fixed`` where it depends on none; ``side`` ("left", "right") and
      ``equation`` for products of matrices.
    - ``activation``, ``scale``: ``channel_dim``, along which parameters change; ``random`` where it draws.
    - ``norm``: ``affine``. ``pool``: ``mode``, "avg", "max" or the name of the reduction.
    - ``sum``: ``coefficients`` of the two values. ``constant``: ``random``, the function that drew it.
    - ``dropout``: ``p``, None where it is not known; ``scaled`` for masks that the model multiplies with: whether what
      is kept grows by 1 / (1 - p).
    - Arguments whose names are not known: ``arguments``.
    """
    function: Callable[[Tensor], Tensor] | None = field(default=None, compare=False, repr=False)
    """Of ``activation`` and ``scale``: the function of its single input."""
    source: nn.Module | None = field(default=None, compare=False, repr=False)
    """The module whose call it is, where it is one module's call and nothing else."""
    calls: tuple[int, ...] = field(default=(), repr=False)
    """Positions in ``Graph.trace.calls`` of the calls that it is made of; the last one gives its value."""


@dataclass(frozen=True)
class Place:
    """Where in a forward pass the value of a node is met.

    It is tensor number ``position`` among the ``moment``: "inputs" of the model, "arguments" or "results" of call
    ``index`` of the trace, what module call ``index`` of the trace "returned", or the "outputs" of the model.
    """

    moment: str
    index: int
    position: int


@dataclass(frozen=True)
class Graph:
    """A model as nodes in execution order; see :func:`mpelu.graph.read`."""

    nodes: tuple[Node, ...]
    parameters: Mapping[str, tuple[int, ...]]
    """Every parameter of the model, by name (a shared one by its first), to the nodes that use it."""
    trace: Trace = field(compare=False, repr=False)
    places: tuple[Place, ...] = field(compare=False, repr=False)
    """Where the value of each node is met."""

    def __getitem__(self, name: str) -> Node:
        """Return the node of a name."""
        if name not in self._names:
            raise UsageError(f"no node is called {name!r}; there are {', '.join(self._names)}")
        return self._names[name]

    def readers(self, index: int) -> tuple[Node, ...]:
        """Return the nodes that read the value of a node, in execution order."""
        return self._readers[index]

    @property
    def weights(self) -> tuple[Node, ...]:
        """The nodes of kind ``weight`` that depend on a parameter; a fixed kernel in a buffer is none."""
        return tuple(node for node in self.nodes if node.kind == "weight" and not node.options["fixed"])

    @property
    def carriers(self) -> tuple[Node, ...]:
        """The nodes that have a learned weight: kinds ``weight``, ``attention``, ``recurrent`` and ``embedding``."""
        return tuple(
            node
            for node in self.nodes
            if node.kind in CARRIERS and any(name in self.parameters for name in chain(*node.parameters.values()))
        )

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the parameters that no node uses."""
        return tuple(name for name, users in self.parameters.items() if not users)

    def is_head(self, index: int) -> bool:
        """True where no weight, norm, activation or sum stands behind a node: it makes the output of the model.

        A sigmoid or softmax that turns the output into probabilities does not count. What is not understood does.
        """
        return index not in self._before_more

    @cached_property
    def _names(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _readers(self) -> list[tuple[Node, ...]]:
        found: list[dict[int, Node]] = [{} for _ in self.nodes]
        for node in self.nodes:
            for index in node.inputs:
                found[index][node.index] = node
        return [tuple(readers.values()) for readers in found]

    @cached_property
    def _before_more(self) -> frozenset[int]:
        """Indices of the nodes behind which something stands that makes them no head."""
        found: set[int] = set()
        for node in reversed(self.nodes):
            if node.index in found or _ends_a_head(node):
                found.update(node.inputs)
        return frozenset(found)


def _ends_a_head(node: Node) -> bool:
    if node.kind == "activation":
        return node.op not in PROBABILITIES
    return node.kind in ("weight", "norm", "sum", "attention", "recurrent", "opaque")
