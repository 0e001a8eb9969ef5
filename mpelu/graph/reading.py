"""Reading a model: it is run once, and what it calls is merged into a graph.

A run is recorded, on tensors without values (the meta device) and with every call of a torch function noted by a
``TorchFunctionMode``. So order is execution order, whatever Python does between the calls: functional activations,
modules that are used twice, tied weights, loops and branches need no rule. Nothing is copied and no memory is needed;
a model may be on the meta device itself. Where the forward needs values (``if x.sum() > 0``, ``.item()``), it is run
for real, with clones of the buffers.

Other ways were measured, on one core, with torch 2.13: ``torch.export`` takes 1.3 s for the catalog's plain30, 4.4 s
for nopre164 and 27 s for nopre1001, and refuses branches on values; this takes 0.02, 0.15 and 0.9 s. torch.fx refuses
control flow, and hooks on modules do not see what is called between them. What a run does not show are branches that
it does not take: the graph is that of the example, in the mode that the model is in.

The steps, each in its file: ``capture`` runs the model and ``calls`` records; ``functions`` knows torch, and ``facts``
works out what depends on what; ``drafts``, ``meaning`` and ``norms`` make nodes of calls, ``naming`` names them.
``pointwise`` holds the functions of activations, and ``running`` visits the nodes in a real pass.
"""

from torch import nn

from mpelu.graph.capture import Example, capture
from mpelu.graph.merge import merge
from mpelu.graph.nodes import Graph


def read(model: nn.Module, example: Example, *, on_meta: bool = True) -> Graph:
    """Return a model as a graph: its steps in execution order, and what each reads.

    Calls that apply a function entry by entry to ONE value are one node, however they are spelled (``x *
    torch.sigmoid(x)``), where something else reads the result: kind ``activation``, or ``scale`` if it is affine. The
    node has the function, for any tensor and dtype. What changes no entry (``nn.Identity``, dropout in eval mode,
    ``.contiguous()``) is no node. A function that is not known is a node of kind ``opaque``, and so is a module that
    computes outside of torch's functions (NumPy, TorchScript): whoever uses the graph decides what that means.

    Args:
        model: Any module. Nothing about it is changed: mode, buffers, attributes, gradients; nor are random numbers
            drawn. Parameters may be on any device.
        example: A tensor, a tuple of positional arguments, or a dict of keyword arguments. The values matter only
            where the forward asks for them. A batch of one is doubled where the model refuses it, as batch
            normalization does in training mode.
        on_meta: False to run it on the example at once, with values.

    Raises:
        UsageError: If the model does not accept the example, or needs values and is on the meta device.
        UnknownNodeError: If the model's own forward makes a tensor by something that is no torch function.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> graph = read(model, torch.zeros(1, 8))
        >>> [(node.kind, node.name) for node in graph.nodes]
        [('input', 'input'), ('weight', '0'), ('activation', '1'), ('weight', '2'), ('output', 'output')]
        >>> graph.nodes[1].function is None, graph["1"].function(torch.tensor([-1.0, 1.0]))
        (True, tensor([0., 1.]))
    """
    return merge(capture(model, example, on_meta=on_meta))
