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

from mpelu.ops import dispatch, fused, output, reference

kernels = pytest.importorskip("mpelu.ops.triton", reason="triton is not installed", exc_type=ImportError)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LOWEST_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}
PAIRS = [(1.0, 1.0), (0.25, 1.0), (1.3, 0.7), (-0.6, 3.1)]
ROUNDED_MOST = (1 + 2.0**-12, 1 + 2.0**-12)
"""Their product lies halfway between two float32 numbers just above 1: no rounding error is larger than its own."""
BARS = {torch.float32: (2.0, 2.5), torch.bfloat16: (0.51, 0.51), torch.float16: (0.51, 0.51)}
"""The errors that y and grad_x may have, in units of the last place."""

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
    "NCHW, small planes, few samples": torch.empty(5, 16, 7, 7),
    "NCHW, small planes, several tiles": torch.empty(21, 32, 7, 7),
    "NCHW, aligned planes": torch.empty(9, 3, 8, 8),
    "NCHW, planes of several tiles": torch.empty(2, 3, 65, 67),
    "channels_last": torch.empty(3, 5, 9, 11, memory_format=torch.channels_last),
    "channels_last_3d": torch.empty(2, 6, 3, 5, 7, memory_format=torch.channels_last_3d),
}

OF_HALF_TYPES = {"vector", "N C, several tiles", "L C N", "NCHW", "NCHW, small planes", "channels_last"}
"""Layouts that stand for all others in the interpreter, which takes as long for a type as for another."""
over_types_and_layouts = pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        pytest.param(dtype, layout, id=f"{dtype}-{name}")
        for dtype in DTYPES
        for name, layout in LAYOUTS.items()
        if dtype == torch.float32 or not INTERPRETED or name in OF_HALF_TYPES
    ],
)


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    with np.errstate(all="ignore"):  # numpy is what the interpreter computes with
        yield
    torch.use_deterministic_algorithms(False)


def fused_multiply_add(x, y, z):
    """Return x * y + z in the dtype of z, rounded once: by a float64 whose last bit is odd where it is not exact."""
    product = np.multiply(x, y, dtype=np.float64)  # exact for float32
    rounded = product + z.astype(np.float64)
    part = rounded - product
    lost = (product - (rounded - part)) + (z - part)
    even = rounded.view(np.int64) % 2 == 0
    inexact = np.isfinite(rounded) & (lost != 0)
    odd = np.where(inexact & even, np.nextafter(rounded, np.copysign(np.inf, lost)), rounded)
    return odd.astype(z.dtype)


@pytest.fixture(autouse=True)
def arithmetic_of_a_device(monkeypatch):
    """Let the interpreter convert between float32 and bfloat16 as torch does, and round multiply-adds once.

    Its own conversion truncates, and reads most subnormal numbers as 0; in Triton 3.7.1 its multiply-add rounds
    twice. A device rounds to the nearest: that the compiled kernels ask for it is tested with their code.
    """
    if not INTERPRETED:
        return
    from triton import language as tl
    from triton.runtime import interpreter

    theirs = interpreter._convert_float

    def convert(values, source, target, rounding):
        if (source, target) == (tl.bfloat16, tl.float32):
            return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16).float().numpy().view(np.uint32)
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return theirs(values, source, target, rounding)

    def create_fma(_, x, y, z):
        return interpreter.TensorHandle(
            fused_multiply_add(*np.broadcast_arrays(x.data, y.data, z.data)), z.dtype.scalar
        )

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", create_fma)


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


def exact_from_output(y, alpha, beta, grad):
    """Return grad_x and the terms of the two sums in float64, and how far rounding 1 + y / alpha puts each off."""
    y, grad = y.double(), grad.double()
    alpha, beta = (
        p.double().reshape(1, -1, *[1] * (y.dim() - 2)) if p.numel() > 1 else p.double() for p in (alpha, beta)
    )
    is_negative, zero = ~(y > 0), torch.zeros_like(y)
    expm1 = (y.clamp(max=0) / alpha).clamp(min=-1)
    exponential, log = 1 + expm1, torch.log1p(expm1).clamp(min=-88)
    rounding = torch.where(exponential > 1, exponential, 0.5) * 2.0**-24
    grad_x = torch.where(is_negative, grad * alpha * beta * exponential, grad)
    grad_x_slack = torch.where(is_negative, (grad * alpha * beta).abs() * rounding, zero)
    grad_alpha = torch.where(is_negative, grad * expm1, zero)
    grad_beta = torch.where(is_negative, grad * (alpha / beta) * exponential * log, zero)
    grad_beta_slack = torch.where(
        is_negative, (grad * (alpha / beta)).abs() * (log.abs() + expm1.abs()) * rounding, zero
    )
    return (grad_x, grad_alpha, grad_beta), (grad_x_slack, zero, grad_beta_slack)


def ulps(actual, wanted, slack=0.0):
    """Return the largest error, beyond the slack, in units of the last place of the wanted values that are finite."""
    dtype = actual.dtype
    exponent = torch.frexp(wanted)[1].clamp(min=LOWEST_EXPONENT[dtype] + 1) - 1
    unit = torch.ldexp(torch.full_like(wanted, torch.finfo(dtype).eps), exponent)
    error = ((actual.double() - wanted).abs() - slack) / unit
    return error[wanted.isfinite()].max().item()


def assert_sum(actual, terms, slack=None):
    """Compare with the sum over all that has the same parameter: 4 roundings of the sum of the absolute terms."""

    def by_parameter(values):
        return values.transpose(0, 1).reshape(actual.numel(), -1) if actual.numel() > 1 else values.reshape(1, -1)

    error = (actual.double().reshape(-1) - by_parameter(terms).sum(1)).abs()
    if slack is not None:
        error -= by_parameter(slack).sum(1)
    allowed = 4 * 2**-24 * by_parameter(terms).abs().sum(1)
    assert (error <= allowed).all(), error / allowed


class TestKernels:
    pytestmark = [] if INTERPRETED else on_a_gpu

    @pytest.mark.parametrize("shared", [False, True], ids=["channels", "shared"])
    @over_types_and_layouts
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
        bar_y, bar_grad_x = BARS[dtype]
        assert ulps(y, wanted_y) <= bar_y
        assert ulps(grad_x, wanted_grad_x) <= bar_grad_x
        assert_sum(grad_alpha, alpha_terms)
        assert_sum(grad_beta, beta_terms)

    @pytest.mark.parametrize(
        "name",
        [
            "vector of several tiles",
            "N C, chains of tiles",
            "NCHW, small planes",
            "NCHW, small planes, several tiles",
            "NCHW, planes of several tiles",
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_long_chains_add_the_same(self, long_chains, dtype, name):
        layout = LAYOUTS[name]
        channels = layout.shape[1] if layout.dim() > 1 else 1
        stride = fused.channel_stride(layout, channels)
        assert kernels._plan(layout.numel(), channels, stride, 1024, kernels._MANY_SAMPLES).chain == kernels._CHAIN
        self.test_agrees_with_float64_in_every_layout(dtype, layout, shared=False)

    @pytest.mark.parametrize("name", ["N C, several tiles", "NCHW, small planes, several tiles"])
    def test_a_second_stage_of_many_steps_adds_the_same(self, monkeypatch, name):
        monkeypatch.setattr(kernels, "_PARTIAL_SUMS", 16)
        self.test_agrees_with_float64_in_every_layout(torch.float32, LAYOUTS[name], shared=False)

    @pytest.mark.parametrize(("alpha", "beta"), [*PAIRS, ROUNDED_MOST])
    def test_float32_accuracy(self, alpha, beta):
        generator = torch.Generator().manual_seed(0)
        # evenly and logarithmically spread, as far as exp(beta x) is a normal number
        uniform, power = torch.rand(2, 20_000, generator=generator, dtype=torch.float64)
        x = torch.cat([-uniform * 3, -uniform * 87 / beta, -(10.0 ** (-30 + 31 * power)), uniform]).float().to(DEVICE)
        grad = (0.5 + torch.rand(x.shape, generator=generator)).float().to(DEVICE)
        y, grad_x, *_ = run(x, parameter(alpha), parameter(beta), grad)
        wanted_y, wanted_grad_x, *_ = exact(x, parameter(alpha), parameter(beta), grad)
        normal = wanted_grad_x.abs() >= 2.0**-124  # exp(beta x) has two factors more
        bar_y, bar_grad_x = BARS[torch.float32]
        assert ulps(y, wanted_y) <= bar_y
        assert ulps(grad_x[normal], wanted_grad_x[normal]) <= bar_grad_x

    @pytest.mark.parametrize(("alpha", "beta"), PAIRS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_every_half_number_is_rounded_correctly(self, dtype, alpha, beta):
        x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        x = x.to(DEVICE)
        y, grad_x, *_ = run(x, parameter(alpha), parameter(beta), torch.ones_like(x))
        wanted_y, wanted_grad_x, *_ = exact(x, parameter(alpha), parameter(beta), torch.ones_like(x))
        assert torch.equal(y.isnan(), x.isnan())
        for actual, wanted, bar in zip((y, grad_x), (wanted_y, wanted_grad_x), BARS[dtype], strict=True):
            # exp(beta x) has no subnormal numbers, and for bfloat16 those are in range
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

    def test_equal_terms_of_a_large_tensor_do_not_either(self, long_chains, monkeypatch):
        """A sum of 256 terms in float32 would be off by far more; here every tile is as small as it can be."""
        monkeypatch.setattr(kernels, "_BACKWARD_BYTES", 64 * 4)
        x = torch.full((64 * 256,), -0.7, device=DEVICE)
        grad = torch.full_like(x, 0.1)
        arguments = x, parameter(0.3), parameter(1.1), grad
        _, _, grad_alpha, grad_beta = run(*arguments)
        _, _, alpha_terms, beta_terms = exact(*arguments)
        assert_sum(grad_alpha, alpha_terms)
        assert_sum(grad_beta, beta_terms)

    @pytest.mark.parametrize("beta", [0.3, 1.1, 2.0])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_term_of_a_sum_is_exact_enough(self, dtype, beta):
        """Each is the sum of a channel of its own: errors that grow with beta x cannot hide behind larger terms."""
        x = torch.linspace(-12, -0.01, 1500)[None].to(DEVICE, dtype)
        grad = random_like(x, dtype)
        parameters = spread(0.2, 1.5, 1500), spread(beta, beta, 1500)
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

    @over_types_and_layouts
    def test_from_the_output_in_every_layout(self, dtype, layout):
        channels = layout.shape[1] if layout.dim() > 1 else 1
        parameters = spread(0.25, 1.5, channels), spread(2.0, 0.5, channels)
        self.check_from_output(3 * random_like(layout, dtype), parameters, random_like(layout, dtype, seed=1))

    @pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.3), (0.3, 2.0), (-0.7, -0.6), (98.0, 0.01)])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_term_from_the_output_is_exact_enough(self, dtype, alpha, beta):
        x = torch.linspace(-12, -0.001, 1500)[None].to(DEVICE, dtype)
        parameters = spread(alpha, 1.1 * alpha, 1500), spread(beta, beta, 1500)
        self.check_from_output(x, parameters, random_like(x, dtype))

    def check_from_output(self, x, parameters, grad):
        y = kernels.forward(x, *parameters)
        grad_x, *sums = kernels.backward(grad, y, *parameters, from_output=True)
        (wanted, *terms), (slack, *sum_slack) = exact_from_output(y, *parameters, grad)
        assert grad_x.stride() == x.stride()
        assert grad_x.dtype == x.dtype
        assert torch.equal(grad_x[x > 0], grad[x > 0])
        assert ulps(grad_x, wanted, slack) <= BARS[x.dtype][1]
        for ours, theirs, rounding in zip(sums, terms, sum_slack, strict=True):
            assert_sum(ours, theirs, rounding)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_extremes_from_the_output(self, dtype):
        largest, infinity = torch.finfo(dtype).max, torch.inf
        # the third has saturated, and rounding has put the fourth below -alpha
        y = parameter(infinity, largest, -0.5, -0.5 * (1 + torch.finfo(dtype).eps), 0.0, -0.0, dtype=dtype)
        grad = torch.full_like(y, 3.0)
        grad_x, grad_alpha, grad_beta = kernels.backward(grad, y, parameter(0.5), parameter(4.0), from_output=True)
        assert grad_x.tolist() == [3.0, 3.0, 0.0, 0.0, 6.0, 6.0]  # at 0, alpha * beta = 2
        assert grad_alpha.item() == -6.0
        assert grad_beta.item() == 0.0

        with_nan = torch.full((40,), torch.nan, dtype=dtype, device=DEVICE)
        results = kernels.backward(
            torch.ones_like(with_nan), with_nan, parameter(0.5), parameter(2.0), from_output=True
        )
        assert all(tensor.isnan().all() for tensor in results)

        y, grad = parameter(1.0, -0.5, 2.0), parameter(infinity, 1.0, torch.nan)
        _, grad_alpha, grad_beta = kernels.backward(grad, y, parameter(1.0), parameter(1.0), from_output=True)
        assert grad_alpha.isfinite()
        assert grad_beta.isfinite()

    def test_tensors_that_are_not_plain_are_left_to_others(self):
        x, one = parameter(-1.0, 2.0), parameter(1.0)
        assert kernels.backward(torch._neg_view(x), x, one, one) is None
        assert kernels.backward(x, torch._neg_view(x), one, one) is None

    @pytest.mark.parametrize("alpha", [3e-39, 1e-30, 1e30])
    def test_any_size_of_alpha_from_the_output(self, alpha):
        parameters = parameter(alpha), parameter(1.0)
        y, grad = parameter(-0.25, -0.5, -1.0, 0.0) * parameters[0], parameter(1.0, -2.0, 3.0, 1.0)
        ours = kernels.backward(grad, y, *parameters, from_output=True)
        for our, their in zip(ours, reference.backward_from_output(grad, y, *parameters), strict=True):
            torch.testing.assert_close(our, their, rtol=1e-6, atol=3e-45)  # two of the smallest subnormal numbers

    def test_alpha_without_an_inverse_gives_finite_gradients(self):
        """1 / 1e-39 is not a float32 number."""
        y, grad = parameter(-5e-40, 0.0, 1.0), parameter(1.0, 1.0, 1.0)
        for gradient in kernels.backward(grad, y, parameter(1e-39), parameter(1.0), from_output=True):
            assert gradient.isfinite().all()

    def test_output_instead_of_input_through_autograd(self):
        x, grad = (random_like(torch.empty(4, 6, 5), torch.float32, seed) for seed in (0, 1))
        parameters = spread(0.25, 1.5, 6), spread(2.0, 0.5, 6)
        wanted = run(x, *parameters, grad)
        for inplace in (False, True):
            leaves = [tensor.clone().requires_grad_() for tensor in (x, *parameters)]
            y = output.apply(kernels, leaves[0] * 1, *leaves[1:], inplace=inplace)
            assert torch.equal(y, wanted[0])
            for ours, theirs in zip(torch.autograd.grad(y, leaves, grad), wanted[1:], strict=True):
                torch.testing.assert_close(ours, theirs)

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
