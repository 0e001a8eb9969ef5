"""Which implementation runs, and that all ways to run, transform and record the function give the same numbers."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import mpelu.ops
from mpelu.functional import mpelu as function
from mpelu.nn import MPELU
from mpelu.ops import cpu, dispatch, reference

has_compiled = importlib.util.find_spec("mpelu.ops._cpu") is not None
needs_compiled = pytest.mark.skipif(not has_compiled, reason="mpelu is installed without its compiled part")


# torch's own: forward mode calls the deprecated torch.jit, and torch.compile instantiates an autograd.Function
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning"),
]


def arguments(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 5, generator=generator, dtype=dtype)
    return x, torch.tensor([0.25, 1.0, 1.5], dtype=dtype), torch.tensor([1.0, 0.5, 2.0], dtype=dtype)


def node_name(y):
    return type(y.grad_fn).__name__


class Subclass(torch.Tensor):
    pass


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_plain_tensors_are_computed_by_the_compiled_module(dtype, memory_format):
    x = torch.randn(2, 3, 4, 4, dtype=dtype).to(memory_format=memory_format)
    assert node_name(MPELU(3)(x)) == "FusedBackward"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = MPELU(3)(nn.Conv2d(3, 3, 1)(torch.randn(2, 3, 4, 4)))
        assert y.dtype == torch.bfloat16
        assert node_name(y) == "FusedBackward"


def test_other_dtypes_and_empty_tensors_are_computed_by_the_reference():
    x = torch.randn(4, 3).to(torch.float8_e4m3fn)
    assert not cpu.supports(x)
    assert node_name(MPELU()(torch.empty(0, 3))) == "ReferenceBackward"


def test_subclass():
    x, alpha, beta = arguments()
    y = function(x.as_subclass(Subclass), alpha, beta)
    assert type(y) is Subclass
    torch.testing.assert_close(y.as_subclass(torch.Tensor), reference.forward(x, alpha, beta))


def test_default_device_mode():
    with torch.device("cpu"):
        torch.testing.assert_close(function(*arguments()), reference.forward(*arguments()))


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_tensors_without_memory(device):
    if device == "meta":
        y = function(*(tensor.to("meta") for tensor in arguments()))
    else:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            y = function(*(mode.from_tensor(tensor) for tensor in arguments()))
    assert y.shape == (4, 3, 5)
    assert y.dtype == torch.float32


def test_lazily_negated_gradient():
    x, alpha, beta = arguments()
    x.requires_grad_()
    seed = torch.complex(torch.randn_like(x), torch.randn_like(x))
    negated = torch.stack([seed.conj().imag, seed.conj().imag])[0]
    (wanted,) = torch.autograd.grad(function(x, alpha, beta), x, negated.clone())
    lazy = seed.conj().imag
    assert lazy.is_neg()
    (actual,) = torch.autograd.grad(function(x, alpha, beta), x, lazy)
    torch.testing.assert_close(actual, wanted)


def test_functorch():
    x, alpha, beta = arguments(torch.float64)
    total = lambda *tensors: function(*tensors).square().sum()  # noqa: E731
    leaves = [tensor.clone().requires_grad_() for tensor in (x, alpha, beta)]
    wanted = torch.autograd.grad(total(*leaves), leaves)
    torch.testing.assert_close(grad(total, argnums=(0, 1, 2))(x, alpha, beta), wanted)
    one_by_one = vmap(lambda sample: function(sample[None], alpha, beta)[0])(x)
    torch.testing.assert_close(one_by_one, function(x, alpha, beta))
    per_sample = vmap(grad(lambda a, sample: total(sample[None], a, beta)), in_dims=(None, 0))(alpha, x)
    torch.testing.assert_close(per_sample.sum(0), wanted[1])
    module = MPELU(3, dtype=torch.float64)
    gradients = grad(lambda p: functional_call(module, p, (x,)).sum())({"alpha": alpha, "beta": beta})
    torch.testing.assert_close(gradients["alpha"], grad(lambda a: function(x, a, beta).sum())(alpha))


def test_forward_mode():
    x, alpha, beta = arguments(torch.float64)
    tangent = torch.ones_like(x)
    _, wanted = jvp(lambda x: function(x, alpha, beta), (x,), (tangent,))
    with forward_ad.dual_level():
        y = function(forward_ad.make_dual(x, tangent), alpha, beta)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, wanted)


def test_forward_over_reverse():
    """The product of the Hessian and a vector, with the tangent carried through the backward pass."""
    x, alpha, beta = arguments(torch.float64)
    vector = torch.ones_like(x)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf, alpha, beta).square().sum(), leaf, create_graph=True)
    (wanted,) = torch.autograd.grad(first, leaf, vector)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), vector)
        (gradient,) = torch.autograd.grad(function(dual, alpha, beta).square().sum(), dual)
        torch.testing.assert_close(forward_ad.unpack_dual(gradient).tangent, wanted)


@pytest.mark.parametrize("options", [{}, {"save": "output"}], ids=str)
def test_gradient_with_a_tangent(options):
    """The kernel of the backward pass would lose the tangent: it sees a plain tensor."""
    x, alpha, beta = arguments(torch.float64)
    x.requires_grad_()
    y = function(x, alpha, beta, **options)
    vector = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (wanted,) = torch.autograd.grad(y, x, vector, retain_graph=True)
    with forward_ad.dual_level():
        (gradient,) = torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), vector))
        torch.testing.assert_close(forward_ad.unpack_dual(gradient).tangent, wanted)


def test_batched_gradients():
    x, alpha, beta = arguments()
    x.requires_grad_()
    batch = torch.randn(6, *x.shape)
    y = function(x, alpha, beta)
    (actual,) = torch.autograd.grad(y, x, batch, is_grads_batched=True, retain_graph=True)
    wanted = torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in batch])
    torch.testing.assert_close(actual, wanted)


def test_create_graph_goes_through_the_reference():
    x, alpha, beta = (tensor.requires_grad_() for tensor in arguments())
    (first,) = torch.autograd.grad(function(x, alpha, beta).sum(), x, create_graph=True)
    actual = torch.autograd.grad(first.square().sum(), (x, alpha, beta))
    (first,) = torch.autograd.grad(reference.Reference.apply(x, alpha, beta).sum(), x, create_graph=True)
    torch.testing.assert_close(actual, torch.autograd.grad(first.square().sum(), (x, alpha, beta)))


def test_compile_traces_operators():
    graphs = []

    def backend(graph_module, _):
        graphs.append(graph_module)
        return graph_module

    x, alpha, beta = arguments()
    module = MPELU(3)
    actual = torch.compile(module, fullgraph=True, backend=backend)(x)
    torch.testing.assert_close(actual, module(x))
    assert len(graphs) == 1
    leaves = [tensor.requires_grad_() for tensor in (x, alpha, beta)]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    torch.testing.assert_close(actual, torch.autograd.grad(function(*leaves).square().sum(), leaves))


@pytest.mark.parametrize("strict", [False, True])
def test_export_has_nothing_but_operators(strict):
    x, *_ = arguments()
    module = MPELU(3)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert all(isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" for target in targets), targets
    longer = torch.randn(7, 3, 5)
    torch.testing.assert_close(program.module()(longer), module(longer))


def test_symbolic_trace_records_one_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation = MPELU(3)

        def forward(self, x):
            return function(self.activation(x), 0.5, 1.0)

    net = Net()
    traced = torch.fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [function, function]
    x, *_ = arguments()
    torch.testing.assert_close(traced(x), net(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the shapes of the parameters are checked
def test_tracers():
    x, alpha, beta = arguments()
    wanted = reference.forward(x, alpha, beta)

    def positional(x, alpha, beta):  # make_fx counts keyword-only parameters as inputs
        return function(x, alpha, beta)

    for mode in ("real", "fake"):
        traced = make_fx(positional, tracing_mode=mode)(x, alpha, beta)
        torch.testing.assert_close(traced(x, alpha, beta), wanted)
    traced = torch.jit.trace(lambda x: function(x, alpha, beta), (torch.randn(4, 3, 5),))
    torch.testing.assert_close(traced(x), wanted)


def test_works_without_the_compiled_part_and_warns_once(monkeypatch):
    monkeypatch.delattr(mpelu.ops, "_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "mpelu.ops._cpu", None)
    cpu.compiled.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="without its compiled part"):
            MPELU(3)(torch.randn(4, 3))
        y = MPELU(3)(torch.randn(4, 3))  # a second warning would be an error
        assert node_name(y) == "ReferenceBackward"
        assert cpu.instruction_set() is None
    finally:
        cpu.compiled.cache_clear()


def test_without_triton_cuda_tensors_are_left_to_the_reference_with_one_warning(monkeypatch):
    monkeypatch.delattr(mpelu.ops, "triton", raising=False)
    monkeypatch.setitem(sys.modules, "mpelu.ops.triton", None)
    dispatch.cuda.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="slower without Triton") as warnings:
            assert dispatch.cuda() is dispatch.cuda() is None
        assert len(warnings) == 1
    finally:
        dispatch.cuda.cache_clear()


def test_triton_is_imported_for_cuda_tensors_only():
    code = (
        "import sys, torch; from mpelu.functional import mpelu; mpelu(torch.randn(4, 3), 1.0, 1.0);"
        "print('mpelu.ops.triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
