"""The compiled module, with every instruction set of this machine, against float64 and against the reference."""

import ctypes
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mpelu.errors import UsageError
from mpelu.functional import mpelu
from mpelu.ops import cpu, fused, reference

_cpu = pytest.importorskip("mpelu.ops._cpu", reason="mpelu has no compiled part here", exc_type=ImportError)

INSTRUCTION_SETS = _cpu.instruction_sets()
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LOWEST_EXPONENT = {torch.float32: -126, torch.float64: -1022, torch.bfloat16: -126, torch.float16: -14}
PAIRS = [(1.0, 1.0), (0.25, 1.0), (1.3, 0.7), (-0.6, 3.1)]


def permuted(*shape, order):
    """Return an empty tensor whose dimensions lie in memory in the given order."""
    return torch.empty([shape[i] for i in order]).permute([order.index(i) for i in range(len(shape))])


LAYOUTS = {
    "one": torch.empty(1, 1),
    "vector": torch.empty(1023),
    "N C": torch.empty(37, 7),
    "N C, wider than a block": torch.empty(19, 1029),
    "N C, one channel": torch.empty(1023, 1),
    "N C L": torch.empty(3, 5, 33),
    "N L C": permuted(3, 5, 33, order=(0, 2, 1)),
    "C N L": permuted(3, 5, 33, order=(1, 0, 2)),
    "L C N": permuted(3, 5, 33, order=(2, 1, 0)),
    "NCHW": torch.empty(3, 5, 9, 11),
    "NCHW, small planes": torch.empty(67, 16, 3, 3),
    "NCHW, planes of several pieces": torch.empty(2, 3, 65, 67),
    "channels_last": torch.empty(3, 5, 9, 11, memory_format=torch.channels_last),
    "channels_last, several items": torch.empty(5, 32, 31, 33, memory_format=torch.channels_last),
    "channels_last_3d": torch.empty(2, 6, 3, 5, 7, memory_format=torch.channels_last_3d),
    "NCDHW": torch.empty(2, 6, 3, 5, 7),
}


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    cpu.compiled()
    _cpu.use(request.param)
    yield request.param
    _cpu.use(INSTRUCTION_SETS[-1])


def random_like(layout, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(layout.shape, generator=generator, dtype=torch.float64)
    return torch.empty_like(layout, dtype=dtype).copy_(values)


def run(x, alpha, beta, grad):
    """Return y and the three gradients, and make sure that they come from the compiled module."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, alpha, beta)]
    y = mpelu(*leaves)
    assert type(y.grad_fn).__name__ == "FusedBackward"
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


def exact(x, alpha, beta, grad):
    """Return y, grad_x and the terms of the two sums, in float64."""
    x, grad = x.double(), grad.double()
    alpha, beta = (reference.along_channels(parameter, x) for parameter in (alpha, beta))
    negative, is_negative = x.clamp(max=0), ~(x > 0)
    exponential, zero = torch.exp(beta * negative), torch.zeros((), dtype=torch.float64)
    y = torch.where(is_negative, alpha * torch.expm1(beta * negative), x)
    grad_x = torch.where(is_negative, grad * alpha * beta * exponential, grad)
    grad_alpha = torch.where(is_negative, grad * torch.expm1(beta * negative), zero)
    grad_beta = torch.where(is_negative, grad * alpha * negative * exponential, zero)
    return y, grad_x, grad_alpha, grad_beta


def ulps(actual, wanted, dtype):
    """Return the largest error in units of the last place of the wanted values, where both are finite."""
    exponent = torch.frexp(wanted)[1].clamp(min=LOWEST_EXPONENT[dtype] + 1) - 1
    unit = torch.ldexp(torch.full_like(wanted, torch.finfo(dtype).eps), exponent)
    error = (actual.double() - wanted).abs() / unit
    return error[wanted.isfinite()].max().item()


def assert_sum(actual, terms):
    """Compare with the sum over all that has the same parameter: 4 roundings of the sum of the absolute terms."""
    per_channel = actual.numel() > 1
    terms = terms.transpose(0, 1).reshape(actual.numel(), -1) if per_channel else terms.reshape(1, -1)
    error = (actual.double().reshape(-1) - terms.sum(1)).abs()
    assert (error <= 4 * 2**-24 * terms.abs().sum(1)).all(), error / (2**-24 * terms.abs().sum(1))


@pytest.mark.parametrize("shared", [False, True], ids=["channels", "shared"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_float64_in_every_layout(instruction_set, dtype, layout, shared):
    if layout.dim() < 2 and not shared:
        shared = True
    channels = 1 if shared else layout.shape[1]
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    alpha = torch.linspace(0.25, 1.5, channels).to(parameter_dtype)
    beta = torch.linspace(2.0, 0.5, channels).to(parameter_dtype)
    x, grad = random_like(layout, dtype), random_like(layout, dtype, seed=1)
    y, grad_x, grad_alpha, grad_beta = run(x, alpha, beta, grad)
    wanted_y, wanted_grad_x, alpha_terms, beta_terms = exact(x, alpha, beta, grad)

    assert y.stride() == grad_x.stride() == x.stride()
    assert torch.equal(y[x > 0], x[x > 0])
    assert torch.equal(grad_x[x > 0], grad[x > 0])
    # float64 is compared with float64: a few roundings of both, and of beta * x <= 8 before exp
    bars = {torch.float32: (2.0, 2.5), torch.float64: (4.0, 16.0)}
    bar_y, bar_grad_x = bars.get(dtype, (0.51, 0.51))
    assert ulps(y, wanted_y, dtype) <= bar_y
    assert ulps(grad_x, wanted_grad_x, dtype) <= bar_grad_x
    assert_sum(grad_alpha, alpha_terms)
    assert_sum(grad_beta, beta_terms)


@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
def test_float32_accuracy(instruction_set, alpha, beta):
    generator = torch.Generator().manual_seed(0)
    # evenly and logarithmically spread, as far as exp(beta x) is a normal number
    uniform, power = torch.rand(2, 50_000, generator=generator, dtype=torch.float64)
    x = torch.cat([-uniform * 3, -uniform * 87 / beta, -(10.0 ** (-30 + 31 * power)), uniform]).float()
    grad = (0.5 + torch.rand(x.shape, generator=generator)).float()
    parameters = torch.tensor([alpha]), torch.tensor([beta])
    y, grad_x, *_ = run(x, *parameters, grad)
    wanted_y, wanted_grad_x, *_ = exact(x, *parameters, grad)
    normal = wanted_grad_x.abs() >= 2.0**-124  # exp(beta x) has two factors more
    assert ulps(y, wanted_y, torch.float32) <= 2.0
    assert ulps(grad_x[normal], wanted_grad_x[normal], torch.float32) <= 2.5


@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
def test_float64_is_as_accurate_as_the_reference(instruction_set, alpha, beta):
    x = -torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
    parameters = torch.tensor([alpha], dtype=torch.float64), torch.tensor([beta], dtype=torch.float64)
    y, grad_x, *_ = run(x, *parameters, torch.ones_like(x))
    exact_x, exact_alpha, exact_beta = (tensor.numpy().astype(np.longdouble) for tensor in (x, *parameters))
    wanted_y = exact_alpha * np.expm1(exact_beta * exact_x)
    wanted_grad_x = exact_alpha * exact_beta * np.exp(exact_beta * exact_x)

    def largest_error(actual, wanted):
        return float(np.max(np.abs(actual.numpy() - wanted) / np.abs(wanted)) / 2**-53)

    reference_y = reference.forward(x, *parameters)
    reference_grad_x = reference.backward(torch.ones_like(x), x, *parameters)[0]
    # 3 and 4 roundings: exp(beta x) itself, the result and the products
    assert largest_error(y, wanted_y) <= max(4.0, largest_error(reference_y, wanted_y))
    assert largest_error(grad_x, wanted_grad_x) <= max(5.0, largest_error(reference_grad_x, wanted_grad_x))


@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_number_is_rounded_correctly(instruction_set, dtype, alpha, beta):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    grad = torch.ones_like(x)
    parameters = torch.tensor([alpha]), torch.tensor([beta])
    y, grad_x, *_ = run(x, *parameters, grad)
    wanted_y, wanted_grad_x, *_ = exact(x, *parameters, grad)
    assert torch.equal(y.isnan(), x.isnan())
    for actual, wanted in ((y, wanted_y), (grad_x, wanted_grad_x)):
        # where the CPU converts to bfloat16 itself it has no subnormal numbers, and nor has exp(beta x) in float32
        tiny = (wanted.abs() < 2.0**-124) & (dtype == torch.bfloat16)
        assert actual[tiny].abs().max() <= 2.0**-124 if tiny.any() else True
        assert ulps(actual[~tiny], wanted[~tiny], dtype) <= 0.51
        assert torch.equal(actual[wanted.isinf()].double(), wanted[wanted.isinf()])


@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_single_term_of_every_half_number_is_as_exact_as_a_sum(instruction_set, dtype, alpha, beta):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    # elsewhere exp(beta x) or x itself leaves the normal numbers of float32
    x = x[(x < -(2.0**-100)) & ((beta * x.double()).abs() < 80)]
    parameters = torch.full((len(x),), alpha), torch.full((len(x),), beta)
    x, grad = x[None], torch.ones_like(x)[None]
    _, _, grad_alpha, grad_beta = run(x, *parameters, grad)
    _, _, alpha_terms, beta_terms = exact(x, *parameters, grad)
    assert_sum(grad_alpha, alpha_terms)
    assert_sum(grad_beta, beta_terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extremes(instruction_set, dtype):
    largest, infinity, nan = torch.finfo(dtype).max, torch.inf, torch.nan
    x = torch.tensor([infinity, largest, 0.0, -0.0, -largest, -infinity], dtype=dtype)
    grad = torch.full_like(x, 3.0)
    alpha, beta = torch.tensor(0.5, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    y, grad_x, grad_alpha, grad_beta = run(x, alpha, beta, grad)
    assert y.tolist() == [infinity, largest, 0.0, 0.0, -0.5, -0.5]
    assert grad_x.tolist() == [3.0, 3.0, 3.0, 3.0, 0.0, 0.0]  # at 0, alpha * beta = 1
    assert grad_alpha.item() == -6.0
    assert grad_beta.item() == 0.0

    with_nan = torch.full((40,), nan, dtype=dtype)
    assert all(tensor.isnan().all() for tensor in run(with_nan, alpha, beta, torch.ones_like(with_nan)))


def test_infinite_gradient_of_a_positive_input_does_not_reach_the_parameters(instruction_set):
    x, grad = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([torch.inf, 1.0, torch.nan])
    _, grad_x, grad_alpha, grad_beta = run(x, torch.tensor(1.0), torch.tensor(1.0), grad)
    assert grad_x[0] == torch.inf
    assert grad_x[2].isnan()
    assert grad_alpha.isfinite()
    assert grad_beta.isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
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
def test_unusual_parameters_give_what_the_reference_gives(instruction_set, alpha, beta, dtype):
    x = torch.cat([torch.linspace(-200, 5, 1023), torch.tensor([-torch.inf, -1e30, -1e-30, 0.0])]).to(dtype)
    grad = random_like(x, dtype)
    parameters = torch.tensor([alpha], dtype=dtype), torch.tensor([beta], dtype=dtype)
    actual = run(x, *parameters, grad)
    wanted = reference.forward(x, *parameters), *reference.backward(grad, x, *parameters)
    # float32: the reference rounds beta * x up to 90, which exp turns into 90 * 2^-24, and it has subnormal numbers
    tolerance = {torch.float32: {"rtol": 2e-5, "atol": 1e-36}, torch.float64: {"rtol": 1e-12, "atol": 1e-300}}[dtype]
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


LARGE = {  # 8 to 9 MiB of float32
    "aligned planes": torch.empty(33, 64, 32, 33),
    "planes that begin anywhere": torch.empty(17, 130, 31, 33),
    "aligned rows": torch.empty(33, 64, 32, 33, memory_format=torch.channels_last),
    "joined rows": torch.empty(90, 24, 32, 33, memory_format=torch.channels_last),
    "rows that begin anywhere": torch.empty(2100, 1029),
}


@pytest.mark.parametrize("layout", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_large_gradients_are_those_of_their_parts(instruction_set, dtype, layout):
    """From 8 MiB for each thread on they are written past the caches."""
    x, grad = random_like(layout, dtype), random_like(layout, dtype, seed=1)
    assert x.nbytes >= 2**23 > x.chunk(3)[0].nbytes
    alpha, beta = torch.linspace(0.25, 1.5, x.shape[1]), torch.linspace(2.0, 0.5, x.shape[1])
    parameters = alpha.to(dtype), beta.to(dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, grad_x, *sums = run(x, *parameters, grad)
    torch.set_num_threads(threads)
    parts = [run(*part) for part in zip(x.chunk(3), *([p] * 3 for p in parameters), grad.chunk(3), strict=True)]
    assert torch.equal(grad_x, torch.cat([part[1] for part in parts]))
    for ours, *theirs in zip(sums, *(part[2:] for part in parts), strict=True):
        torch.testing.assert_close(ours, sum(theirs), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [(1, 4 * 4096 + 17), (4099, 2)], ids=str)
def test_equal_terms_do_not_add_their_rounding(instruction_set, dtype, layout):
    x, grad = torch.full(layout, -0.7, dtype=dtype), torch.full(layout, 0.1, dtype=dtype)
    channels = 2 if layout[1] == 2 else 1
    parameters = torch.full((channels,), 0.3), torch.full((channels,), 1.1)
    _, _, grad_alpha, grad_beta = run(x, *parameters, grad)
    _, _, alpha_terms, beta_terms = exact(x, *parameters, grad)
    assert_sum(grad_alpha, alpha_terms)
    assert_sum(grad_beta, beta_terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "layout",
    [
        torch.empty(8, 16, 65, 67),
        torch.empty(8, 16, 65, 67, memory_format=torch.channels_last),
        torch.empty(2049, 300),
        torch.empty(600_001),
    ],
    ids=["NCHW", "channels_last", "N C", "shared"],
)
def test_results_do_not_depend_on_threads(instruction_set, dtype, layout):
    channels = layout.shape[1] if layout.dim() > 1 else 1
    parameters = torch.rand(channels), torch.rand(channels)
    x, grad = random_like(layout, dtype), random_like(layout, dtype, seed=1)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5, 8, 8):
            torch.set_num_threads(threads)
            results.append(run(x, *parameters, grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_a_python_thread_uses_as_many_threads_as_torch(monkeypatch):
    used = []

    class Recorder:
        def reads(self, *tensors):
            return True

        def forward(self, x, alpha, beta, y, threads):
            used.append(threads)

    monkeypatch.setattr(cpu, "compiled", Recorder)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        thread = threading.Thread(target=lambda: mpelu(torch.zeros(4), 1.0, 1.0))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert used == [3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; elsewhere the module has no threads")
def test_shares_the_threads_of_torch():
    code = """
import os, pathlib, torch
from mpelu.functional import mpelu
torch.set_num_threads(4)
x = torch.randn(1 << 20)
for _ in range(3):
    x.exp()
    before = len(os.listdir("/proc/self/task"))
    mpelu(x, 1.0, 1.0)
    assert len(os.listdir("/proc/self/task")) == before
maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
libraries = {line.split()[-1] for line in maps if "libgomp" in line}
assert len(libraries) == 1, libraries
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_agree_with_float64_in_every_layout(instruction_set, dtype, layout):
    x = random_like(layout, dtype) + 0.5
    exact = x.double()
    for unit in (-1, *([1] if x.dim() > 1 else [])):
        means = exact.mean([dim for dim in range(x.dim()) if dim != unit]) if unit > 0 else exact.mean()
        square, mean, variance = cpu.moments(x, unit)
        # a term of a sum of 8 is rounded 8 times, and the rest is added in double
        assert square == pytest.approx(exact.square().mean().item(), rel=8 * 2**-24)
        assert mean == pytest.approx(exact.mean().item(), abs=8 * 2**-24 * exact.abs().mean().item())
        assert variance == pytest.approx(means.var(correction=0).item(), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("shape", [(64, 32, 33), (300, 700), (5, 3, 200, 200)], ids=str)
def test_moments_do_not_depend_on_threads(instruction_set, shape):
    x = random_like(torch.empty(shape), torch.float32)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append(cpu.moments(x, 1))
        finally:
            torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(6, 5, 9, 11), (2, 3, 65, 67), (37, 7)], ids=str)
def test_one_number_that_is_not_finite_is_seen_by_moments(instruction_set, shape, value):
    for place in (0, -1):
        x = torch.ones(shape)
        x.view(-1)[place] = value
        assert not math.isfinite(cpu.moments(x, 1)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_of_any_strides(instruction_set, dtype):
    x = random_like(torch.empty(7, 5, 9, 41), dtype)
    for view in (x, x[1::2, :, 4:, ::8], x[:, :1, :1, :1], x.permute(2, 0, 3, 1)[:, 3]):
        start = view.storage_offset() - x.storage_offset()
        rows = view.double().flatten(1)
        sizes = rows.norm(dim=1)
        error = (cpu.products(x, tuple(view.shape), view.stride(), start) - rows @ rows.mT).abs()
        assert (error <= 16 * 2**-24 * sizes.outer(sizes)).all()  # sums of 16 go on in double


@pytest.mark.parametrize("unit", [-1, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shares_are_those_of_a_plain_loop(dtype, unit):
    x = random_like(torch.empty(6, 5, 4, 3), dtype) * torch.tensor([1e-3, 1.0, 10.0]).to(dtype)
    x[:, 2] = -5.0
    beside, steps = cpu.step_aside(x, unit, 0.25, 1e-30)
    means = x.abs().mean([dim for dim in range(4) if dim != unit], keepdim=True)
    torch.testing.assert_close(steps, 0.25 * (x.abs() + means))
    torch.testing.assert_close(beside, x + steps)
    y, moved = torch.tanh(x), torch.tanh(beside)
    y[:, 2] = moved[:, 2] = -1.0
    y[0, 0, 0, 0] = math.nan
    slopes = (moved - y).abs() / steps
    channels = (slopes.movedim(unit, 0) if unit > 0 else slopes.flatten(1).mT).flatten(1).amax(1)
    steepest = channels[channels.isfinite()].max()
    dead, flat = cpu.shares(y, steps, moved, unit, 0.01)
    assert dead == pytest.approx((channels == 0).double().mean().item())
    assert flat == pytest.approx((slopes < 0.01 * steepest).double().mean().item())
    assert dead == pytest.approx(0.0 if unit == 2 else 0.2)
    assert flat > 0.2


def test_nothing_is_steep_where_all_slopes_are_0():
    y, steps = torch.ones(3, 4), torch.ones(3, 4)
    assert cpu.shares(y, steps, y.clone(), 1, 0.01) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["NCHW", "channels_last", "N C", "vector", "NCHW, small planes"])
def test_gradients_of_first_and_second_order(instruction_set, name):
    layout = LAYOUTS[name][:2]
    x = random_like(layout, torch.float64)
    x = (x + 0.05 * x.sign()).requires_grad_()  # off the kink, where the difference quotient is another
    channels = layout.shape[1] if layout.dim() > 1 else 1
    alpha = torch.linspace(0.25, 1.5, channels, dtype=torch.float64, requires_grad=True)
    beta = torch.linspace(2.0, 0.5, channels, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mpelu, (x, alpha, beta), fast_mode=True)
    assert torch.autograd.gradgradcheck(mpelu, (x, alpha, beta), fast_mode=True)


def as_reference(x, alpha, beta, grad):
    return reference.forward(x, alpha, beta), *reference.backward(grad, x, alpha, beta)


@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(()).expand(4, 6, 5, 5),
        torch.randn(4, 1, 5, 1, generator=torch.Generator().manual_seed(0)).expand(4, 6, 5, 5),
        torch.randn(5, 5, 6, 4, generator=torch.Generator().manual_seed(0)).permute(3, 2, 0, 1),
        torch.randn(400, generator=torch.Generator().manual_seed(0)).as_strided((4, 6, 5, 5), (60, 20, 4, 3)),
        torch.randn(4, 6, 5, 10, generator=torch.Generator().manual_seed(0))[..., ::2],
    ],
    ids=["one number", "expanded", "permuted", "overlapping", "sliced"],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradient_of_any_layout(grad, memory_format):
    x = random_like(torch.empty(4, 6, 5, 5, memory_format=memory_format), torch.float32)
    parameters = torch.linspace(0.25, 1.5, 6), torch.linspace(2.0, 0.5, 6)
    for ours, theirs in zip(run(x, *parameters, grad), as_reference(x, *parameters, grad), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, ::2],
        lambda x: x[1:, 1:-1],
        lambda x: x[:1].expand(7, -1, -1, -1),
        lambda x: x.transpose(0, 3)[::2],
        lambda x: x.as_strided((3, 8, 2, 2), (8, 1, 1, 1)),
    ],
    ids=["sliced", "cropped", "expanded", "transposed", "overlapping"],
)
def test_input_with_gaps_or_overlaps(view):
    base = random_like(torch.empty(4, 8, 6, 6), torch.float32).requires_grad_()
    x = view(base)
    parameters = [torch.linspace(low, 1.5, x.shape[1]).requires_grad_() for low in (0.25, 2.0)]
    grad = random_like(torch.empty(x.shape), torch.float32, seed=1)
    results = []
    for function in (mpelu, reference.Reference.apply):
        y = function(view(base), *parameters)
        results.append((y, *torch.autograd.grad(y, (base, *parameters), grad)))
    assert type(results[0][0].grad_fn).__name__ == "FusedBackward"
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("alpha_shape", "beta_shape"), [((6,), (6,)), ((), (6,)), ((6,), (1,)), ((1,), ())], ids=str)
def test_parameters_of_any_dtype_and_shape(dtype, parameter_dtype, alpha_shape, beta_shape):
    x, grad = random_like(torch.empty(9, 6), dtype), random_like(torch.empty(9, 6), dtype, seed=1)
    alpha = torch.rand(alpha_shape).add(0.5).to(parameter_dtype).requires_grad_()
    beta = torch.rand(beta_shape).add(0.5).to(parameter_dtype).requires_grad_()
    y = mpelu(x.requires_grad_(), alpha, beta)
    gradients = torch.autograd.grad(y, (x, alpha, beta), grad)
    wanted = as_reference(x, alpha, beta, grad)
    for ours, theirs in zip((y, *gradients), wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        epsilon = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=max(epsilon, 1e-5), atol=max(8 * epsilon, 1e-5))


def test_strided_parameters():
    parameters = torch.linspace(0.5, 2.0, 12)
    x = random_like(torch.empty(5, 6, 7), torch.float32)
    grad = random_like(x, torch.float32, seed=1)
    for ours, theirs in zip(
        run(x, parameters[::2], parameters[1::2], grad),
        as_reference(x, parameters[::2], parameters[1::2], grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_only_some_gradients_are_needed(needed):
    tensors = [torch.randn(4, 3), torch.rand(3), torch.rand(3)]
    leaves = [tensor.requires_grad_(need) for tensor, need in zip(tensors, needed, strict=True)]
    grad = torch.randn(4, 3)
    mpelu(*leaves).backward(grad)
    wanted = reference.backward(grad, *leaves)
    for leaf, need, gradient in zip(leaves, needed, wanted, strict=True):
        if need:
            torch.testing.assert_close(leaf.grad, gradient)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 3, 0), (0, 3, 4, 4)], ids=str)
def test_empty(shape):
    x = torch.empty(shape, requires_grad=True)
    channels = shape[1] if len(shape) > 1 else 1
    alpha, beta = torch.ones(channels, requires_grad=True), torch.ones(channels, requires_grad=True)
    mpelu(x, alpha, beta).sum().backward()
    assert x.grad.shape == shape
    assert alpha.grad.eq(0).all()
    assert beta.grad.eq(0).all()


def test_saved_tensors_may_come_back_in_another_layout():
    x = random_like(torch.empty(2, 6, 5, 5, memory_format=torch.channels_last), torch.float32).requires_grad_()
    alpha, beta = torch.linspace(0.25, 1.5, 6), torch.linspace(2.0, 0.5, 6)
    grad = random_like(x.detach(), torch.float32, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor.contiguous()):
        mpelu(x, alpha, beta).backward(grad)
    torch.testing.assert_close(x.grad, reference.backward(grad, x.detach(), alpha, beta)[0])


def test_checkpoint():
    x, alpha, beta = torch.randn(3, 4, requires_grad=True), torch.rand(4, requires_grad=True), torch.rand(4)
    checkpoint(mpelu, x, alpha, beta, use_reentrant=False).sum().backward()
    wanted = reference.backward(torch.ones(3, 4), x, alpha, beta)
    torch.testing.assert_close(x.grad, wanted[0])
    torch.testing.assert_close(alpha.grad, wanted[1])


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_environment_chooses_the_instruction_set(monkeypatch, name):
    used = []
    monkeypatch.setattr(_cpu, "use", used.append)
    monkeypatch.setenv("MPELU_ISA", name)
    cpu.compiled.__wrapped__()
    assert used == [name]
    assert cpu.instruction_set() == name


def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("MPELU_ISA", "mmx")
    with pytest.raises(UsageError, match="MPELU_ISA must be one of baseline"):
        cpu.compiled.__wrapped__()
    with pytest.raises(ValueError, match="'mmx'"):
        _cpu.use("mmx")


ONE, SIX = torch.ones(1), torch.ones(6)
READ = {
    "contiguous": (torch.empty(4, 6, 5), SIX, SIX),
    "channels_last": (torch.empty(2, 6, 3, 5, memory_format=torch.channels_last), SIX, SIX),
    "one position, channels_last": (torch.empty(2, 6, 1, 1, memory_format=torch.channels_last), SIX, SIX),
    "N C": (torch.empty(4, 6), SIX, SIX),
    "vector": (torch.empty(7), ONE, ONE),
    "a number": (torch.empty(()), torch.ones(()), ONE),
    "one channel": (torch.empty(4, 1, 5), ONE, torch.ones(())),
    "bfloat16": (torch.empty(4, 6, dtype=torch.bfloat16), SIX, SIX),
    "float16": (torch.empty(4, 6, dtype=torch.float16), SIX, SIX),
    "float64": (torch.empty(4, 6, dtype=torch.float64), SIX.double(), SIX.double()),
    "with an offset": (torch.empty(5, 6)[1:], SIX, torch.ones(7)[1:]),
}
NOT_READ = {
    "empty": (torch.empty(0, 6), SIX, SIX),
    "integers": (torch.zeros(4, 6, dtype=torch.int32), SIX, SIX),
    "float8": (torch.zeros(4, 6).to(torch.float8_e4m3fn), SIX, SIX),
    "complex": (torch.empty(4, 6, dtype=torch.complex64), SIX, SIX),
    "gaps": (torch.empty(4, 6, 5)[..., ::2], SIX, SIX),
    "gaps, channels_last": (torch.empty(2, 6, 3, 5, memory_format=torch.channels_last)[..., 1:], SIX, SIX),
    "reversed": (permuted(3, 6, 33, order=(2, 1, 0)), SIX, SIX),
    "expanded": (torch.empty(1, 6).expand(4, 6), SIX, SIX),
    "overlapping": (torch.empty(40).as_strided((4, 6, 5), (1, 1, 1)), SIX, SIX),
    "float64 parameters": (torch.empty(4, 6), SIX.double(), SIX.double()),
    "float32 parameters of float64": (torch.empty(4, 6, dtype=torch.float64), SIX, SIX),
    "bfloat16 parameters": (torch.empty(4, 6, dtype=torch.bfloat16), SIX.bfloat16(), SIX.bfloat16()),
    "parameters with gaps": (torch.empty(4, 6), torch.ones(12)[::2], SIX),
    "expanded parameters": (torch.empty(4, 6), SIX, ONE.expand(6)),
    "two dimensions of parameters": (torch.empty(4, 6), SIX.view(6, 1), SIX),
    "too many parameters": (torch.empty(4, 6), torch.ones(7), torch.ones(7)),
    "one parameter and many": (torch.empty(4, 6), ONE, SIX),
    "no channels": (torch.empty(6), SIX, SIX),
}


@pytest.mark.parametrize("tensors", READ.values(), ids=READ)
def test_reads_usual_tensors_as_they_are(tensors):
    assert cpu.compiled().reads(*tensors)
    assert all(ours is given for ours, given in zip(fused.readable(*tensors), tensors, strict=True))


@pytest.mark.parametrize("tensors", NOT_READ.values(), ids=NOT_READ)
def test_does_not_read_what_has_to_be_converted_first(tensors):
    assert not cpu.compiled().reads(*tensors)


def test_gradients_have_to_lie_in_memory_as_the_input_does():
    cpu.compiled()
    nchw, nhwc = torch.empty(2, 6, 3, 5), torch.empty(2, 6, 3, 5, memory_format=torch.channels_last)
    assert _cpu.alike(nchw, torch.empty_like(nchw))
    assert _cpu.alike(nhwc, torch.empty_like(nhwc))
    assert not _cpu.alike(nchw, nhwc)
    assert not _cpu.alike(nhwc, nchw)
    assert not _cpu.alike(nchw, nchw[:1, :1, :1, :1].expand_as(nchw))
    assert not _cpu.alike(nchw[..., ::2], nchw[..., ::2])
    for grad, x in ((nchw, nhwc), (nhwc, nchw), (nchw[:1, :1, :1, :1].expand_as(nchw), nhwc), (nchw, nchw[:, :, ::2])):
        ours, theirs = fused.alike(grad[:, :, : x.shape[2]], x)
        assert _cpu.alike(ours, theirs)


def test_the_compiled_module_refuses_what_is_no_tensor():
    cpu.compiled()
    for wrong in (None, 1.0, np.ones(6, np.float32), object()):
        assert not _cpu.reads(torch.empty(4, 6), wrong, SIX)
        assert not _cpu.alike(SIX, wrong)
        with pytest.raises(TypeError, match=r"wanted a tensor .* got"):
            _cpu.forward(torch.empty(4, 6), SIX, SIX, wrong, 1)
    with pytest.raises(TypeError, match="wanted 5 arguments, got 4"):
        _cpu.forward(torch.empty(4, 6), SIX, SIX, torch.empty(4, 6))
    with pytest.raises(TypeError, match="no kernels for this dtype"):
        _cpu.forward(torch.zeros(4, 6, dtype=torch.int32), SIX, SIX, torch.zeros(4, 6, dtype=torch.int32), 1)


def tensors_that_exchange(*numbers):
    """Return a type with such a table of functions as DLPack defines it; the caller keeps the table."""
    table = (ctypes.c_uint64 * 7)(*numbers)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    capsule = new(ctypes.addressof(table), b"dlpack_exchange_api", None)
    return type("Other", (), {"__dlpack_c_exchange_api__": capsule}), table


def test_tensors_are_read_by_a_known_version_of_dlpack_only(monkeypatch):
    for numbers in ((2 + (3 << 32), 0, 1, 1, 1, 1, 1), (1 + (3 << 32), 0, 1, 1, 1, 0, 1)):
        other, _table = tensors_that_exchange(*numbers)
        with pytest.raises(ImportError, match=rf"wanted DLPack 1 .* got DLPack {numbers[0] & 15}.3"):
            _cpu.read_tensors_of(other, other)
    assert _cpu.reads(*READ["contiguous"])  # as before
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    with pytest.warns(RuntimeWarning, match="without its compiled part"):
        assert cpu.compiled.__wrapped__() is None
