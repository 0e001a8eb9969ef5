import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import mpelu
from mpelu.errors import UsageError
from mpelu.nn import MPELU, SPELU, SReLU
from tests.cases import normal, over_activations, over_shapes, parameters, plain_formula


def test_has_the_arguments_of_prelu_and_two_start_values():
    signature = inspect.signature(MPELU)
    ours = [name for name in signature.parameters if name not in ("init_alpha", "init_beta")]
    theirs = [name for name in inspect.signature(nn.PReLU).parameters if name != "init"]
    assert ours == [*theirs, "save", "inplace"]
    assert (signature.parameters["init_alpha"].default, signature.parameters["init_beta"].default) == (0.25, 1.0)
    assert mpelu.MPELU is MPELU


def test_state_is_alpha_and_beta_alone():
    module = MPELU(5, init_alpha=0.5, init_beta=2.0)
    state = module.state_dict()
    assert list(state) == ["alpha", "beta"]
    assert state["alpha"].tolist() == [0.5] * 5
    assert state["beta"].tolist() == [2.0] * 5
    assert [name for name, _ in module.named_parameters()] == ["alpha", "beta"]
    assert not list(module.buffers())


@over_shapes
def test_reset_restores_the_start_values(alpha, beta):
    module = MPELU(3, alpha, beta)
    with torch.no_grad():
        module.alpha.add_(1)
        module.beta.add_(1)
    module.reset_parameters()
    fresh = MPELU(3, alpha, beta)
    assert torch.equal(module.alpha, fresh.alpha)
    assert torch.equal(module.beta, fresh.beta)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 4), (2, 3, 2, 2, 2)], ids=str)
def test_applies_its_own_alpha_and_beta(channels, shape):
    module = MPELU(channels, dtype=torch.float64)
    alpha, beta = parameters(channels)
    module.load_state_dict({"alpha": alpha, "beta": beta})
    x = normal(*shape)
    along = (1, channels, *[1] * (len(shape) - 2))
    wanted = plain_formula(x, alpha.reshape(along), beta.reshape(along))
    torch.testing.assert_close(module(x), wanted, rtol=1e-14, atol=1e-14)  # 40 epsilon of values around 1


@over_activations
def test_learns_through_a_layer(case):
    # one step downhill on a fixed batch: every activation of the list passes gradients to what is below it
    torch_state = torch.random.get_rng_state()
    model = nn.Sequential(nn.Linear(4, 6), case.build(6), nn.Linear(6, 1)).double()
    torch.random.set_rng_state(torch_state)
    with torch.no_grad():
        for index, layer in enumerate((model[0], model[2])):
            layer.weight.copy_(normal(*layer.weight.shape, seed=index) / 2)
            layer.bias.zero_()
    x, target = normal(32, 4, seed=7), normal(32, 1, seed=8)
    before = ((model(x) - target) ** 2).mean()
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-6 * parameter.grad
    assert ((model(x) - target) ** 2).mean() < before
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model[0].weight.grad.abs().sum() > 0


def test_device_and_dtype():
    module = MPELU(3, device="meta", dtype=torch.float16)
    for parameter in module.parameters():
        assert parameter.device.type == "meta"
        assert parameter.dtype == torch.float16
    assert module(torch.empty(2, 3, 4, device="meta", dtype=torch.float16)).shape == (2, 3, 4)
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert module.alpha.tolist() == [0.25] * 3
    assert MPELU(dtype=torch.float64).beta.dtype == torch.float64


def test_input_of_another_dtype_than_the_parameters():
    module = MPELU(3)
    x = normal(8, 3, dtype=torch.bfloat16).requires_grad_()
    output = module(x)
    output.float().sum().backward()
    assert output.dtype == x.grad.dtype == torch.bfloat16
    assert module.alpha.grad.dtype == module.beta.grad.dtype == torch.float32


@pytest.mark.parametrize("count", [0, -1])
def test_refuses_less_than_one_parameter(count):
    with pytest.raises(UsageError, match=rf"num_parameters must be 1 or the number of channels, got {count}"):
        MPELU(count)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_refuses_beta_that_is_not_positive(beta):
    with pytest.raises(UsageError, match=rf"init_beta must be > 0 \(Eq\. 3 of the paper\), got {beta}"):
        MPELU(init_beta=beta)


def test_refuses_another_number_of_channels():
    with pytest.raises(UsageError, match=r"shape \(\) or \(4,\) .*x with shape \(2, 4, 5\), got \(3,\)"):
        MPELU(3)(torch.zeros(2, 4, 5))


def test_refuses_integers():
    with pytest.raises(UsageError, match=r"floating dtype, got torch.int64"):
        MPELU(3)(torch.zeros(2, 3, dtype=torch.int64))


def test_says_what_it_is():
    assert repr(MPELU(16, 0.5)) == "MPELU(num_parameters=16, init_alpha=0.5, init_beta=1.0)"


def changed_module() -> MPELU:
    module = MPELU(3)
    alpha, beta = parameters(3, dtype=torch.float32)
    module.load_state_dict({"alpha": alpha, "beta": beta})
    return module


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_independent(duplicate):
    module, x = changed_module(), normal(4, 3, dtype=torch.float32)
    wanted = module(x)
    copied = duplicate(module)
    assert torch.equal(copied(x), wanted)
    with torch.no_grad():
        copied.alpha.add_(1)
    assert torch.equal(module(x), wanted)


def test_weights_go_through_a_file():
    module, file = changed_module(), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = MPELU(3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.alpha, module.alpha)
    assert torch.equal(other.beta, module.beta)


def test_functional_call_uses_the_parameters_it_is_given():
    module, x = MPELU(3, dtype=torch.float64), normal(4, 3)
    alpha, beta = parameters(3)

    def loss(parameters):
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    got = torch.func.grad(loss)({"alpha": alpha, "beta": beta})
    alpha, beta = alpha.requires_grad_(), beta.requires_grad_()
    wanted = torch.autograd.grad(plain_formula(x, alpha, beta).square().sum(), (alpha, beta))
    for ours, theirs in zip((got["alpha"], got["beta"]), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)  # 400 epsilon of values around 1
    assert module.alpha.grad is None


def test_spelu_is_mpelu_with_beta_one():
    x = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    spelu, whole = SPELU(3, 0.7, dtype=torch.float64), MPELU(3, 0.7, 1.0, dtype=torch.float64)
    outputs = [module(x) for module in (spelu, whole)]
    assert torch.equal(*outputs)
    gradients = [
        torch.autograd.grad(y.square().sum(), (x, module.alpha))
        for y, module in zip(outputs, (spelu, whole), strict=True)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    assert list(spelu.state_dict()) == ["alpha"]
    assert "num_parameters=3, init_alpha=0.7" in repr(spelu)


@pytest.mark.parametrize("channels", [1, 3])
def test_srelu_is_three_straight_lines(channels):
    module = SReLU(channels, -0.5, 0.3, 0.8, 0.4, dtype=torch.float64)
    x = torch.linspace(-3, 3, 60, dtype=torch.float64).view(10, 3, 2)
    expected = torch.where(x >= 0.8, 0.8 + 0.4 * (x - 0.8), torch.where(x <= -0.5, -0.5 + 0.3 * (x + 0.5), x))
    torch.testing.assert_close(module(x), expected)
    assert set(module.state_dict()) == {"t_left", "a_left", "t_right", "a_right"}


def test_srelu_gradients():
    module = SReLU(3, -0.5, 0.3, 0.8, 0.4, dtype=torch.float64)
    x = torch.linspace(-2.9, 3.1, 24, dtype=torch.float64).view(4, 3, 2).requires_grad_()  # off both thresholds

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(module.state_dict(), parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *module.parameters()))


def test_srelu_keeps_the_dtype_of_its_input():
    assert SReLU(3)(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_relatives_refuse_what_makes_no_sense():
    with pytest.raises(UsageError, match="num_parameters must be 1 or the number of channels, got 0"):
        SPELU(0)
    with pytest.raises(UsageError, match="num_parameters must be 1 or the number of channels, got 0"):
        SReLU(0)
    with pytest.raises(UsageError, match=r"init_t_left must be below init_t_right, got 1\.0 and 0\.0"):
        SReLU(init_t_left=1.0, init_t_right=0.0)


class Exponential(nn.Module):
    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return original.exp()

    def right_inverse(self, value: torch.Tensor) -> torch.Tensor:
        return value.log()


@pytest.mark.parametrize(
    ("unit", "name"),
    [(MPELU(3, 0.5), "alpha"), (MPELU(3, init_beta=2.0), "beta"), (SPELU(3), "alpha"), (SReLU(3), "a_left")],
    ids=str,
)
def test_parameters_that_a_parametrization_computes_are_reset_and_learn(unit, name):
    start, x = getattr(unit, name).detach().clone(), normal(4, 3, dtype=torch.float32)
    wanted = unit(x).detach()
    parametrize.register_parametrization(unit, name, Exponential())
    original = unit.parametrizations[name].original
    with torch.no_grad():
        original.add_(1.0)
    assert not torch.equal(unit(x), wanted)
    unit.reset_parameters()
    torch.testing.assert_close(getattr(unit, name), start)
    torch.testing.assert_close(unit(x), wanted)
    unit(x).sum().backward()
    assert (original.grad != 0).all()
