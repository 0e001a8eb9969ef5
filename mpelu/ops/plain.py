"""Plain tensors: a kernel may read their memory, because nobody asks for more than the values in it."""

from contextlib import nullcontext
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def torch_only_computes() -> bool:
    """Return False under functorch transforms, dispatch modes, forward-mode differentiation and tracing."""
    return not (_transforms() or _modes() or _is_tracing() or forward_ad._current_level >= 0)


def is_plain(tensor: Tensor, *others: Tensor) -> bool:
    """Return whether these are ordinary dense tensors in one memory, and operators do nothing but compute.

    That is the memory of the CPU or of one CUDA device. False for sparse, fake, meta, lazily negated and batched
    tensors and for subclasses that intercept operators, and unless :func:`torch_only_computes`.
    """
    keys = _dispatch_keys(tensor).raw_repr()
    if keys in _ON_CPU:
        for other in others:
            if _dispatch_keys(other).raw_repr() not in _ON_CPU:
                return False
    elif keys not in _ON_CUDA or not all(_is_plain_on(other, tensor.get_device()) for other in others):
        return False
    return torch_only_computes()


def _is_plain_on(tensor: Tensor, cuda_device: int) -> bool:
    return _dispatch_keys(tensor).raw_repr() in _ON_CUDA and tensor.get_device() == cuda_device


def _ordinary_keys(device: str) -> frozenset[int]:
    """Return the keys of the tensors between whose operators and memory nothing stands but autograd and autocast."""

    def keys(*names: str) -> Any:
        return reduce(or_, (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names))

    inference_tensor = keys(device, f"Autocast{device}")
    tensor = inference_tensor | keys(f"Autograd{device}", "ADInplaceOrView")
    return frozenset((inference_tensor.raw_repr(), tensor.raw_repr()))


unseen = getattr(torch._C, "DisableTorchFunction", nullcontext)
"""A context whose calls no ``TorchFunctionMode`` sees. Torch has no public name for it."""

# Nor for these. In a release that lacks one of them, no tensor is plain.
try:
    _dispatch_keys = torch._C._dispatch_keys
    _transforms = torch._C._are_functorch_transforms_active
    _modes = torch._C._len_torch_dispatch_stack
    _is_tracing = torch._C._is_tracing
    forward_ad._current_level  # noqa: B018
    _ON_CPU, _ON_CUDA = _ordinary_keys("CPU"), _ordinary_keys("CUDA")
except AttributeError:

    def torch_only_computes() -> bool:
        return False

    def is_plain(tensor: Tensor, *others: Tensor) -> bool:  # noqa: ARG001
        return False
