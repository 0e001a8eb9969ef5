"""MPELU on CPU: one pass over memory forward and one backward, by a compiled module that knows nothing of torch.

The module is built from ``csrc``. It takes threads from torch's own pool, so torch has to be loaded first.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.ops.fused import channel_stride

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The number that the compiled module knows a dtype by."""


@cache
def compiled() -> ModuleType | None:
    """Load the compiled module; without it, warn once and return None.

    It uses the best instruction set of this CPU, or the one that the environment variable ``MPELU_ISA`` names.

    Raises:
        UsageError: If this CPU has none of that name.
    """
    try:
        from mpelu.ops import _cpu
    except ImportError as error:
        warnings.warn(
            f"MPELU on CPU is several times slower without its compiled part ({error}). Install a wheel of mpelu, or "
            "install it from source where there is a C++ compiler",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    available = _cpu.instruction_sets()
    name = os.environ.get("MPELU_ISA") or available[-1]
    if name not in available:
        raise UsageError(f"MPELU_ISA must be one of {', '.join(available)} on this CPU, got {name!r}")
    _cpu.use(name)
    module: ModuleType = _cpu
    return module


def instruction_set() -> str | None:
    """Return the name of the instructions that compute MPELU on this CPU, None without the compiled module."""
    module = compiled()
    return None if module is None else os.environ.get("MPELU_ISA") or module.instruction_sets()[-1]


def supports(x: Tensor) -> bool:
    """Return whether there are kernels for a plain tensor like this one."""
    return x.dtype in _DTYPES and x.numel() > 0 and compiled() is not None


def _kernels() -> ModuleType:
    module = compiled()
    assert module is not None  # supports() has said so
    return module


def forward(x: Tensor, alpha: Tensor, beta: Tensor, *, inplace: bool = False) -> Tensor:
    """Return y for tensors as :class:`mpelu.ops.fused.Backend` describes them."""
    y = x if inplace else torch.empty_like(x)  # each element is read before it is written
    channels = alpha.numel()
    _kernels().forward(
        _DTYPES[x.dtype],
        x.numel(),
        channels,
        channel_stride(x, channels),
        torch.get_num_threads(),
        alpha.data_ptr(),
        beta.data_ptr(),
        x.data_ptr(),
        y.data_ptr(),
    )
    return y


def backward(grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for x, alpha and beta."""
    return _backward(_kernels().backward, grad, x, alpha, beta)


def backward_from_output(grad: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for x, alpha and beta where alpha * beta > 0."""
    return _backward(_kernels().backward_from_output, grad, y, alpha, beta)


def _backward(
    kernel: Callable[..., None], grad: Tensor, saved: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_alpha, grad_beta = torch.empty_like(saved), torch.empty_like(alpha), torch.empty_like(beta)
    channels = alpha.numel()
    kernel(
        _DTYPES[saved.dtype],
        saved.numel(),
        channels,
        channel_stride(saved, channels),
        torch.get_num_threads(),
        alpha.data_ptr(),
        beta.data_ptr(),
        grad.data_ptr(),
        saved.data_ptr(),
        grad_x.data_ptr(),
        grad_alpha.data_ptr(),
        grad_beta.data_ptr(),
    )
    return grad_x, grad_alpha, grad_beta
