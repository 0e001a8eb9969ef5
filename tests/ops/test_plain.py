import importlib.util
import runpy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from mpelu.ops import cpu, plain

has_compiled = importlib.util.find_spec("mpelu.ops._cpu") is not None
needs_compiled = pytest.mark.skipif(not has_compiled, reason="mpelu is installed without its compiled part")

ORDINARY = {
    "tensor": torch.ones(3),
    "parameter": nn.Parameter(torch.ones(3)),
    "buffer": nn.Buffer(torch.ones(3)),
    "with history": torch.ones(3, requires_grad=True) * 2,
    "inference tensor": torch.inference_mode()(torch.ones)(3),
}


class Intercepting(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


OTHERS = {
    "subclass": torch.Tensor._make_subclass(Intercepting, torch.ones(3)),
    "meta": torch.ones(3, device="meta"),
    "lazily negated": torch.ones(3, dtype=torch.cfloat).conj().imag,
    "lazily negated parameter": nn.Parameter(torch._neg_view(torch.ones(3))),
    "zeros without memory": torch._efficientzerotensor((3,)),
    "functional": torch._to_functional_tensor(torch.ones(3)),
    "sparse": torch.ones(3).to_sparse(),
    "mkldnn": torch.ones(3).to_mkldnn(),
}


@pytest.mark.parametrize("tensor", [*ORDINARY.values(), torch.ones(3, 4)[:, ::2]], ids=[*ORDINARY, "with gaps"])
def test_ordinary_tensors_are_plain(tensor):
    assert plain.is_plain(tensor, tensor)


@pytest.mark.parametrize("tensor", OTHERS.values(), ids=OTHERS)
def test_other_tensors_are_not(tensor):
    assert not plain.is_plain(torch.ones(3), tensor)


@needs_compiled
@pytest.mark.parametrize("name", [*ORDINARY, *OTHERS])
def test_the_compiled_module_sees_the_same(name):
    tensor, one = {**ORDINARY, **OTHERS}[name], torch.ones(1)
    assert cpu.compiled().alike(tensor, tensor) == (name in ORDINARY)
    assert cpu.compiled().alike(torch.ones(3), tensor) == (name in ORDINARY)
    assert cpu.compiled().reads(tensor, one, one) == (name in ORDINARY)
    per_channel = torch.ones(2, 3), tensor, torch.ones(3)
    assert cpu.compiled().reads(*per_channel) == (name in ORDINARY)


@needs_compiled
def test_the_compiled_module_does_not_read_memory_that_was_given_back():
    tensor, one = torch.ones(3), torch.ones(1)
    tensor.untyped_storage().resize_(0)
    assert not cpu.compiled().reads(tensor, one, one)
    assert not cpu.compiled().alike(tensor, tensor)


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
    assert not has_compiled or not cpu.compiled().alike(left_behind[0], left_behind[0])


@pytest.mark.parametrize("name", ["_dispatch_keys", "_len_torch_dispatch_stack"])
def test_without_the_private_names_nothing_is_plain(monkeypatch, name):
    monkeypatch.delattr(torch._C, name)
    assert not runpy.run_path(plain.__file__)["is_plain"](torch.ones(3))
