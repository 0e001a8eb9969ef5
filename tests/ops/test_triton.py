"""The kernels for CUDA devices against float64 and against the reference: on a GPU, or in Triton's interpreter on CPU.

Triton decides when it is imported whether to interpret. So one test here runs the others again in a process of their
own, with TRITON_INTERPRET=1, which is also the way to run a single one of them without a GPU.
"""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from mpelu.ops import dispatch, fused, reference

kernels = pytest.importorskip("mpelu.ops.triton", reason="triton is not installed", exc_type=ImportError)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LOWEST_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}
PAIRS = [(1.0, 1.0), (0.25, 1.0), (1.3, 0.7), (-0.6, 3.1)]

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the interpreter runs these tests"),
]


@pytest.mark.slow
def test_in_the_interpreter():
    if INTERPRETED:
        pytest.skip("this is the interpreter")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def permuted(*shape, order):
    """Return an empty tensor whose dimensions lie in memory in the given order."""
    return torch.empty([shape[i] for i in order]).permute([order.index(i) for i in range(len(shape))])


LAYOUTS = {
    "one": torch.empty(1, 1),
    "vector": torch.empty(1023),
    "vector of several tiles": torch.empty(9000),
    "N C": torch.empty(37, 7),
    "N C, several tiles": torch.empty(70, 129),
    "N C, chains of tiles": torch.empty(511, 64),
    "N C, one channel": torch.empty(1023, 1),
    "N C L": torch.empty(3, 5, 33),
    "C N L": permuted(3, 5, 33, order=(1, 0, 2)),
    "L C N": permuted(3, 5, 33, order=(2, 1, 0)),
    "NCHW": torch.empty(3, 5, 9, 11),
    "NCHW, small planes": torch.empty(35, 16, 3, 3),
    "NCHW, aligned planes": torch.empty(9, 3, 8, 8),
    "NCHW, planes of several tiles": torch.empty(2, 3, 65, 67),
    "channels_last": torch.empty(3, 5, 9, 11, memory_format=torch.channels_last),
    "channels_last_3d": torch.empty(2, 6, 3, 5, 7, memory_format=torch.channels_last_3d),
}


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    with np.errstate(all="ignore"):  # numpy is what the interpreter computes with
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def long_chains(monkeypatch):
    """As for a large tensor: with every number of tiles, programs add as many of them as they may."""
    monkeypatch.setattr(kernels, "_ENOUGH_PROGRAMS", 1)
    kernels._plan.cache_clear()
    yield
    kernels._plan.cache_clear()


def random_like(layout, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(layout.shape, generator=generator, dtype=torch.float64)
    return torch.empty_like(layout, dtype=dtype, device=DEVICE).copy_(values)


def parameter(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def spread(low, high, channels):
    return torch.linspace(low, high, channels, device=DEVICE)


def run(x, alpha, beta, grad):
    """Return y and the three gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, alpha, beta)]
    y = fused.apply(kernels, *leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


def exact(x, alpha, beta, grad):
    """Return y, grad_x and the terms of the two sums, in float64."""
    x, grad = x.double(), grad.double()
    alpha, beta = (
        p.double().reshape(1, -1, *[1] * (x.dim() - 2)) if p.numel() > 1 else p.double() for p in (alpha, beta)
    )
    negative, is_negative = x.clamp(max=0), ~(x > 0)
    exponential, zero = torch.exp(beta * negative), torch.zeros((), dtype=torch.float64, device=x.device)
    y = torch.where(is_negative, alpha * torch.expm1(beta * negative), x)
    grad_x = torch.where(is_negative, grad * alpha * beta * exponential, grad)
    grad_alpha = torch.where(is_negative, grad * torch.expm1(beta * negative), zero)
    grad_beta = torch.where(is_negative, grad * alpha * negative * exponential, zero)
    return y, grad_x, grad_alpha, grad_beta


def ulps(actual, wanted):
    """Return the largest error in units of the last place of the wanted values, where both are finite."""
    dtype = actual.dtype
    exponent = torch.frexp(wanted)[1].clamp(min=LOWEST_EXPONENT[dtype] + 1) - 1
    unit = torch.ldexp(torch.full_like(wanted, torch.finfo(dtype).eps), exponent)
    error = (actual.double() - wanted).abs() / unit
    return error[wanted.isfinite()].max().item()


def bars(dtype):
    """Return the errors that y and grad_x may have, in units of the last place."""
    if dtype == torch.float32:
        return 2.0, 2.5
    # to bfloat16, the interpreter truncates: the error of rounding is up to 1 instead of 1/2
    return (1.01, 1.01) if INTERPRETED and dtype == torch.bfloat16 else (0.51, 0.51)


def assert_sum(actual, terms):
    """Compare with the sum over all that has the same parameter: 4 roundings of the sum of the absolute terms."""
    per_channel = actual.numel() > 1
    terms = terms.transpose(0, 1).reshape(actual.numel(), -1) if per_channel else terms.reshape(1, -1)
    error = (actual.double().reshape(-1) - terms.sum(1)).abs()
    assert (error <= 4 * 2**-24 * terms.abs().sum(1)).all(), error / (2**-24 * terms.abs().sum(1))


class TestKernels:
    pytestmark = [] if INTERPRETED else on_a_gpu

    @pytest.mark.parametrize("shared", [False, True], ids=["channels", "shared"])
    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_agrees_with_float64_in_every_layout(self, dtype, layout, shared):
        channels = 1 if shared or layout.dim() < 2 else layout.shape[1]
        alpha, beta = spread(0.25, 1.5, channels), spread(2.0, 0.5, channels)
        x, grad = random_like(layout, dtype), random_like(layout, dtype, seed=1)
        y, grad_x, grad_alpha, grad_beta = run(x, alpha, beta, grad)
        wanted_y, wanted_grad_x, alpha_terms, beta_terms = exact(x, alpha, beta, grad)

        assert y.stride() == grad_x.stride() == x.stride()
        assert y.dtype == grad_x.dtype == dtype
        assert torch.equal(y[x > 0], x[x > 0])
        assert torch.equal(grad_x[x > 0], grad[x > 0])
        bar_y, bar_grad_x = bars(dtype)
        assert ulps(y, wanted_y) <= bar_y
        assert ulps(grad_x, wanted_grad_x) <= bar_grad_x
        assert_sum(grad_alpha, alpha_terms)
        assert_sum(grad_beta, beta_terms)

    @pytest.mark.parametrize(
        "name",
        ["vector of several tiles", "N C, chains of tiles", "NCHW, small planes", "NCHW, planes of several tiles"],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_long_chains_add_the_same(self, long_chains, dtype, name):
        layout = LAYOUTS[name]
        channels = layout.shape[1] if layout.dim() > 1 else 1
        plan = kernels._plan(layout.numel(), channels, fused.channel_stride(layout, channels), 1024)
        assert plan.chain == kernels._CHAIN
        self.test_agrees_with_float64_in_every_layout(dtype, layout, shared=False)

    @pytest.mark.parametrize(("alpha", "beta"), PAIRS)
    def test_float32_accuracy(self, alpha, beta):
        generator = torch.Generator().manual_seed(0)
        # evenly and logarithmically spread, as far as exp(beta x) is a normal number
        uniform, power = torch.rand(2, 20_000, generator=generator, dtype=torch.float64)
        x = torch.cat([-uniform * 3, -uniform * 87 / beta, -(10.0 ** (-30 + 31 * power)), uniform]).float().to(DEVICE)
        grad = (0.5 + torch.rand(x.shape, generator=generator)).float().to(DEVICE)
        y, grad_x, *_ = run(x, parameter(alpha), parameter(beta), grad)
        wanted_y, wanted_grad_x, *_ = exact(x, parameter(alpha), parameter(beta), grad)
        normal = wanted_grad_x.abs() >= 2.0**-124  # exp(beta x) has two factors more
        bar_y, bar_grad_x = bars(torch.float32)
        assert ulps(y, wanted_y) <= bar_y
        assert ulps(grad_x[normal], wanted_grad_x[normal]) <= bar_grad_x

    @pytest.mark.parametrize(("alpha", "beta"), PAIRS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_every_half_number_is_rounded_correctly(self, dtype, alpha, beta):
        x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        if INTERPRETED and dtype == torch.bfloat16:  # the interpreter reads most subnormal numbers as 0
            x = x[~(x.abs() < torch.finfo(dtype).tiny) | (x == 0)]
        x = x.to(DEVICE)
        y, grad_x, *_ = run(x, parameter(alpha), parameter(beta), torch.ones_like(x))
        wanted_y, wanted_grad_x, *_ = exact(x, parameter(alpha), parameter(beta), torch.ones_like(x))
        assert torch.equal(y.isnan(), x.isnan())
        for actual, wanted, bar in zip((y, grad_x), (wanted_y, wanted_grad_x), bars(dtype), strict=True):
            # exp(beta x) in float32 has no subnormal numbers on a GPU, and for bfloat16 those are in range
            tiny = (wanted.abs() < 2.0**-124) & (dtype == torch.bfloat16)
            assert not tiny.any() or actual[tiny].abs().max() <= 2.0**-124
            assert ulps(actual[~tiny], wanted[~tiny]) <= bar
            assert torch.equal(actual[wanted.isinf()].double(), wanted[wanted.isinf()])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_extremes(self, dtype):
        largest, infinity, nan = torch.finfo(dtype).max, torch.inf, torch.nan
        x = parameter(infinity, largest, 0.0, -0.0, -largest, -infinity, dtype=dtype)
        y, grad_x, grad_alpha, grad_beta = run(x, parameter(0.5), parameter(2.0), torch.full_like(x, 3.0))
        assert y.tolist() == [infinity, largest, 0.0, 0.0, -0.5, -0.5]
        assert grad_x.tolist() == [3.0, 3.0, 3.0, 3.0, 0.0, 0.0]  # at 0, alpha * beta = 1
        assert grad_alpha.item() == -6.0
        assert grad_beta.item() == 0.0

        with_nan = torch.full((40,), nan, dtype=dtype, device=DEVICE)
        results = run(with_nan, parameter(0.5), parameter(2.0), torch.ones_like(with_nan))
        assert all(tensor.isnan().all() for tensor in results)

    def test_gradient_of_a_positive_input_does_not_reach_the_parameters(self):
        x, grad = parameter(1.0, -1.0, 2.0), parameter(torch.inf, 1.0, torch.nan)
        _, grad_x, grad_alpha, grad_beta = run(x, parameter(1.0), parameter(1.0), grad)
        assert grad_x[0] == torch.inf
        assert grad_x[2].isnan()
        assert grad_alpha.isfinite()
        assert grad_beta.isfinite()

    @pytest.mark.parametrize(
        ("alpha", "beta"),
        [
            (0.0, 1.0),
            (1.0, 0.0),
            (1.0, -0.0),
            (0.7, -0.7),
            (-1.0, 1.0),
            (1.0, 1e-30),
            (1e-30, 1.0),
            (1.0, 50.0),
            (2.0, -40.0),
        ],
    )
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_unusual_parameters_give_what_the_reference_gives(self, dtype, alpha, beta):
        x = torch.cat([torch.linspace(-200, 5, 1023), torch.tensor([-torch.inf, -1e30, -1e-30, 0.0])])
        x = x.to(DEVICE, dtype)
        grad = random_like(x, dtype)
        actual = run(x, parameter(alpha), parameter(beta), grad)
        wanted = as_reference(x, parameter(alpha), parameter(beta), grad)
        for ours, theirs in zip(actual, wanted, strict=True):
            # the reference rounds beta * x up to 90, which exp turns into 90 * 2^-24, and it has subnormal numbers
            close = {"rtol": max(2e-5, torch.finfo(ours.dtype).eps), "atol": max(1e-36, torch.finfo(ours.dtype).tiny)}
            torch.testing.assert_close(ours, theirs, equal_nan=True, **close)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("layout", [(1, 4 * 4096 + 17), (1025, 2)], ids=str)
    def test_equal_terms_do_not_add_their_rounding(self, long_chains, dtype, layout):
        x = torch.full(layout, -0.7, dtype=dtype, device=DEVICE)
        grad = torch.full(layout, 0.1, dtype=dtype, device=DEVICE)
        channels = 2 if layout[1] == 2 else 1
        parameters = spread(0.3, 0.3, channels), spread(1.1, 1.1, channels)
        _, _, grad_alpha, grad_beta = run(x, *parameters, grad)
        _, _, alpha_terms, beta_terms = exact(x, *parameters, grad)
        assert_sum(grad_alpha, alpha_terms)
        assert_sum(grad_beta, beta_terms)

    @pytest.mark.parametrize("name", ["N C, several tiles", "NCHW, small planes", "NCHW, planes of several tiles"])
    def test_repeats_bit_by_bit(self, name):
        layout = LAYOUTS[name]
        channels = layout.shape[1]
        arguments = random_like(layout, torch.float32), spread(0.25, 1.5, channels), spread(2.0, 0.5, channels)
        grad = random_like(layout, torch.float32, seed=1)
        first = run(*arguments, grad)
        for _ in range(1 if INTERPRETED else 20):
            assert all(torch.equal(*pair) for pair in zip(first, run(*arguments, grad), strict=True))

    @pytest.mark.parametrize("parameter_dtype", [*DTYPES, torch.float64], ids=str)
    @pytest.mark.parametrize(("alpha_shape", "beta_shape"), [((6,), (6,)), ((), (6,)), ((1,), ())], ids=str)
    def test_parameters_of_any_dtype_and_shape(self, parameter_dtype, alpha_shape, beta_shape):
        x, grad = random_like(torch.empty(9, 6), torch.float32), random_like(torch.empty(9, 6), torch.float32, seed=1)
        alpha, beta = (
            torch.full(shape, 0.75, dtype=parameter_dtype, device=DEVICE) for shape in (alpha_shape, beta_shape)
        )
        for ours, theirs in zip(run(x, alpha, beta, grad), as_reference(x, alpha, beta, grad), strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            epsilon = max(torch.finfo(ours.dtype).eps, 2.0**-23)
            torch.testing.assert_close(ours, theirs, rtol=8 * epsilon, atol=8 * epsilon)

    def test_any_layout_of_x_and_of_its_gradient(self):
        x = random_like(torch.empty(4, 8, 6, 10), torch.float32)[:, 1:-1, :, ::2]
        grad = random_like(torch.empty(6, 1, 5), torch.float32, seed=1).expand(4, 6, 6, 5)
        parameters = spread(0.25, 1.5, 6), spread(2.0, 0.5, 6)
        for ours, theirs in zip(run(x, *parameters, grad), as_reference(x, *parameters, grad), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_unaligned_memory(self):
        x, grad = random_like(torch.empty(2, 4097), torch.float16)[:, 1:]
        parameters = parameter(0.5), parameter(2.0)
        for ours, theirs in zip(run(x, *parameters, grad), as_reference(x, *parameters, grad), strict=True):
            # float16: the two round alike up to neighbors, 2^-10
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-6)

    def test_create_graph_goes_through_the_reference(self):
        x, alpha, beta = random_like(torch.empty(4, 3), torch.float32), spread(0.25, 1.5, 3), spread(2.0, 0.5, 3)
        gradients = []
        for function in (lambda *leaves: fused.apply(kernels, *leaves), reference.Reference.apply):
            leaves = [tensor.clone().requires_grad_() for tensor in (x, alpha, beta)]
            (first,) = torch.autograd.grad(function(*leaves).sum(), leaves[0], create_graph=True)
            gradients.append(torch.autograd.grad(first.square().sum(), leaves))
        torch.testing.assert_close(*gradients)


def as_reference(x, alpha, beta, grad):
    return reference.forward(x, alpha, beta), *reference.backward(grad, x, alpha, beta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_and_empty_tensors_are_left_to_the_reference(dtype):
    assert not kernels.supports(torch.ones(3).to(dtype))
    assert not kernels.supports(torch.empty(0, 3))
    assert all(kernels.supports(torch.ones(3, dtype=dtype)) for dtype in DTYPES)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_offsets_are_64_bits_wide():
    x = torch.zeros(2**31 + 4099, dtype=torch.bfloat16, device="cuda")
    x[-7:] = -1.0
    y, grad_x, grad_alpha, _ = run(x, parameter(1.0), parameter(1.0), x)
    assert torch.equal(y[-8:], reference.forward(x[-8:], parameter(1.0), parameter(1.0)))
    assert torch.equal(grad_x[-7:].sign(), x[-7:])
    assert grad_alpha.item() == pytest.approx(-7 * np.expm1(-1.0))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_plain_tensors_on_a_cuda_device_are_computed_by_the_kernels():
    x = torch.randn(2, 3, 4, device="cuda", requires_grad=True)
    with warnings.catch_warnings(action="error"):
        assert dispatch.cuda() is kernels
        y = dispatch.apply(x, spread(0.25, 1.5, 3), spread(2.0, 0.5, 3))
    assert type(y.grad_fn).__name__ == "FusedBackward"
    on_two_devices = dispatch.apply(x, torch.tensor(0.5), torch.tensor(2.0))
    assert type(on_two_devices.grad_fn).__name__ == "ReferenceBackward"
