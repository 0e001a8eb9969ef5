"""What a model is calibrated on where there is no data."""

import math

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.graph import Graph, read
from mpelu.graph.calls import leaves, replaced
from mpelu.graph.capture import Example
from mpelu.init.uses import fillable

SAMPLES = 65536
"""Entries that the smallest output of a layer shall have: the mean square of so many independent ones is good to 0.6 %;
those at neighbouring positions are not independent."""
LARGEST_BATCH = 4096
ENTRIES = 2**25
"""Entries of all outputs together, above which no more examples are taken than SMALLEST_BATCH."""
SMALLEST_BATCH = 4


def noise_like(model: nn.Module, example: Example, graph: Graph) -> Example:
    """Return N(0, 1) in the shape of an example, with enough examples for a stable mean square in every layer.

    Integers are repeated. What has another size than the batch in its first dim keeps its shape, and so does everything
    where the model takes no other batch. It draws from a generator of its own, on the CPU.

    Args:
        model: Says on which device the noise is to be.
        example: That of the graph.
        graph: Says how large the outputs are.
    """
    tensors = leaves(example, Tensor)
    batch = next((len(tensor) for tensor in tensors if tensor.dim() > 1), 0)
    devices = {parameter.device for parameter in model.parameters()}
    device = devices.pop() if len(devices) == 1 else None
    rows = _rows(graph)

    def probe(count: int) -> Example:
        stream = torch.Generator("cpu").manual_seed(0)

        def noise(tensor: Tensor) -> Tensor:
            batched = batch > 0 and tensor.dim() > 0 and len(tensor) == batch
            sizes = (count, *tensor.shape[1:]) if batched else tuple(tensor.shape)
            if tensor.is_floating_point():
                found = torch.randn(sizes, generator=stream, device="cpu").to(tensor.dtype)
            else:
                found = tensor.repeat_interleave(-(-count // batch), 0)[:count] if batched else tensor
            return found.to(tensor.device if device is None else device)

        found: Example = replaced(example, Tensor, noise)
        return found

    if not batch or not any(tensor.is_floating_point() for tensor in tensors):
        return probe(batch)
    try:
        read(model, probe(rows))
    except UsageError:  # for instance a sequence that is not batch first, with learned positions
        return probe(batch)
    return probe(rows)


def _rows(graph: Graph) -> int:
    sizes = [(node, math.prod(node.shape[1:])) for node in graph.nodes if node.shape]
    smallest = min((size for node, size in sizes if fillable(node)), default=SAMPLES)
    wanted = min(LARGEST_BATCH, -(-SAMPLES // max(1, smallest)))
    return max(SMALLEST_BATCH, min(wanted, ENTRIES // max(1, sum(size for _, size in sizes))))
