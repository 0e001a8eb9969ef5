"""MPELU on CPU: one pass over memory forward and one backward, by a compiled module that knows nothing of torch.

Beside it statistics of any tensor, of which a diagnosis takes a thousand: several operators of torch in one call.

The module is built from ``csrc``. It takes threads from torch's own pool, so torch has to be loaded first.
"""

import os
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.ops.fused import Gradients, alike
from mpelu.ops.plain import is_plain

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

        _cpu.read_tensors_of(Tensor, torch.nn.Parameter)
    except (ImportError, AttributeError, TypeError) as error:  # built from older sources, it lacks what is called
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


def forward(x: Tensor, alpha: Tensor, beta: Tensor, *, inplace: bool = False) -> Tensor:
    """Return y for tensors as :class:`mpelu.ops.fused.Backend` describes them."""
    module = compiled()
    assert module is not None
    y = x if inplace else torch.empty_like(x)  # each element is read before it is written
    module.forward(x, alpha, beta, y, torch.get_num_threads())
    return y


def backward(
    grad: Tensor, saved: Tensor, alpha: Tensor, beta: Tensor, *, from_output: bool = False
) -> Gradients | None:
    """Return the gradients for x, alpha and beta from x or y, None if grad or what was saved is not plain."""
    module = compiled()
    assert module is not None
    if not module.alike(grad, saved):
        if not is_plain(grad, saved):
            return None
        grad, saved = alike(grad, saved)
    gradients = torch.empty_like(saved), torch.empty_like(alpha), torch.empty_like(beta)
    compute = module.backward_from_output if from_output else module.backward
    compute(saved, alpha, beta, grad, *gradients, torch.get_num_threads())
    return gradients


def _kernels() -> ModuleType:
    module = compiled()
    assert module is not None  # readable() has said so
    return module


def readable(x: Tensor) -> bool:
    """Return whether statistics can be taken here of a tensor; else torch has to take them.

    A compiled part that was built from older sources has none.
    """
    return is_plain(x) and x.is_cpu and supports(x) and hasattr(_kernels(), "moments")


def is_dense(x: Tensor) -> bool:
    """Return whether elements lie side by side, as in contiguous or channels-last tensors."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def moments(x: Tensor, unit: int = -1) -> tuple[float, float, float]:
    """Return mean square, mean, and variance of the means of channels, of a readable and dense tensor, in one pass.

    Args:
        x: Any shape.
        unit: The dim of the channels, not negative; -1 for none.
    """
    found: tuple[float, float, float] = _kernels().moments(*_layout(x, unit), torch.get_num_threads(), x.data_ptr())
    return found


def _layout(x: Tensor, unit: int) -> tuple[int, int, int, int]:
    """Return the number of the dtype, and how many elements, channels, and elements of a channel in a row there are."""
    channels = x.shape[unit] if unit >= 0 else 1
    return _DTYPES[x.dtype], x.numel(), channels, x.stride(unit) if channels > 1 else x.numel()


def products(x: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], start: int) -> Tensor:
    """Return the inner products of examples that lie in a readable tensor; they are copied for it.

    Args:
        x: Any shape.
        sizes: Of what is taken from it, shape ``(n, ...)``.
        strides: Its strides, in elements.
        start: Where it begins, in elements behind the first of x.

    Returns:
        Shape ``(n, n)``, float64.
    """
    found = torch.empty((sizes[0], sizes[0]), dtype=torch.float64)
    address = x.data_ptr() + start * x.element_size()
    _kernels().products(_DTYPES[x.dtype], sizes, strides, address, found.data_ptr())
    return found


def step_aside(x: Tensor, unit: int, share: float, least: float) -> tuple[Tensor, Tensor]:
    r"""Return points beside those of a readable and dense tensor, and how far off they are.

    Args:
        x: float32 or float64.
        unit: The dim of the channels, not negative; -1 for none.
        share: Of \|x\| + m, m the mean of \|x\| in the channel: that is the step.
        least: Smallest step.
    """
    steps, beside = torch.empty_like(x), torch.empty_like(x)
    _kernels().step_aside(*_layout(x, unit), share, least, x.data_ptr(), steps.data_ptr(), beside.data_ptr())
    return beside, steps


def shares(y: Tensor, steps: Tensor, beside: Tensor, unit: int, little: float) -> tuple[float, float]:
    """Return the share of channels whose slopes are all 0, and that of slopes that are small.

    Args:
        y: Values of an activation; the three are readable, of one layout, and float32 or float64.
        steps: As :func:`step_aside` gave them.
        beside: Values at the points beside; they are written over.
        unit: The dim of the channels, not negative; -1 where each entry of an example is one.
        little: Slopes below so much of the steepest are small.
    """
    dtype, size, channels, inner = _layout(y, unit)
    if unit < 0:
        channels, inner = size // len(y), 1
    addresses = y.data_ptr(), steps.data_ptr(), beside.data_ptr()
    found: tuple[float, float] = _kernels().shares(dtype, size, channels, inner, little, *addresses)
    return found
