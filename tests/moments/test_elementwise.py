"""The user's activation: what is accepted, and that it stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpelu.errors import UsageError
from mpelu.moments import covariance, elementwise, expectation, moments
from mpelu.moments.quadrature import rule
from mpelu.moments.tails import legendre
from mpelu.nn import MPELU, SReLU


def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.PReLU(3), nn.RReLU(), nn.Dropout(0.5))
    module[0].weight.grad = torch.ones(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random_state = torch.get_rng_state()
    moments(module)
    assert module.training
    assert all(part.training for part in module)
    assert module[0].weight.dtype == torch.float32
    assert module[0].weight.requires_grad
    assert torch.equal(module[0].weight.grad, torch.ones(3))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_do_not_matter(context):
    expected = moments(torch.tanh)
    with context():
        assert moments(torch.tanh) == expected
        assert moments(nn.Tanh()) == expected
    with torch.inference_mode():
        inside = nn.PReLU(1, 0.5)
        assert moments(nn.Sequential(inside)).slope_second_moment == pytest.approx(0.625, rel=1e-12)


def test_the_default_device_does_not_matter():
    rule.cache_clear()
    legendre.cache_clear()
    expected = {}
    for device in ("meta", "cpu"):
        with torch.device(device):
            found = [moments(f, mean=0.1) for f in (torch.tanh, nn.ELU(), nn.GELU(), nn.Hardtanh())]
            joint = [covariance(f, variance=1.0, correlation=0.5) for f in (torch.tanh, nn.ELU())]
        expected[device] = (found, joint)
    assert expected["meta"] == expected["cpu"]


@pytest.mark.parametrize("function", [nn.ReLU(inplace=True), torch.relu_, lambda x: x.clamp_(min=0)])
def test_activations_that_write_over_their_input(function):
    found = moments(nn.Sequential(function) if isinstance(function, nn.Module) else function, variance=2.0)
    assert (found.second_moment, found.slope_mean) == (pytest.approx(1.0), pytest.approx(0.5))


@pytest.mark.parametrize("unit", [MPELU(2, 0.5, 2.0), SReLU(2), nn.PReLU(2, 0.3)], ids=lambda unit: type(unit).__name__)
def test_channels_are_read_off_a_module(unit):
    wrapped = moments(nn.Sequential(unit), variance=0.7)
    assert wrapped.method == "quadrature"
    assert wrapped.second_moment == pytest.approx(moments(unit, variance=0.7).second_moment, rel=1e-12)


def test_channels_of_a_function():
    slopes = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
    expected = moments(nn.Identity()).second_moment * (1 + (slopes**2).mean().item()) / 2

    def function(x):
        return F.prelu(x, slopes)

    assert moments(function, channels=3).second_moment == pytest.approx(expected, rel=1e-12)
    assert moments(elementwise(function, channels=3)).second_moment == pytest.approx(expected, rel=1e-12)
    with pytest.raises(UsageError, match="channels="):
        moments(function)


def test_sizes_that_disagree_need_the_number_of_channels():
    odd = nn.PReLU(4)
    odd.register_buffer("table", torch.zeros(7))
    with pytest.raises(UsageError, match=r"\[4, 7\] entries"):
        moments(nn.Sequential(odd))
    assert moments(nn.Sequential(odd), channels=4).second_moment == pytest.approx((1 + 0.25**2) / 2)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (torch.sum, "went in"),
        (lambda x: torch.softmax(x, 0), "changes with other points"),
        (lambda x: x * torch.rand(()), "or by chance"),
        (lambda x: None, "NoneType came out"),
        (lambda x: x @ torch.eye(3), "could not be evaluated"),
        (nn.PReLU(2, device="meta"), "meta device"),
        (lambda x: x // 2, "has no derivative"),
        ("relu", "must be a module or a function"),
    ],
)
def test_what_is_not_elementwise_is_refused(activation, message):
    with pytest.raises(UsageError, match=message):
        moments(activation)


def test_functions_without_a_derivative():
    found = moments(lambda x: (x > 0.2).double(), variance=0.5)
    assert (found.slope_mean, found.slope_second_moment, found.cross) == (0.0, 0.0, 0.0)
    assert found.mean == pytest.approx(0.38864867, rel=1e-7)  # P(z > 0.2 / sqrt(0.5))
    value, error = expectation(lambda x: x > 0.2, variance=0.5)
    assert abs(value - found.mean) <= error + 1e-14
