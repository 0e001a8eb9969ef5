import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mpelu.ops import reference
from tests.cases import normal, off_the_kink, over_shapes, parameters, plain_formula

INFINITY = float("inf")
NAN = float("nan")
SHAPES_2D_TO_5D = [(3, 2), (2, 3, 2), (2, 3, 2, 2), (2, 2, 2, 1, 2)]


def broadcast(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(1, -1, *[1] * (x.dim() - 2)) if parameter.numel() > 1 else parameter.reshape(())


def operator_gradients(x: Tensor, alpha: Tensor, beta: Tensor, grad: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return the output and the gradients for x, alpha and beta, through autograd."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, alpha, beta)]
    output = reference.Reference.apply(*leaves)
    output.backward(torch.ones_like(output) if grad is None else grad)
    return output.detach(), *(leaf.grad for leaf in leaves)


@over_shapes
def test_equals_the_printed_formula(alpha, beta):
    x = torch.linspace(-6, 6, 1201, dtype=torch.float64).reshape(1201, 1)
    got = reference.forward(x, torch.tensor(alpha).double(), torch.tensor(beta).double())
    wanted = plain_formula(x, torch.tensor(alpha).double(), torch.tensor(beta).double())
    # exp(beta x) - 1 loses epsilon / |beta x| of its digits, and alpha enlarges that: absolute error alpha * epsilon
    torch.testing.assert_close(got, wanted, rtol=0, atol=4 * 2.3e-16 * max(1, abs(alpha)))


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_shape_equals_the_formula_channel_by_channel(shape, shared, seed):
    x = normal(*shape, seed=seed)
    alpha, beta = parameters(1 if shared else shape[1], seed=seed)
    got = reference.forward(x, alpha, beta)
    assert got.shape == x.shape
    for channel in range(shape[1]):
        index = 0 if shared else channel
        wanted = plain_formula(x[:, channel], alpha[index], beta[index])
        torch.testing.assert_close(got[:, channel], wanted, rtol=1e-14, atol=1e-14)  # 40 epsilon of values around 1


@given(seed=st.integers(0, 1000), channels=st.integers(1, 5), positions=st.integers(1, 6))
def test_the_written_out_backward_is_what_autograd_finds_for_the_formula(seed, channels, positions):
    x = normal(2, channels, positions, seed=seed)
    alpha, beta = parameters(channels, seed=seed)
    grad = normal(2, channels, positions, seed=seed + 1)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, alpha, beta)]
    plain_formula(leaves[0], broadcast(leaves[1], x), broadcast(leaves[2], x)).backward(grad)
    for got, leaf in zip(reference.backward(grad, x, alpha, beta), leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad, rtol=1e-13, atol=1e-13)  # 400 epsilon of values around 1


def test_backward_leaves_out_what_is_not_wanted():
    x, (alpha, beta) = normal(2, 3), parameters(3)
    everything = reference.backward(x, x, alpha, beta)
    for index in range(3):
        wanted = tuple(index == other for other in range(3))
        got = reference.backward(x, x, alpha, beta, wanted=wanted)
        assert [value is not None for value in got] == list(wanted)
        assert torch.equal(got[index], everything[index])


@pytest.mark.parametrize("shared", [False, True], ids=["channels", "shared"])
@pytest.mark.parametrize("shape", SHAPES_2D_TO_5D, ids=str)
def test_first_and_second_derivatives(shape, shared):
    x = off_the_kink(normal(*shape)).requires_grad_()
    inputs = (x, *(parameter.requires_grad_() for parameter in parameters(1 if shared else shape[1])))
    assert gradcheck(reference.Reference.apply, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(reference.Reference.apply, inputs, check_fwd_over_rev=True)


def test_derivatives_of_a_parameter_without_dimensions():
    x = off_the_kink(normal(3, 2)).requires_grad_()
    alpha, beta = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 1.3))
    assert gradcheck(reference.Reference.apply, (x, alpha, beta), check_forward_ad=True, check_batched_grad=True)


def test_derivatives_at_alpha_zero():
    # the released kernel divides f(x) by alpha, which is 0 / 0 at the start value of Table 2
    x = off_the_kink(normal(3, 2)).requires_grad_()
    alpha = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    beta = torch.ones(2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(reference.Reference.apply, (x, alpha, beta), check_forward_ad=True)
    assert gradgradcheck(reference.Reference.apply, (x, alpha, beta))
    _, grad_x, grad_alpha, grad_beta = operator_gradients(x, alpha, beta)
    negative = x.detach().clamp(max=0)
    torch.testing.assert_close(grad_alpha, torch.expm1(negative).sum(0))
    assert (grad_alpha != 0).all()
    assert (grad_beta == 0).all()
    assert torch.equal(grad_x, (x > 0).double())


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_at_exactly_zero_the_negative_side_is_differentiated(zero):
    x = torch.full((1, 2), zero, dtype=torch.float64)
    alpha, beta = torch.tensor([3.0, 0.25]).double(), torch.tensor([0.5, 2.0]).double()
    output, grad_x, grad_alpha, grad_beta = operator_gradients(x, alpha, beta)
    assert (output == 0).all()
    assert torch.equal(grad_x[0], alpha * beta)
    assert (grad_alpha == 0).all()
    assert (grad_beta == 0).all()
    _, tangent = torch.func.jvp(lambda x: reference.Reference.apply(x, alpha, beta), (x,), (torch.ones_like(x),))
    assert torch.equal(tangent[0], alpha * beta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 2.0), (0.5, 0.25), (98.0, 0.01), (0.0, 1.0), (-0.5, 1.0)])
def test_infinities(alpha, beta, dtype):
    x = torch.tensor([[INFINITY, -INFINITY, 2.0]], dtype=dtype).T.contiguous()  # one channel
    a, b = torch.tensor([alpha]), torch.tensor([beta])
    output, grad_x, grad_alpha, grad_beta = operator_gradients(x, a, b)
    assert output[:, 0].tolist() == [INFINITY, torch.tensor(-alpha, dtype=dtype).item(), 2.0]
    assert grad_x[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert grad_alpha.item() == -1.0  # exp(-inf) - 1; the positive inputs add nothing
    assert grad_beta.item() == 0.0
    tangents = (torch.ones_like(x), torch.ones_like(a), torch.ones_like(b))
    _, tangent = torch.func.jvp(reference.Reference.apply, (x, a, b), tangents)
    assert tangent[:, 0].tolist() == [1.0, -1.0, 1.0]


def test_nan_stays_nan_and_stays_in_its_channel():
    x = torch.tensor([[NAN, -1.0], [2.0, 2.0]])
    output, grad_x, grad_alpha, grad_beta = operator_gradients(x, torch.ones(2), torch.ones(2))
    assert output.isnan().tolist() == [[True, False], [False, False]]
    assert grad_x.isnan().tolist() == [[True, False], [False, False]]
    for gradient in (grad_alpha, grad_beta):
        assert gradient.isnan().tolist() == [True, False]


@pytest.mark.parametrize("grad", [INFINITY, NAN])
def test_a_bad_gradient_of_the_positive_side_does_not_reach_the_parameters(grad):
    # a loss scaler looks at every gradient: only the entries that the bad value belongs to may show it
    x = torch.tensor([[3.0], [-1.0]])
    incoming = torch.tensor([[grad], [1.0]])
    _, grad_x, grad_alpha, grad_beta = operator_gradients(x, torch.ones(1), torch.ones(1), incoming)
    assert not grad_x[0].isfinite().any()
    assert grad_x[1].isfinite().all()
    assert grad_alpha.isfinite().all()
    assert grad_beta.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_large_positive_inputs_do_not_poison_the_gradient_as_the_naive_form_does(dtype):
    x = torch.tensor([[1000.0], [-1.0]], dtype=dtype)
    alpha, beta = torch.ones(1), torch.ones(1)

    naive_x = x.clone().requires_grad_()
    torch.where(naive_x > 0, naive_x, alpha.to(dtype) * torch.expm1(beta.to(dtype) * naive_x)).sum().backward()
    assert naive_x.grad[0].isnan().all()  # 0 * exp(1000)

    output, grad_x, grad_alpha, grad_beta = operator_gradients(x, alpha, beta)
    assert output[0].item() == x[0].item()
    assert grad_x[0].item() == 1.0
    for value in (output, grad_x, grad_alpha, grad_beta):
        assert value.isfinite().all()
    _, tangent = torch.func.jvp(lambda x: reference.Reference.apply(x, alpha, beta), (x,), (torch.ones_like(x),))
    assert tangent[0].item() == 1.0


def test_large_positive_inputs_have_a_second_derivative():
    x = torch.tensor([[1000.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    alpha, beta = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (first,) = torch.autograd.grad(reference.Reference.apply(x, alpha, beta).sum(), x, create_graph=True)
    for second in torch.autograd.grad(first.sum(), (x, alpha, beta)):
        assert second.isfinite().all()


def every_finite_value(dtype: torch.dtype) -> Tensor:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return values[values.isfinite()]


def spacing(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance of neighbouring numbers of a dtype around float64 values."""
    smallest = torch.finfo(dtype).smallest_normal
    exponent = value.abs().clamp(min=smallest).log2().floor()
    return torch.finfo(dtype).eps * 2.0**exponent


@over_shapes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_rounded_once(alpha, beta, dtype):
    x = every_finite_value(dtype).reshape(-1, 1)
    a, b = torch.tensor(alpha), torch.tensor(beta)
    got = reference.forward(x, a, b)
    assert got.dtype == dtype
    wanted = torch.where(x > 0, x.double(), a.double() * torch.expm1(b.double() * x.double().clamp(max=0)))
    # half a unit for the one rounding, and a hundredth for float32 before it (4 operations of 2^-24 on 2^-11)
    assert ((got.double() - wanted).abs() <= 0.51 * spacing(wanted, dtype)).all()


@over_shapes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradient_of_half_types_is_rounded_once(alpha, beta, dtype):
    x = every_finite_value(dtype).reshape(-1, 1)
    a, b = torch.tensor([alpha]), torch.tensor([beta])
    grad_x, grad_alpha, grad_beta = reference.backward(torch.ones_like(x), x, a, b)
    assert grad_x.dtype == dtype
    slope = a.double() * b.double() * torch.exp(b.double() * x.double().clamp(max=0))
    wanted = torch.where(x > 0, 1.0, slope)
    # as above; the argument of exp, up to log(2^-24) = 17, carries its own 2^-24: 17 * 2^-24 of 2^-11 is 0.002
    assert ((grad_x.double() - wanted).abs() <= 0.51 * spacing(wanted, dtype)).all()
    assert grad_alpha.dtype == grad_beta.dtype == torch.float32


@pytest.mark.parametrize("x", [-1e-6, -1e-4, -1e-2])
def test_float32_keeps_its_digits_near_zero(x):
    alpha, beta, inputs = torch.tensor([98.0]), torch.tensor([0.01]), torch.tensor([[x]])
    output, _, grad_alpha, _ = operator_gradients(inputs, alpha, beta)
    growth = torch.expm1(beta.double() * inputs.double())
    tolerance = 4 * torch.finfo(torch.float32).eps  # two products, expm1 and the rounding of the result
    torch.testing.assert_close(output.double(), alpha.double() * growth, rtol=tolerance, atol=0)
    torch.testing.assert_close(grad_alpha.double(), growth.sum(0), rtol=tolerance, atol=0)
    naive = alpha * (torch.exp(beta * inputs) - 1)
    assert ((naive.double() / (alpha.double() * growth)) - 1).abs().item() > 1e-5  # what expm1 is for


def test_channel_sums_of_half_types_are_float32():
    # in bfloat16 a running sum of -0.63 would stop growing at about 256 * 0.63
    x = torch.full((4096, 1), -1.0, dtype=torch.bfloat16)
    _, grad_alpha, grad_beta = reference.backward(torch.ones_like(x), x, torch.ones(1), torch.ones(1))
    one = torch.tensor(-1.0).double()
    # 4096 additions in float32, pairwise: far below 12 epsilon
    torch.testing.assert_close(grad_alpha.double(), 4096 * torch.expm1(one).reshape(1), rtol=12 * 1.2e-7, atol=0)
    torch.testing.assert_close(grad_beta.double(), -4096 * torch.exp(one).reshape(1), rtol=12 * 1.2e-7, atol=0)


@pytest.mark.parametrize("x_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parameter_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_each_gradient_has_the_dtype_of_what_it_belongs_to(x_dtype, parameter_dtype):
    alpha, beta = parameters(3, dtype=parameter_dtype)
    output, grad_x, grad_alpha, grad_beta = operator_gradients(normal(4, 3, dtype=x_dtype), alpha, beta)
    assert output.dtype == grad_x.dtype == x_dtype
    assert grad_alpha.dtype == grad_beta.dtype == parameter_dtype


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.mark.parametrize("of_grad", [False, True], ids=["input", "gradient"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_change_the_numbers(layout, of_grad):
    x, grad = normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    alpha, beta = parameters(3)
    wanted = operator_gradients(x, alpha, beta, grad)
    laid_out = LAYOUTS[layout](grad if of_grad else x)
    assert not laid_out.is_contiguous()
    got = operator_gradients(x, alpha, beta, laid_out) if of_grad else operator_gradients(laid_out, alpha, beta, grad)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)  # another order of the same 40 additions


def test_channels_last_stays_channels_last():
    x = normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    output, grad_x, *_ = operator_gradients(x, *parameters(3), torch.ones_like(x))
    for value in (output, grad_x):
        assert value.is_contiguous(memory_format=torch.channels_last)


def test_expanded_input_and_expanded_gradient():
    row, (alpha, beta) = normal(1, 3, 1), parameters(3)
    x = row.expand(2, 3, 4).detach().requires_grad_()
    reference.Reference.apply(x, alpha, beta).sum().backward()  # sum hands back an expanded gradient
    _, wanted, *_ = operator_gradients(row.expand(2, 3, 4).contiguous(), alpha, beta)
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty_tensor(shape):
    output, grad_x, grad_alpha, grad_beta = operator_gradients(torch.empty(shape), torch.ones(3), torch.ones(3))
    assert output.shape == grad_x.shape == shape
    assert grad_alpha.tolist() == grad_beta.tolist() == [0.0, 0.0, 0.0]


def loss(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (reference.Reference.apply(x, alpha, beta) ** 2).sum()


def plain_loss(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (plain_formula(x, broadcast(alpha, x), broadcast(beta, x)) ** 2).sum()


def test_func_grad_and_vmap_of_grad():
    x, (alpha, beta) = normal(5, 2, 3), parameters(3)
    for ours, theirs in zip(
        torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), in_dims=(0, None, None))(x, alpha, beta),
        torch.func.vmap(torch.func.grad(plain_loss, (0, 1, 2)), in_dims=(0, None, None))(x, alpha, beta),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)  # 400 epsilon of values around 1


def test_vmap_over_parameters():
    x = normal(4, 3, 2)
    sets = [parameters(3, seed=seed) for seed in range(5)]
    alphas, betas = (torch.stack(values) for values in zip(*sets, strict=True))
    got = torch.func.vmap(reference.Reference.apply, in_dims=(None, 0, 0))(x, alphas, betas)
    gradients = torch.func.vmap(torch.func.grad(loss, (1, 2)), in_dims=(None, 0, 0))(x, alphas, betas)
    for index, (alpha, beta) in enumerate(sets):
        assert torch.equal(got[index], reference.forward(x, alpha, beta))
        wanted = torch.func.grad(plain_loss, (1, 2))(x, alpha, beta)
        for ours, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(ours[index], theirs, rtol=1e-13, atol=1e-13)


def test_forward_mode_agrees_with_reverse_mode():
    x, (alpha, beta) = normal(2, 3), parameters(3)
    for argument in range(3):
        forward_mode = torch.func.jacfwd(reference.Reference.apply, argument)(x, alpha, beta)
        reverse_mode = torch.func.jacrev(reference.Reference.apply, argument)(x, alpha, beta)
        torch.testing.assert_close(forward_mode, reverse_mode, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("operator", [reference.Reference, reference.Traceable])
def test_checkpointing_gives_the_same_gradients(operator):
    from torch.utils.checkpoint import checkpoint

    x, parameters_ = normal(4, 3), parameters(3)
    wanted = operator_gradients(x, *parameters_)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *parameters_)]
    checkpoint(operator.apply, *leaves, use_reentrant=False).sum().backward()
    for leaf, gradient in zip(leaves, wanted[1:], strict=True):
        assert torch.equal(leaf.grad, gradient)


def test_inputs_are_not_written_to():
    tensors = (normal(4, 3), *parameters(3))
    before = copy.deepcopy(tensors)
    operator_gradients(*tensors)
    for tensor, copied in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copied)
