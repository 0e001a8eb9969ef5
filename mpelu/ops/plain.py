"""Plain tensors: a kernel may read their memory, because nobody asks for more than the values in it."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_plain(*tensors: Tensor) -> bool:
    """Return whether these are ordinary dense tensors in CPU memory, and operators do nothing but compute.

    False for sparse, fake, meta, lazily negated and batched tensors and for subclasses that intercept operators, and
    under functorch transforms, dispatch modes, forward-mode differentiation and tracing.
    """
    for tensor in tensors:
        if _dispatch_keys(tensor).raw_repr() not in _ORDINARY:
            return False
    return not (_transforms() or _modes() or _is_tracing() or forward_ad._current_level >= 0)


def _ordinary_keys() -> frozenset[int]:
    """Return the keys of the tensors between whose operators and memory nothing stands but autograd."""
    with torch.inference_mode():
        inference_tensor = torch.empty(1, device="cpu")
    return frozenset(_dispatch_keys(tensor).raw_repr() for tensor in (torch.empty(1, device="cpu"), inference_tensor))


# Torch has no public names for these. In a release that lacks one of them, no tensor is plain.
try:
    _dispatch_keys = torch._C._dispatch_keys
    _transforms = torch._C._are_functorch_transforms_active
    _modes = torch._C._len_torch_dispatch_stack
    _is_tracing = torch._C._is_tracing
    forward_ad._current_level  # noqa: B018
    _ORDINARY = _ordinary_keys()
except AttributeError:

    def is_plain(*tensors: Tensor) -> bool:  # noqa: ARG001
        return False
