"""Plain tensors: a kernel may read their memory, because nobody asks for more than the values in it."""

from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_plain(*tensors: Tensor) -> bool:
    """Return whether these are ordinary dense tensors in one memory, and operators do nothing but compute.

    That is the memory of the CPU or of one CUDA device. False for sparse, fake, meta, lazily negated and batched
    tensors and for subclasses that intercept operators, and under functorch transforms, dispatch modes, forward-mode
    differentiation and tracing.
    """
    device = tensors[0].get_device()  # -1 is the CPU
    for tensor in tensors:
        if _dispatch_keys(tensor).raw_repr() not in _ORDINARY or tensor.get_device() != device:
            return False
    return not (_transforms() or _modes() or _is_tracing() or forward_ad._current_level >= 0)


def _ordinary_keys(device: str) -> set[int]:
    """Return the keys of the tensors between whose operators and memory nothing stands but autograd and autocast."""

    def keys(*names: str) -> Any:
        return reduce(or_, (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names))

    inference_tensor = keys(device, f"Autocast{device}")
    tensor = inference_tensor | keys(f"Autograd{device}", "ADInplaceOrView")
    return {inference_tensor.raw_repr(), tensor.raw_repr()}


# Torch has no public names for these. In a release that lacks one of them, no tensor is plain.
try:
    _dispatch_keys = torch._C._dispatch_keys
    _transforms = torch._C._are_functorch_transforms_active
    _modes = torch._C._len_torch_dispatch_stack
    _is_tracing = torch._C._is_tracing
    forward_ad._current_level  # noqa: B018
    _ORDINARY = _ordinary_keys("CPU") | _ordinary_keys("CUDA")
except AttributeError:

    def is_plain(*tensors: Tensor) -> bool:  # noqa: ARG001
        return False
