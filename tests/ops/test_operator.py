"""MPELU under torch.compile on a CPU: the operator keeps torch's rules, and what is compiled is the same function."""

import math
import shutil

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from mpelu.functional import mpelu
from mpelu.nn import MPELU
from mpelu.ops import cpu, operator, reference
from tests.cases import SHAPES, normal, parameters

# torch's own: torch.compile instantiates an autograd.Function
pytestmark = pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")

LAYOUTS = {
    "contiguous": lambda dtype: normal(4, 3, 5, 2, dtype=dtype),
    "channels last": lambda dtype: normal(4, 3, 5, 2, dtype=dtype).to(memory_format=torch.channels_last),
    "rows and columns": lambda dtype: normal(7, 3, dtype=dtype),
    "with gaps": lambda dtype: normal(4, 3, 10, dtype=dtype)[:, :, ::2],
    "no space": lambda dtype: normal(2, 3, 1, 1, dtype=dtype).to(memory_format=torch.channels_last),
    "empty": lambda dtype: normal(0, 3, 5, dtype=dtype),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHARED = [((), ()), ((1,), (3,)), ((3,), ())]
"""Shapes of alpha and beta."""

over_layouts = pytest.mark.parametrize("layout", LAYOUTS)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compute_parameters(x: torch.Tensor, channels: int) -> list[torch.Tensor]:
    return [parameter.to(reference.compute_dtype(x)) for parameter in parameters(channels)]


def gradients(function, x, alpha, beta, grad):
    leaves = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in (x, alpha, beta)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def assert_close_in_dtype(found, wanted):
    """64 roundings in the dtype of the arithmetic, and one in the dtype of the result; sums here are of 40 terms."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        arithmetic = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps
        tolerance = 64 * arithmetic + torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


@over_layouts
@over_dtypes
def test_operator_keeps_the_rules_of_torch(layout, dtype):
    x = LAYOUTS[layout](dtype)
    for channels in (1, 3):
        grad = normal(*x.shape, seed=5, dtype=dtype)
        torch.library.opcheck(torch.ops.mpelu.backward, (grad, x, *compute_parameters(x, channels)))


def test_operator_takes_gradients_of_another_layout():
    x = LAYOUTS["channels last"](torch.float64)
    arguments = (x, *compute_parameters(x, 3))
    for grad in (normal(*x.shape, seed=3), normal(1, 3, 1, 1, seed=4).expand(x.shape)):
        torch.library.opcheck(torch.ops.mpelu.backward, (grad, *arguments))
        found = torch.ops.mpelu.backward(grad, *arguments)
        for ours, theirs in zip(found, reference.backward(grad, *arguments), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_operator_works_without_the_compiled_part(monkeypatch):
    monkeypatch.setattr(cpu, "supports", lambda x: False)
    x = LAYOUTS["channels last"](torch.float32)
    arguments = (normal(*x.shape, seed=5, dtype=x.dtype), x, *compute_parameters(x, 3))
    torch.library.opcheck(torch.ops.mpelu.backward, arguments)
    assert_close_in_dtype(torch.ops.mpelu.backward(*arguments), reference.backward(*arguments))


@pytest.mark.parametrize(
    ("layout", "dtype", "shapes"),
    [
        *((layout, dtype, ((3,), (3,))) for layout in LAYOUTS for dtype in DTYPES),
        *(("contiguous", torch.float32, shapes) for shapes in SHARED),
        *(("channels last", torch.bfloat16, shapes) for shapes in SHARED),
    ],
    ids=str,
)
def test_compiled_computes_the_reference(layout, dtype, shapes):
    x = LAYOUTS[layout](dtype)
    alpha, beta = (
        parameter[: math.prod(shape)].reshape(shape).to(torch.float32)
        for parameter, shape in zip(parameters(3), shapes, strict=True)
    )
    grad = normal(*x.shape, seed=5, dtype=dtype)
    compiled = torch.compile(mpelu, backend="aot_eager", fullgraph=True)
    found = gradients(compiled, x, alpha, beta, grad)
    assert_close_in_dtype(found, gradients(reference.Reference.apply, x, alpha, beta, grad))
    for ours, eager in zip(found[1:], gradients(mpelu, x, alpha, beta, grad)[1:], strict=True):
        assert torch.equal(ours, eager)  # the same kernel


@pytest.mark.parametrize(("alpha", "beta"), [*SHAPES, (0.5, -0.7), (0.5, 1e-30)])
def test_compiled_at_infinity_and_far_out(alpha, beta):
    infinity = float("inf")
    x = torch.tensor([infinity, -infinity, 0.0, -0.0, 1e30, -1e30, 80.0, -80.0, -1e-30]).view(1, 1, 9)
    arguments = (x, torch.tensor([alpha]), torch.tensor([beta]), torch.ones_like(x))
    if beta < 0:  # there exp overflows: to compare the sums, leave out what is infinite
        arguments = (x.clamp(min=-80), *arguments[1:])
    compiled = torch.compile(mpelu, backend="aot_eager", fullgraph=True)
    found, wanted = gradients(compiled, *arguments), gradients(reference.Reference.apply, *arguments)
    for ours, theirs in zip(found, wanted, strict=True):
        # exp of beta x, whose rounding is up to |beta x| <= 2^9 roundings of the result
        torch.testing.assert_close(ours, theirs, rtol=2**9 * 2**-24 + torch.finfo(ours.dtype).eps, atol=1e-30)


def test_compiled_passes_nan_on():
    x = torch.tensor([[[float("nan")], [1.0]]])
    compiled = torch.compile(mpelu, backend="aot_eager", fullgraph=True)
    found = gradients(compiled, x, torch.ones(2), torch.ones(2), torch.ones_like(x))
    assert [tensor.flatten().isnan().tolist() for tensor in found] == [[True, False]] * 4


class Graphs:
    """A backend that keeps what it is given, forward and backward."""

    def __init__(self) -> None:
        self.forward: list[str] = []
        self.backward: list[str] = []

    def __call__(self, module, example):
        def keep(place):
            def compile_graph(graph_module, _):
                place.extend(str(node.target) for node in graph_module.graph.nodes if node.op == "call_function")
                return make_boxed_func(graph_module)

            return compile_graph

        backend = aot_autograd(fw_compiler=keep(self.forward), bw_compiler=keep(self.backward))
        return backend(module, example)


@over_layouts
def test_only_the_backward_pass_is_an_operator(layout):
    graphs = Graphs()
    x = LAYOUTS[layout](torch.float32).requires_grad_()
    torch.compile(MPELU(3), backend=graphs, fullgraph=True)(x).sum().backward()
    assert graphs.forward
    assert all(target.startswith("aten.") for target in graphs.forward)
    assert "mpelu.backward.default" in graphs.backward
    assert "aten.clone.default" not in graphs.backward  # nothing is brought into another layout


@over_layouts
def test_one_compilation_serves_every_batch(layout):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mpelu, backend=counter, fullgraph=True, dynamic=True)
    for batch in (2, 5, 6):
        x = LAYOUTS[layout](torch.float32)
        x = torch.cat([x] * batch) if x.numel() else x
        grad = normal(*x.shape, seed=5, dtype=torch.float32)
        alpha, beta = parameters(3, dtype=torch.float32)
        found = gradients(compiled, x, alpha, beta, grad)
        for ours, theirs in zip(found, gradients(reference.Reference.apply, x, alpha, beta, grad), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # 240 terms in float32
    assert counter.frame_count == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_gradient_may_come_in_another_layout(layout):
    """The next layer, not MPELU, decides how the gradient lies in memory."""
    x = LAYOUTS[layout](torch.float32)
    other = torch.channels_last if layout == "contiguous" else torch.contiguous_format
    weight = normal(2, 3, 1, 1, dtype=torch.float32).to(memory_format=other)

    def function(x, alpha, beta):
        return torch.nn.functional.conv2d(mpelu(x, alpha, beta).contiguous(memory_format=other), weight)

    arguments = (
        x,
        *parameters(3, dtype=torch.float32),
        normal(4, 2, 5, 2, seed=5, dtype=torch.float32).to(memory_format=other),
    )
    found = gradients(torch.compile(function, backend="aot_eager", fullgraph=True), *arguments)
    assert_close_in_dtype(found, gradients(function, *arguments))


def test_subclasses_are_left_to_the_operators_of_torch():
    class Subclass(torch.Tensor):
        pass

    assert not operator.supports(normal(2, 3).as_subclass(Subclass))
    assert operator.supports(normal(2, 3))
    assert not operator.supports(normal(2, 3).to("meta"))


def block(x, alpha, beta):
    scale, shift = torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype).view(-1, 1, 1), torch.tensor(0.1, dtype=x.dtype)
    return mpelu(x * scale + shift, alpha, beta) + x


def convolutions(x, alpha, beta):
    """Inductor computes these in channels last, whatever the layout of x."""
    weight = torch.linspace(-1, 1, 81, dtype=x.dtype).view(3, 3, 3, 3)
    return torch.nn.functional.conv2d(mpelu(torch.nn.functional.conv2d(x, weight, padding=1), alpha, beta), weight)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ to make code for the CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it makes code for the first time
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("function", "layout"), [(block, "contiguous"), (block, "channels last"), (convolutions, "contiguous")]
)
def test_code_of_inductor(function, layout, dtype):
    x = normal(4, 3, 6, 6, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if layout == "channels last" else x
    _, beta = parameters(3, dtype=torch.float32)
    alpha = 1 / beta  # no kink at 0, which rounding could cross
    grad = normal(*function(x, alpha, beta).shape, seed=5, dtype=dtype)
    found = gradients(torch.compile(function, fullgraph=True), x, alpha, beta, grad)
    wanted = gradients(function, x.double(), alpha.double(), beta.double(), grad.double())
    for ours, theirs in zip(found, wanted, strict=True):
        # sums of up to 144 products of numbers around 1, each rounded a few times; convolutions have 27 more
        tolerance = 8 * torch.finfo(dtype).eps * theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance)
