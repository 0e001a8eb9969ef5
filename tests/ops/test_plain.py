import runpy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from mpelu.ops import plain


class Intercepting(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3),
        nn.Parameter(torch.ones(3)),
        torch.ones(3, requires_grad=True) * 2,
        torch.ones(3, 4)[:, ::2],
        torch.inference_mode()(torch.ones)(3),
    ],
    ids=["tensor", "parameter", "with history", "with gaps", "inference tensor"],
)
def test_ordinary_tensors_are_plain(tensor):
    assert plain.is_plain(tensor, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.Tensor._make_subclass(Intercepting, torch.ones(3)),
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.cfloat).conj().imag,
        torch.ones(3).to_sparse(),
        torch.ones(3).to_mkldnn(),
    ],
    ids=["subclass", "meta", "lazily negated", "sparse", "mkldnn"],
)
def test_other_tensors_are_not(tensor):
    assert not plain.is_plain(torch.ones(3), tensor)


def test_fake_tensors_are_not():
    with FakeTensorMode() as mode:
        inside = torch.ones(3)
    assert not plain.is_plain(inside)
    with mode:
        assert not plain.is_plain(inside)


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
def test_nothing_is_plain_while_torch_transforms_or_records():
    seen = []

    def function(x):
        seen.append(plain.is_plain(torch.ones(1)))
        return x.sum()

    torch.func.grad(function)(torch.ones(3))
    torch.func.vmap(function)(torch.ones(3, 2))
    torch.jit.trace(function, torch.ones(3), check_trace=False)
    with forward_ad.dual_level():
        function(torch.ones(3))
    with FlopCounterMode(display=False):
        function(torch.ones(3))
    assert seen == [False] * 5
    assert plain.is_plain(torch.ones(3))


def test_what_functorch_leaves_behind_is_not_plain():
    left_behind = []
    torch.func.grad(lambda x: left_behind.append(x) or x.sum())(torch.ones(3))
    assert not plain.is_plain(left_behind[0])


@pytest.mark.parametrize("name", ["_dispatch_keys", "_len_torch_dispatch_stack"])
def test_without_the_private_names_nothing_is_plain(monkeypatch, name):
    monkeypatch.delattr(torch._C, name)
    assert not runpy.run_path(plain.__file__)["is_plain"](torch.ones(3))
