"""MPELU that keeps its output: the same function, what it keeps, and what it refuses."""

import pytest
import torch
from torch import nn

from mpelu.bench.model import kept_bytes
from mpelu.errors import UsageError
from mpelu.functional import mpelu
from mpelu.nn import MPELU
from mpelu.ops import cpu, reference

PAIRS = [(1.0, 1.0), (0.25, 1.0), (2.0, 0.5), (-0.5, -0.7), (98.0, 0.01)]
WAYS = [{"save": "output"}, {"inplace": True}]


def leaves(alpha: float, beta: float, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(*shape, dtype=torch.float64, generator=generator)
    return (
        x.to(dtype).requires_grad_(),
        torch.full(shape[1:2], alpha, dtype=torch.float64).requires_grad_(),
        torch.full(shape[1:2], beta, dtype=torch.float64).requires_grad_(),
    )


def output_and_gradients(x, alpha, beta, **options):
    y = mpelu(x * 1, alpha, beta, **options)  # x * 1: a leaf cannot be written over
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y, torch.autograd.grad((y * weights).sum(), (x, alpha, beta))


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
def test_same_values_and_gradients(alpha, beta, options):
    """In float64, log1p gives x back to 1e-14 of it as long as exp(beta x) is far above 2^-53."""
    x, a, b = leaves(alpha, beta, 6, 3, 5)
    y, gradients = output_and_gradients(x, a, b)
    y_saved, gradients_saved = output_and_gradients(x, a, b, **options)
    assert torch.equal(y, y_saved)
    for ours, theirs in zip(gradients_saved, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_of_the_gradient_is_that_of_rounding_the_output(dtype):
    """An ulp of 1, times alpha * beta * grad: the bound that the documentation gives."""
    alpha, beta = torch.tensor(0.8), torch.tensor(1.3)
    x = torch.linspace(-12, 3, 4001).to(dtype)
    exact = torch.where(x > 0, 1.0, (alpha * beta).double() * torch.exp(beta.double() * x.double()))
    leaf = x.clone().requires_grad_()
    mpelu(leaf, alpha, beta, save="output").sum().backward()
    error = (leaf.grad.double() - exact).abs()
    rounding = torch.finfo(dtype).eps * (0.5 * exact + (alpha * beta))  # of the gradient itself, and of y
    assert (error <= rounding).all()


def test_infinities_and_nan():
    x = torch.tensor([[float("inf"), -float("inf"), float("nan"), 0.0, -200.0]])
    leaf = x.clone().requires_grad_()
    alpha = torch.ones((), requires_grad=True)
    beta = torch.full((), 0.5, requires_grad=True)  # below 1: dividing by it must not bring the infinity back
    y = mpelu(leaf, alpha, beta, save="output")
    torch.testing.assert_close(y, torch.tensor([[float("inf"), -1.0, float("nan"), 0.0, -1.0]]), equal_nan=True)
    gradients = torch.autograd.grad(y[:, [0, 1, 3, 4]].sum(), (leaf, alpha, beta))
    assert gradients[0][0, [0, 1, 3, 4]].tolist() == [1, 0, 0.5, 0]
    assert gradients[1].isnan()  # 0 * nan: the term of the NaN, as in the default mode
    without = torch.tensor([[-float("inf"), 0.0, -200.0]], requires_grad=True)
    gradients = torch.autograd.grad(mpelu(without, alpha, beta, save="output").sum(), (alpha, beta))
    assert [gradient.item() for gradient in gradients] == [-2.0, 0.0]


def test_saturated_outputs_of_the_formula_are_finite():
    """The same without the kernel: the logarithm is -inf there, and exp(beta x) is 0."""
    y = torch.tensor([[-2.0, -2.0, 0.5]], dtype=torch.float64)
    alpha, beta = torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    gradients = reference.backward_from_output(torch.ones_like(y), y, alpha, beta)
    assert gradients[0].tolist() == [[0.0, 0.0, 1.0]]
    assert [gradient.item() for gradient in gradients[1:]] == [-2.0, 0.0]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_channels_that_lose_the_input_are_named(options):
    alpha, beta = torch.tensor([1.0, 0.0, 1.0, -1.0]), torch.ones(4)
    with pytest.raises(UsageError, match=r"channel 1 and 1 more has alpha \* beta = 0; use save='input'"):
        mpelu(torch.zeros(2, 4), alpha, beta, **options)
    with pytest.raises(UsageError, match="channel 0 has alpha"):
        mpelu(torch.zeros(2, 4), torch.tensor(float("nan")), torch.tensor(1.0), **options)


def test_in_place_writes_over_its_input_and_says_what_it_cannot_write():
    x = torch.randn(2, 3)
    expected = mpelu(x, 1.0, 1.0)
    y = mpelu(x, 1.0, 1.0, inplace=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)
    with pytest.raises(UsageError, match="cannot write over an expanded tensor"):
        mpelu(torch.randn(1, 3).expand(2, 3), 1.0, 1.0, inplace=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        mpelu(torch.randn(2, 3, requires_grad=True), 1.0, 1.0, inplace=True)
    needed = torch.randn(2, 3, requires_grad=True)
    squared = needed.exp()  # keeps its output, which is then written over
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mpelu(squared, 1.0, 1.0, inplace=True).sum().backward()


def test_double_backward_is_refused():
    x, alpha, beta = leaves(1.0, 1.0, 2, 3)
    with pytest.raises(UsageError, match="cannot be differentiated twice"):
        torch.autograd.grad(mpelu(x, alpha, beta, save="output").sum(), x, create_graph=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_under_transforms_and_compile_it_is_the_ordinary_function():
    x, alpha, beta = leaves(1.0, 1.0, 4, 3)
    by_sample = torch.func.vmap(torch.func.grad(lambda row: mpelu(row[None], alpha, beta, save="output").sum()))(x)
    torch.testing.assert_close(by_sample, torch.autograd.grad(mpelu(x, alpha, beta).sum(), x)[0])
    compiled = torch.compile(lambda x: mpelu(x, alpha, beta, save="output"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), mpelu(x, alpha, beta))


def test_the_module_hands_both_on():
    module = MPELU(3, save="output", inplace=True)
    assert repr(module).endswith("save='output', inplace=True)")
    x = torch.randn(2, 3)
    assert module(x).data_ptr() == x.data_ptr()
    with pytest.raises(UsageError, match="save must be one of input, output, got 'both'"):
        MPELU(3, save="both")
    with pytest.raises(UsageError, match="save must be one of input, output, got 'both'"):
        mpelu(x, 1.0, 1.0, save="both")


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_nothing_is_kept_beside_what_the_next_layer_keeps(options):
    def net(**choice):
        layers = [nn.Conv2d(4, 4, 3, padding=1), MPELU(4, **choice), nn.Conv2d(4, 4, 3, padding=1)]
        return nn.Sequential(*layers)

    x = torch.randn(2, 4, 16, 16)
    one_map = x.numel() * 4
    assert kept_bytes(net(**options), x) == 2 * one_map  # the image, and the output of the activation
    assert kept_bytes(net(), x) == 3 * one_map


_cpu = pytest.importorskip("mpelu.ops._cpu", reason="mpelu has no compiled part here", exc_type=ImportError)
SHAPES = {
    "N C": torch.empty(37, 7),
    "NCHW": torch.empty(3, 5, 9, 11),
    "NCHW, small planes": torch.empty(67, 16, 3, 3),
    "channels_last": torch.empty(3, 5, 9, 11, memory_format=torch.channels_last),
}


@pytest.mark.parametrize("instruction_set", _cpu.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("like", SHAPES.values(), ids=list(SHAPES))
def test_kernel_agrees_with_the_formula(instruction_set, dtype, like):
    """Given the same y. float32: a few roundings each, and in the sums 4 * 2^-24 of what is added."""
    cpu.compiled()
    _cpu.use(instruction_set)
    try:
        generator = torch.Generator().manual_seed(1)
        channels = like.shape[1]
        alpha = 0.2 + torch.rand(channels, generator=generator)
        beta = 0.3 + torch.rand(channels, generator=generator)
        if dtype is torch.float64:
            alpha, beta = alpha.double(), beta.double()
        x, grad = (torch.empty_like(like).normal_(generator=generator).to(dtype) for _ in range(2))
        y = reference.forward(3 * x, alpha, beta)
        ours = cpu.backward(grad, y, alpha, beta, from_output=True)
        exact = reference.backward_from_output(grad.double(), y.double(), alpha.double(), beta.double())
        sizes = reference.backward_from_output(grad.double().abs(), y.double(), alpha.double(), beta.double())
        unit = torch.finfo(dtype).eps / 2
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # half an ulp of a subnormal
        near_zero = 1e-6 * (dtype is torch.float32)  # where y is about -alpha, 1 + y / alpha has few digits
        torch.testing.assert_close(
            ours[0].double(), exact[0], rtol=8 * max(unit, 2**-24), atol=max(near_zero, smallest)
        )
        for our, value, size in zip(ours[1:], exact[1:], sizes[1:], strict=True):
            assert ((our.double() - value).abs() <= 8 * 2**-24 * size.abs() + 1e-7).all()
    finally:
        _cpu.use(_cpu.instruction_sets()[-1])


@pytest.mark.parametrize("instruction_set", _cpu.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_divides_by_the_smallest_numbers_and_into_the_largest(instruction_set, dtype):
    """1 / alpha of a subnormal alpha would be infinite; with alpha and beta negative, y goes to -infinity."""
    cpu.compiled()
    _cpu.use(instruction_set)
    try:
        smallest = torch.finfo(dtype).smallest_normal
        alpha = torch.tensor([smallest / 64, smallest, -0.5, 1e30], dtype=dtype)
        beta = torch.tensor([1.0, 1.0, -1.0, 2.0], dtype=dtype)
        y = reference.forward(
            torch.tensor([[-1.0, -1.0, -75.0, -1.0], [-0.5, 2.0, 0.0, 1.0]], dtype=dtype), alpha, beta
        )
        ours = cpu.backward(torch.ones_like(y), y, alpha, beta, from_output=True)
        expected = reference.backward_from_output(torch.ones_like(y), y, alpha, beta)
        assert expected[0].isfinite().all()
        for our, their in zip(ours, expected, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-5, atol=4 * smallest * torch.finfo(dtype).eps)
    finally:
        _cpu.use(_cpu.instruction_sets()[-1])
