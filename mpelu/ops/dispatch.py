"""Which backend computes MPELU."""

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from mpelu.ops import cpu, fused, operator, output, reference
from mpelu.ops.plain import is_plain, torch_only_computes, unseen

_on_cpu = fused.function(cpu)


def at_once(x: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor | None:
    """Compute MPELU where nothing has to be checked or converted first, which is nearly always; else return None.

    What the compiled module sees at a glance replaces all other checks. Between the layers of a network, where nothing
    of Python is in the caches, those would take 20 us.
    """
    # is_compiling() takes 6 us more there; what it knows besides, torch.export, traces by a dispatch mode
    if is_dynamo_compiling() or not torch_only_computes():
        return None
    module = cpu.compiled()
    if module is None or not module.reads(x, alpha, beta):
        return None
    return _on_cpu(x, alpha, beta)


def apply(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute MPELU: with a kernel where there is one and the tensors are plain, else with the operators of torch."""
    if torch.compiler.is_compiling():
        with unseen():  # a TorchFunctionMode sees the call of MPELU, not what it is made of, as in eager mode
            return _traced(x, alpha, beta)
    backend = _backend(x, alpha, beta)
    if backend is not None:
        return fused.apply(backend, x, alpha, beta)
    return _call(reference.Reference, x, alpha, beta)


def _traced(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute MPELU as torch.compile wants it or, for an exported program, with the operators of torch alone."""
    if torch.compiler.is_exporting():
        return reference.forward(x, alpha, beta)
    if operator.supports(x):
        return operator.apply(x, alpha, beta)
    return _call(reference.Traceable, x, alpha, beta)


def apply_keeping_output(x: Tensor, alpha: Tensor, beta: Tensor, *, inplace: bool) -> Tensor:
    """Compute MPELU so that autograd keeps y and not x; ``inplace`` also writes y over x.

    Under torch.compile, which decides by itself what is kept, and for tensors that are not plain, this is
    :func:`apply`: the same values, without the saving.
    """
    if torch.compiler.is_compiling():
        return apply(x, alpha, beta)
    backend = _backend(x, alpha, beta)
    if backend is None and not is_plain(x, alpha, beta):
        return apply(x, alpha, beta)
    return output.apply(backend, x, alpha, beta, inplace=inplace)


def _backend(x: Tensor, alpha: Tensor, beta: Tensor) -> fused.Backend | None:
    """Return the kernels for these tensors, None where torch's operators have to do."""
    if not is_plain(x, alpha, beta):
        return None
    backend = cpu if x.is_cpu else cuda()
    return backend if backend is not None and backend.supports(x) else None


@cache
def cuda() -> fused.Backend | None:
    """Import the kernels for CUDA devices; without Triton, warn once and return None."""
    try:
        from mpelu.ops import triton
    except ImportError as error:
        warnings.warn(
            f"MPELU on CUDA devices is several times slower without Triton ({error}). Install it: pip install triton",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return triton


def _call(function: type[torch.autograd.Function], x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    result: Tensor = function.apply(x, alpha, beta)  # type: ignore[no-untyped-call]
    return result
