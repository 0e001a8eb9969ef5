import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.functional import mpelu
from tests.cases import normal, over_activations, over_shapes, parameters, plain_formula


@over_activations
def test_the_module_of_a_case_is_its_formula(case):
    x = torch.linspace(-6, 6, 240, dtype=torch.float64).reshape(60, 4)
    got = case.build(4).double()(x)
    # float32 start values of alpha and beta are exact here but for 25.6302 and 0.01: relative 6e-8 each
    torch.testing.assert_close(got, case.formula(x), rtol=2e-7, atol=1e-13)


@over_activations
def test_the_slope_of_a_case_is_that_of_its_module_just_below_zero(case):
    x = torch.full((1, 4), -1e-9, dtype=torch.float64, requires_grad=True)
    case.build(4).double()(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, case.slope), rtol=2e-7, atol=1e-9)


def output_and_gradient(function, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    output = function(leaf)
    output.backward(torch.ones_like(output))
    return output.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_alpha_zero_is_relu_exactly(dtype):
    x = normal(50, 3, dtype=dtype)
    for beta in (0.01, 1.0, 7.0):
        ours = output_and_gradient(lambda x, beta=beta: mpelu(x, 0.0, beta), x)
        for got, wanted in zip(ours, output_and_gradient(F.relu, x), strict=True):
            assert (got == wanted).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_alpha_one_beta_one_is_elu(dtype):
    x = 3 * normal(50, 3, dtype=dtype)
    for got, wanted in zip(
        output_and_gradient(lambda x: mpelu(x, 1.0, 1.0), x), output_and_gradient(F.elu, x), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=4 * torch.finfo(dtype).eps, atol=0)  # expm1, exp and a product


@pytest.mark.parametrize("slope", [0.25, 0.5, 1.0])
def test_small_beta_comes_near_prelu(slope):
    x = normal(50, 3)
    for beta in (1e-2, 1e-4, 1e-6):
        # exp(z) - 1 = z (1 + z / 2 + ...): the relative error is at most |beta x| / 2, in the derivative |beta x|
        tolerance = beta * x.abs().max().item()
        got, gradient = output_and_gradient(lambda x, beta=beta: mpelu(x, slope / beta, beta), x)
        wanted, wanted_gradient = output_and_gradient(lambda x: F.leaky_relu(x, slope), x)
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=0)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=tolerance, atol=0)


def test_the_odd_start_value_of_the_paper_is_prelu_at_minus_five():
    # alpha = 25.6302, beta = 0.01 solves alpha (1 - exp(-5 beta)) = 0.25 * 5, to the six digits that are printed
    x = torch.tensor([-5.0], dtype=torch.float64)
    torch.testing.assert_close(mpelu(x, 25.6302, 0.01), F.leaky_relu(x, 0.25), rtol=1e-6, atol=0)


@over_shapes
def test_negative_side_saturates_at_minus_alpha(alpha, beta):
    got = mpelu(torch.tensor([-1e6], dtype=torch.float64), alpha, beta)
    assert got.item() == -alpha


def test_parameters_as_tensors_and_as_numbers():
    x = normal(4, 3)
    wanted = plain_formula(x, 0.5, 2.0)
    for shape in ((), (1,), (3,)):
        alpha, beta = torch.full(shape, 0.5).double(), torch.full(shape, 2.0).double()
        torch.testing.assert_close(mpelu(x, alpha, beta), wanted, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(mpelu(x, alpha, 2.0), wanted, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(mpelu(x, 0.5, 2.0), wanted, rtol=1e-14, atol=1e-15)


def test_a_number_keeps_float64():
    x = torch.tensor([-1.0], dtype=torch.float64)
    torch.testing.assert_close(mpelu(x, 0.1, 0.3), 0.1 * torch.expm1(0.3 * x), rtol=4.5e-16, atol=0)


def test_shared_parameters_take_any_shape():
    for shape in ((), (5,), (2, 3), (2, 3, 4, 5, 6)):
        assert mpelu(normal(*shape), torch.tensor([0.5]), torch.tensor(1.0)).shape == shape


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_refuses_input_that_is_not_floating(dtype):
    with pytest.raises(UsageError, match=rf"floating dtype, got {dtype}; convert it with x.float\(\)"):
        mpelu(torch.ones(2, 3).to(dtype), 1.0, 1.0)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("shape", [(4,), (2,), (3, 1), (1, 3), (1, 1), (0,)], ids=str)
def test_refuses_parameters_of_another_shape(name, shape):
    arguments = {"alpha": 1.0, "beta": 1.0, name: torch.ones(shape)}
    with pytest.raises(UsageError) as caught:
        mpelu(torch.ones(2, 3, 5), **arguments)
    assert f"{name} must have shape () or (3,)" in str(caught.value)
    assert "x with shape (2, 3, 5)" in str(caught.value)
    assert f"got {shape}" in str(caught.value)


@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_refuses_parameters_for_each_channel_where_there_is_no_channel(shape):
    with pytest.raises(UsageError, match=r"alpha must have shape \(\) because there is no channel dim .*got \(3,\)"):
        mpelu(torch.ones(shape), torch.ones(3), torch.ones(3))


def test_autocast_keeps_parameters_and_their_gradients_in_float32():
    linear = torch.nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(normal(3, 4, dtype=torch.float32))
    alpha, beta = (value.requires_grad_() for value in parameters(3, dtype=torch.float32))
    x = normal(8, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pre_activation = linear(x)
        output = mpelu(pre_activation, alpha, beta)
    assert pre_activation.dtype == output.dtype == torch.bfloat16
    wanted = mpelu(pre_activation.detach().double(), alpha.detach().double(), beta.detach().double())
    torch.testing.assert_close(output.double(), wanted, rtol=2.0**-8, atol=0)  # rounded once to 8 bits
    output.float().sum().backward()
    for leaf in (alpha, beta, linear.weight):
        assert leaf.grad.dtype == torch.float32
        assert leaf.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's tracer does it itself
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 4)], ids=str)
def test_compiled_without_graph_breaks_agrees_with_eager(shape):
    torch._dynamo.reset()
    compiled = torch.compile(mpelu, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (mpelu, compiled):
        leaves = [value.clone().requires_grad_() for value in (normal(*shape), *parameters(3))]
        output = function(*leaves)
        output.backward(normal(*shape, seed=5))
        gradients.append((output.detach(), *(leaf.grad for leaf in leaves)))
    torch._dynamo.reset()
    for eager, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-14, atol=1e-14)  # the same operations in the same order


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")  # torch's own: quantized dtypes will go
def test_a_quantized_tensor_is_sent_back_with_what_to_put_around():
    x = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8)
    with pytest.raises(UsageError, match=r"got torch.quint8; put DeQuantStub before MPELU and QuantStub behind it"):
        mpelu(x, 0.25, 1.0)
