"""One forward and backward pass of a model, measured, with what mean field predicts beside it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpelu.diagnostics.measure import Observer
from mpelu.diagnostics.predict import predict as predictions
from mpelu.diagnostics.records import Diagnosis, LayerRecord, Verdict
from mpelu.diagnostics.steps import Steps
from mpelu.diagnostics.untouched import untouched
from mpelu.errors import UsageError
from mpelu.graph import Example, Graph, read, run
from mpelu.graph.calls import leaves, replaced
from mpelu.graph.capture import call

Loss = Callable[..., Tensor]

LARGEST_JACOBIAN = 2**16
"""Entries of a Jacobian whose singular values are worked out."""
ENDS = ("input", "output")


def diagnose(
    model: nn.Module,
    example: Example,
    loss: Loss | None = None,
    *,
    target: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    training: bool = True,
    seed: int = 0,
    jacobian: bool | None = None,
    predict: bool = True,
) -> Diagnosis:
    """Measure a model in one forward and backward pass, and say whether it can learn, and if not, why.

    Args:
        model: Any module with values. Nothing about it changes: outputs, buffers, modes, gradients, random states.
        example: A batch, as for :func:`mpelu.graph.read`; two examples at least, for correlations and noise. Numbers
            that depend on data are those of this batch.
        loss: Called with what the model returns, and with ``target`` where that is given; returns a scalar. None takes
            cross entropy where targets are given, else a fixed random projection of the outputs (see below).
        target: Second argument of the loss.
        optimizer: Gives ``update_ratio``; it takes no step.
        training: True measures in training mode, which is what trains, False in the mode that the model is in.
        seed: Of dropout, and of the projection.
        jacobian: Whether singular values of the Jacobian are worked out; None where it has at most LARGEST_JACOBIAN
            entries.
        predict: Whether mean field is asked.

    The random projection is ``<r, y> / (N sqrt(d))`` for N examples with outputs of d entries, r from N(0, 1). It
    exists for outputs of any shape, and the gradient that it sends back has the norm 1 / sqrt(N) for each output, as
    that of cross entropy about has, whatever the weights are: what is measured is the network alone.

    Raises:
        UsageError: If the model has no values, does not accept the example, or the loss is no scalar.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> found = diagnose(model, torch.randn(16, 8))
        >>> [record.name for record in found.records]
        ['input', '0', '1', '2', 'output']
    """
    model = unwrapped(model)
    _check(model)
    notes: list[str] = []
    steps = None if optimizer is None else Steps(optimizer, model)
    if steps is not None and not steps.exact:
        notes.append(f"update_ratio: the step of {type(optimizer).__name__} is taken to be lr times the gradient")
    with untouched(model, training=training, seed=seed) as parameters:
        graph = read(model, example)
        observer, value = measured_pass(model, example, graph, parameters, steps, _loss(loss, target, seed))
        singular = _singular_values(model, example, graph, jacobian, notes)
        records = observer.records()
        if predict:
            records = _predicted(model, graph, observer, records, notes)
    verdict = _verdict(records, value, graph, model, example, optimizer)
    return Diagnosis(
        model=type(model).__name__,
        records=records,
        verdict=verdict,
        loss=value,
        examples=max((len(tensor) for tensor in leaves(example, Tensor) if tensor.dim()), default=1),
        parameters=sum(own.numel() for own in model.parameters()),
        singular_values=singular,
        notes=tuple(notes),
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that DistributedDataParallel or DataParallel wraps: names are its own, nothing is sent."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError(
            "a diagnosis runs the model, and this one is on the meta device: give it memory and values first "
            "(model.to_empty(device='cpu'), then mpelu.initialize)"
        )


def measured_pass(
    model: nn.Module,
    example: Example,
    graph: Graph,
    parameters: dict[str, Tensor],
    steps: Steps | None,
    loss: Callable[[Any], Tensor],
) -> tuple[Observer, float]:
    """Run a model and its loss forward and backward, and return what was seen and the loss.

    Args:
        model: Within :func:`mpelu.diagnostics.untouched.untouched`.
        example: As for :func:`diagnose`.
        graph: Of the model.
        parameters: The stand-ins; a gradient is freed when it has been looked at.
        steps: Of the optimizer.
        loss: From what the model returns to a scalar.

    Raises:
        UsageError: If the loss is no scalar.
    """
    observer = Observer(graph)
    observer.see_parameters(parameters, steps)
    for parameter in parameters.values():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_forget)  # type: ignore[no-untyped-call]
    value = loss(run(model, replaced(example, Tensor, torch.Tensor.detach), graph, observer.visit))
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"loss must return a tensor with one entry, got {came}")
    if value.requires_grad and any(own.requires_grad for own in parameters.values()):
        torch.autograd.backward(value, inputs=[own for own in parameters.values() if own.requires_grad])
    return observer, value.item()


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _loss(loss: Loss | None, target: Any, seed: int) -> Callable[[Any], Tensor]:
    if loss is not None:
        return loss if target is None else lambda output: loss(output, target)
    if target is not None:
        return lambda output: F.cross_entropy(_only(output), target)
    return lambda output: projection(output, seed)


def _only(output: Any) -> Tensor:
    found = [tensor for tensor in leaves(output, Tensor) if tensor.is_floating_point()]
    if len(found) != 1:
        raise UsageError(f"with several outputs ({len(found)}) a loss has to be given: it is not clear what target is")
    only: Tensor = found[0]
    return only


def projection(output: Any, seed: int) -> Tensor:
    """Return ``<r, y> / (N sqrt(d))``, r from N(0, 1), added up over the outputs; see :func:`diagnose`.

    Raises:
        UsageError: If there is no output of floating point numbers.
    """
    stream = torch.Generator("cpu").manual_seed(seed)
    parts = [tensor for tensor in leaves(output, Tensor) if tensor.is_floating_point() and tensor.numel()]
    if not parts:
        raise UsageError("the model returns no tensor of floating point numbers: give a loss")
    total = torch.zeros((), device=parts[0].device)
    for part in parts:
        examples = len(part) if part.dim() else 1
        direction = torch.randn(part.shape, generator=stream, device="cpu").to(part)
        total = total + (part * direction).sum().to(total) / math.sqrt(examples * part.numel())
    return total


def _singular_values(
    model: nn.Module, example: Example, graph: Graph, wanted: bool | None, notes: list[str]
) -> tuple[float, ...]:
    """Return those of the Jacobian of all outputs with respect to all inputs of one example."""
    if wanted is False:
        return ()
    sizes = {kind: sum(math.prod(node.shape[1:]) for node in graph.nodes if node.kind == kind) for kind in ENDS}
    if wanted is None and math.prod(sizes.values()) > LARGEST_JACOBIAN:
        return ()
    if any(node.kind == "norm" and node.op == "batch_norm" for node in graph.nodes) and model.training:
        notes.append("no singular values: batch normalization mixes the examples")
        return ()
    try:
        return _of_jacobian(model, example)
    except RuntimeError as error:
        notes.append(f"no singular values: {str(error).splitlines()[0]}")
        return ()


def _of_jacobian(model: nn.Module, example: Example) -> tuple[float, ...]:
    inputs: list[Tensor] = []

    def first(tensor: Tensor) -> Tensor:
        one = tensor[:1].detach().clone() if tensor.dim() else tensor.detach()
        if one.is_floating_point():
            inputs.append(one.requires_grad_())
        return one

    outputs = [out for out in leaves(call(model, replaced(example, Tensor, first)), Tensor) if out.requires_grad]
    if not inputs:
        return ()
    rows = []
    for output in outputs:
        for entry in output.flatten():
            found = torch.autograd.grad(entry, inputs, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(own) if part is None else part for own, part in zip(inputs, found, strict=True)]
            rows.append(torch.cat([part.flatten().double() for part in parts]))
    if not rows or not bool(torch.stack(rows).isfinite().all()):
        return ()
    return tuple(torch.linalg.svdvals(torch.stack(rows)).tolist())


def _predicted(
    model: nn.Module, graph: Graph, observer: Observer, records: tuple[LayerRecord, ...], notes: list[str]
) -> tuple[LayerRecord, ...]:
    found = predictions(model, graph, observer)
    for direction, names in (("forward", found.forward_restarts), ("backward", found.backward_restarts)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            notes.append(f"predictions {direction} begin anew, from what was measured, at {', '.join(names[:5])}{more}")
    by_name = {node.name: found.of[node.index] for node in graph.nodes}
    return tuple(
        replace(
            record,
            predicted_second_moment=by_name[record.name].second_moment,
            predicted_correlation=None if record.correlation is None else by_name[record.name].correlation,
            predicted_gradient_norm=None if record.gradient_norm is None else by_name[record.name].gradient_norm,
        )
        for record in records
    )


def _verdict(
    records: tuple[LayerRecord, ...],
    loss: float | None,
    graph: Graph,
    model: nn.Module,
    example: Example,
    optimizer: torch.optim.Optimizer | None,
) -> Verdict:
    try:
        from mpelu.diagnostics.verdict import judge
    except ImportError:
        return Verdict("healthy")
    return judge(records, loss=loss, graph=graph, model=model, example=example, optimizer=optimizer)
