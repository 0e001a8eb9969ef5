import math
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mpelu import init
from mpelu.errors import UsageError
from mpelu.init import (
    DISTRIBUTIONS,
    draw,
    effective_fans,
    fan,
    fill_,
    fill_normal_,
    fresh_seed,
    taylor_gain,
    taylor_normal_,
    write_,
)
from mpelu.init.fill import factoring_once
from tests.cases import normal, over_activations


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_gain_of_the_limits(alpha):
    assert taylor_gain(alpha) == pytest.approx(nn.init.calculate_gain("leaky_relu", alpha), rel=1e-15)


WORKED = [  # the fan, and the std for (alpha, beta) = (0, any), (0.25, 1) and (1, 1), to the digits that are written
    ((8, 3, 7, 7), 147, (0.11664, 0.11316, 0.08248)),
    ((8, 64, 2, 2), 256, (0.08839, 0.08575, 0.06250)),
    ((8, 128, 2, 2), 512, (0.06250, 0.06063, 0.04419)),
    ((8, 256, 2, 2), 1024, (0.04419, 0.04287, 0.03125)),
    ((8, 16, 3, 3), 144, (0.11785, 0.11433, 0.08333)),
    ((8, 64, 3, 3), 576, (0.05893, 0.05717, 0.04167)),
    ((8, 64, 1, 1), 64, (0.17678, 0.17150, 0.12500)),
    ((8, 256, 1, 1), 256, (0.08839, 0.08575, 0.06250)),
]


@pytest.mark.parametrize(("shape", "fan_in", "stds"), WORKED, ids=str)
def test_worked_examples(shape, fan_in, stds):
    assert fan(torch.empty(shape)) == fan_in
    for (alpha, beta), wanted in zip([(0, 3.0), (0.25, 1.0), (1.0, 1.0)], stds, strict=True):
        assert taylor_gain(alpha * beta) / math.sqrt(fan_in) == pytest.approx(wanted, abs=5e-6)
        # the filler writes that std: every number it draws is proportional to it
        drawn = taylor_normal_(torch.empty(shape), alpha, beta, generator=generator(0))
        unit = fill_normal_(torch.empty(shape), 1.0, generator=generator(0))
        torch.testing.assert_close(drawn, unit * wanted, rtol=2e-4, atol=0)  # 5e-6 of 0.031


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_alpha_zero_is_msra(mode):
    ours = taylor_normal_(torch.empty(24, 6, 3, 3), 0.0, 1.0, mode, generator=generator(3))
    torchs = nn.init.kaiming_normal_(torch.empty(24, 6, 3, 3), mode=mode, nonlinearity="relu", generator=generator(3))
    torch.testing.assert_close(ours, torchs, rtol=4 * 1.2e-7, atol=0)  # the same draws, scaled in float32


def test_average_mode_with_slope_one_is_glorot():
    ours = taylor_normal_(torch.empty(24, 6, 3, 3), 1.0, 1.0, "average", generator=generator(3))
    torchs = nn.init.xavier_normal_(torch.empty(24, 6, 3, 3), generator=generator(3))
    torch.testing.assert_close(ours, torchs, rtol=4 * 1.2e-7, atol=0)


def test_the_slope_is_alpha_times_beta():
    one = taylor_normal_(torch.empty(24, 6, 3, 3), 0.5, 3.0, generator=generator(3))
    other = taylor_normal_(torch.empty(24, 6, 3, 3), 1.5, 1.0, generator=generator(3))
    unit = fill_normal_(torch.empty(24, 6, 3, 3), 1.0, generator=generator(3))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, unit * math.sqrt(2 / (54 * 3.25)), rtol=4 * 1.2e-7, atol=0)


def test_groups_count_in_fan_out():
    ours = taylor_normal_(torch.empty(12, 2, 3, 3), 0.0, mode="fan_out", groups=3, generator=generator(0))
    unit = fill_normal_(torch.empty(12, 2, 3, 3), 1.0, generator=generator(0))
    torch.testing.assert_close(ours, unit * math.sqrt(2 / 36), rtol=4 * 1.2e-7, atol=0)


def test_returns_and_fills_the_same_tensor_without_recording():
    weight = nn.Parameter(torch.zeros(4, 4))
    assert taylor_normal_(weight) is weight
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert (weight != 0).all()


def test_a_seed_means_the_same_weights_whatever_the_dtype_threads_and_earlier_draws():
    wanted = fill_normal_(torch.empty(40, 30), 0.1, generator=generator(5))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        got = fill_normal_(torch.empty(40, 30, dtype=dtype), 0.1, generator=generator(5))
        assert torch.equal(got, wanted.to(dtype))
    strided = torch.empty(30, 40).T
    assert torch.equal(fill_normal_(strided, 0.1, generator=generator(5)), wanted)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(fill_normal_(torch.empty(40, 30), 0.1, generator=generator(5)), wanted)
    finally:
        torch.set_num_threads(threads)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        state = torch.random.get_rng_state()
        assert torch.equal(fill_normal_(torch.empty(40, 30), 0.1, generator=generator(5)), wanted)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(fill_normal_(torch.empty(40, 30), 0.1), fill_after(123))
        assert not torch.equal(fill_normal_(torch.empty(40, 30), 0.1, generator=generator(6)), wanted)


def fill_after(seed: int) -> Tensor:
    """What the default generator draws after that seed."""
    return fill_normal_(torch.empty(40, 30), 0.1, generator=generator(seed))


def test_drawn_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        weight = fill_normal_(torch.empty(4, 4, device="cpu"), 0.1, generator=generator(5))
    assert torch.equal(weight, fill_normal_(torch.empty(4, 4), 0.1, generator=generator(5)))


def test_drawn_numbers_are_normal():
    drawn = fill_normal_(torch.empty(100_000), 0.5, generator=generator(0)).double()
    count = drawn.numel()
    assert abs(drawn.mean()) < 4 * 0.5 / math.sqrt(count)  # 4 standard errors, here and below
    assert abs(drawn.std() / 0.5 - 1) < 4 / math.sqrt(2 * count)
    assert abs((drawn.abs() < 0.5).double().mean() - 0.682689) < 4 * math.sqrt(0.2166 / count)


# Distributions.

over_distributions = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
ORTHOGONAL = ("orthogonal", "delta_orthogonal")


@over_distributions
def test_the_entries_have_the_root_mean_square_that_was_asked_for(distribution):
    drawn = draw((200, 100, 3, 3), 0.3, distribution=distribution, generator=generator(0)).double()
    # the mean square of n entries has a relative standard error of sqrt((kurtosis - 1) / n) <= sqrt(2 / n), its root of
    # half that; an orthogonal fill has the same mean square each time, up to float32
    tolerance = 1e-6 if distribution in ORTHOGONAL else 4 * math.sqrt(2 / drawn.numel()) / 2
    assert abs(drawn.square().mean().sqrt() / 0.3 - 1) < tolerance
    assert abs(drawn.mean()) < 4 * 0.3 / math.sqrt(drawn.numel())


def test_truncated_normal_ends_at_two_standard_deviations_of_what_was_truncated():
    drawn = draw((1000, 1000), 1.0, distribution="truncated_normal", generator=generator(1)).double()
    kept = torch.linspace(-2, 2, 400_001, dtype=torch.float64)
    density = torch.exp(-kept.square() / 2)
    scale = (density.sum() / (density * kept.square()).sum()).sqrt().item()  # 1 / 0.8796
    assert drawn.abs().max() <= 2 * scale * (1 + 1e-6)
    assert drawn.abs().max() > 1.99 * scale
    for end in (0.5, 1.0, 1.9):
        share = math.erf(end / math.sqrt(2)) / math.erf(math.sqrt(2))
        assert abs((drawn.abs() < end * scale).double().mean() - share) < 4 * math.sqrt(0.25 / drawn.numel())


def test_uniform_is_flat():
    drawn = draw((1000, 100), 2.0, distribution="uniform", generator=generator(1)) / (2 * math.sqrt(3))
    assert drawn.abs().max() <= 1
    counts = torch.histc(drawn, 10, -1, 1)
    assert (counts - 10_000).abs().max() < 4 * math.sqrt(9000)


def assert_orthogonal(matrix: Tensor, scale: float) -> None:
    """Check that the fewer of rows and columns are orthogonal to each other and have that length."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # float32 entries: each product is off by an epsilon of itself
    wanted = scale**2 * torch.eye(len(small), dtype=torch.float64)
    torch.testing.assert_close(small.double() @ small.double().T, wanted, rtol=0, atol=1e-6 * scale**2)


MATRICES = {
    "tall": ((40, 12), 1, ()),
    "wide": ((12, 40), 1, ()),
    "square": ((30, 30), 1, ()),
    "kernel": ((16, 8, 3, 2), 1, ()),
    "grouped kernel": ((24, 5, 3), 4, ()),
    "depthwise": ((12, 1, 3, 3), 12, ()),
    "gates": ((32, 5), 1, init.blocks("lstm", (32, 5), role="weight_ih_l0")),
    "unequal blocks": ((20, 7), 1, ((0, 10), (10, 13), (13, 20))),
}


@pytest.mark.parametrize("name", MATRICES)
def test_each_matrix_is_orthogonal(name):
    shape, groups, rows = MATRICES[name]
    drawn = draw(shape, 0.3, distribution="orthogonal", groups=groups, blocks=rows, generator=generator(2))
    for first, behind in rows or ((0, shape[0]),):
        for matrix in drawn[first:behind].flatten(1).chunk(groups):
            assert_orthogonal(matrix, 0.3 * math.sqrt(max(matrix.shape)))


@pytest.mark.parametrize("name", MATRICES)
def test_a_delta_kernel_is_a_matrix_at_the_middle_and_zero_elsewhere(name):
    shape, groups, rows = MATRICES[name]
    drawn = draw(shape, 0.3, distribution="delta_orthogonal", groups=groups, blocks=rows, generator=generator(2))
    middle = (..., *((side - 1) // 2 for side in shape[2:]))
    for first, behind in rows or ((0, shape[0]),):
        for matrix in drawn[first:behind][middle].chunk(groups):
            assert_orthogonal(matrix, 0.3 * math.sqrt(max(matrix.shape) * math.prod(shape[2:])))
    drawn[middle] = 0
    assert not drawn.any()


def test_orthogonal_matrices_are_uniform():
    """The mean of a Haar matrix is 0 and its trace has mean square 1; without the sign of R neither is so."""
    drawn = torch.stack(
        [draw((4, 4), 0.5, distribution="orthogonal", generator=generator(seed)) for seed in range(4000)]
    )
    standard_error = 0.5 / math.sqrt(len(drawn))
    assert drawn.mean(0).abs().max() < 4 * standard_error
    traces = drawn.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(traces.square().mean() - 1) < 4 * math.sqrt(2 / len(drawn))
    # the sign of the determinant is a fair coin
    assert abs(torch.linalg.det(drawn).sign().mean()) < 4 / math.sqrt(len(drawn))


def assert_same_lengths_and_angles(z: Tensor, x: Tensor) -> None:
    """Check that examples keep their products with each other, to the 1e-5 of sums of 400 float32 products."""
    z, x = z.detach().flatten(1).double(), x.flatten(1).double()
    torch.testing.assert_close(z @ z.T, x @ x.T, rtol=0, atol=1e-5 * x.square().sum(1).max().item())


ISOMETRIES = {
    "1d": (partial(nn.Conv1d, 6, 10, 3, padding=1, padding_mode="circular"), (4, 6, 9)),
    "2d": (partial(nn.Conv2d, 6, 10, 3, padding=1, padding_mode="circular"), (4, 6, 5, 7)),
    "2d grouped": (partial(nn.Conv2d, 6, 12, 5, padding=2, padding_mode="circular", groups=3), (4, 6, 6, 6)),
    "2d even, zeros": (partial(nn.Conv2d, 6, 10, (4, 3), padding="same"), (4, 6, 5, 7)),
    "3d": (partial(nn.Conv3d, 3, 5, 3, padding=1, padding_mode="circular"), (4, 3, 4, 4, 4)),
    "transposed": (partial(nn.ConvTranspose2d, 6, 10, 3, padding=1), (4, 6, 5, 7)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", ISOMETRIES)
def test_a_delta_orthogonal_convolution_keeps_lengths_and_angles(name):
    build, shape = ISOMETRIES[name]
    layer = build(bias=False)
    # as many outputs as inputs or more: all that is left to be 1 is the scale sqrt(out / groups * taps) std
    std = 1 / math.sqrt(layer.out_channels / layer.groups * math.prod(layer.kernel_size))
    fill_(layer.weight, std, distribution="delta_orthogonal", groups=layer.groups, generator=generator(0))
    x = normal(*shape, dtype=torch.float32)
    z = layer(x)
    assert z.shape[2:] == x.shape[2:]
    assert_same_lengths_and_angles(z, x)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (partial(nn.Linear, 12, 20), (4, 12)),
        (partial(nn.Conv2d, 3, 20, 2, stride=2), (4, 3, 6, 8)),  # 12 -> 20
        (partial(nn.ConvTranspose2d, 12, 5, 2, stride=2), (4, 12, 3, 4)),  # 12 -> 20
    ],
    ids=["Linear", "patches", "transposed patches"],
)
def test_an_orthogonal_layer_whose_windows_do_not_overlap_keeps_lengths_and_angles(build, shape):
    layer = build(bias=False)
    fill_(layer.weight, 1 / math.sqrt(20), distribution="orthogonal", generator=generator(0))
    x = normal(*shape, dtype=torch.float32)
    assert_same_lengths_and_angles(layer(x), x)


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 40), (40, 12)])
def test_orthogonal_weights_obey_the_same_fans_for_inputs_that_are_not_independent(inputs, outputs):
    """Exactly in the direction that gets wider, on average over weights in the other; here all inputs are equal."""
    layer = nn.Linear(inputs, outputs, bias=False)
    forward, backward = [], []
    for seed in range(200):
        fill_(layer.weight, 0.5, distribution="orthogonal", generator=generator(seed))
        x = torch.full((1, inputs), 3.0, requires_grad=True)
        z = layer(x)
        (gradient,) = torch.autograd.grad(z.sum(), x)
        forward.append(z.square().mean().item() / (inputs * 0.5**2 * 9))
        backward.append(gradient.square().mean().item() / (outputs * 0.5**2))
    exact, random = (forward, backward) if outputs > inputs else (backward, forward)
    assert max(abs(value - 1) for value in exact) < 1e-5
    mean, standard_error = mean_and_standard_error(random)
    assert 0.001 < standard_error < 0.05
    assert abs(mean - 1) < 4 * standard_error


@pytest.mark.parametrize("stride", [1, 2])
def test_a_delta_kernel_has_the_fans_of_its_middle_tap(stride):
    """Zero padding never meets the middle tap here, so that a border costs nothing; entries of +-1 leave no chance."""
    for channels in ((4, 6), (6, 4)):
        layer = nn.Conv2d(*channels, (3, 4), stride, padding=(1, 1), bias=False)
        fill_(layer.weight, 0.5, distribution="delta_orthogonal", generator=generator(0))
        x = normal(2, channels[0], 7, 8, dtype=torch.float32).sign().requires_grad_()
        z = layer(x)
        wanted = effective_fans(
            "conv2d",
            layer.weight.shape,
            options={"stride": stride, "padding": 1},
            input_shape=x.shape,
            output_shape=z.shape,
            taps="centre",
        )
        (gradient,) = torch.autograd.grad(z, x, normal(*z.shape, dtype=torch.float32).sign())
        assert wanted.fan_in == channels[0] * 12
        if channels[1] > channels[0]:
            assert z.square().mean().item() == pytest.approx(0.25 * wanted.fan_in, rel=1e-5)
        else:
            assert gradient.square().mean().item() == pytest.approx(0.25 * wanted.fan_out, rel=1e-5)


# The same bits.


@over_distributions
def test_the_bits_do_not_depend_on_threads_dtype_layout_or_earlier_draws(distribution):
    shape = (320, 300, 1, 3)
    wanted = draw(shape, 0.1, distribution=distribution, generator=generator(5))
    threads = torch.get_num_threads()
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            torch.rand(3)
            assert torch.equal(draw(shape, 0.1, distribution=distribution, generator=generator(5)), wanted)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for dtype in (torch.float64, torch.bfloat16):
        weight = torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last)
        assert torch.equal(fill_(weight, 0.1, distribution=distribution, generator=generator(5)), wanted.to(dtype))
    with torch.device("meta"):  # as in the construction of a large model
        drawn = draw(shape, 0.1, distribution=distribution, generator=generator(5))
    assert torch.equal(drawn, wanted)
    assert not torch.equal(draw(shape, 0.1, distribution=distribution, generator=generator(6)), wanted)


@pytest.mark.parametrize("distribution", ORTHOGONAL)
def test_matrices_are_factorized_by_one_thread(distribution, monkeypatch):
    """Their last bits in float64 depend on it; a float32 that shows them is too rare to wait for."""
    seen, factorize = [], torch.linalg.qr

    def counted(numbers: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(torch.get_num_threads())
        return factorize(numbers)

    monkeypatch.setattr(torch.linalg, "qr", counted)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        draw((8, 6, 3), 0.1, distribution=distribution)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1]


@pytest.mark.parametrize("distribution", ORTHOGONAL)
def test_the_same_matrices_are_factorized_once(distribution, monkeypatch):
    """Two blocks, so that the second one is drawn from where the first has left the stream."""
    count, factorize = 0, torch.linalg.qr

    def counted(numbers: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        return factorize(numbers)

    def twice() -> list[Tensor]:
        streams = generator(5), generator(5), generator(6)
        blocks = ((0, 4), (4, 6))
        drawn = [
            draw((6, 4, 3), 0.1 + i, distribution=distribution, blocks=blocks, generator=streams[i]) for i in range(3)
        ]
        return [*drawn, *(torch.rand(2, generator=stream) for stream in streams)]

    wanted = twice()
    monkeypatch.setattr(torch.linalg, "qr", counted)
    with factoring_once():
        found = twice()
        with factoring_once():
            twice()
    assert count == 4  # two blocks from two streams
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    draw((6, 4, 3), 0.1, distribution=distribution, generator=generator(5))
    assert count == 5  # nothing is kept behind it


def test_what_is_too_large_is_drawn_again(monkeypatch):
    monkeypatch.setattr("mpelu.init.fill.KEPT_NUMBERS", 20)
    with factoring_once():
        first, second = (draw((6, 4), 0.1, distribution="orthogonal", generator=generator(5)) for _ in range(2))
    assert torch.equal(first, second)


@over_distributions
def test_without_a_generator_the_default_one_decides(distribution):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        first = draw((6, 4), 0.1, distribution=distribution)
        second = draw((6, 4), 0.1, distribution=distribution)
        torch.manual_seed(7)
        assert torch.equal(draw((6, 4), 0.1, distribution=distribution), first)
    assert not torch.equal(first, second)


def test_each_parameter_has_a_stream_of_its_own():
    streams = [(0, "a.weight"), (0, "b.weight"), (1, "a.weight"), (-1, "a.weight"), (2**100, "a.weight"), (0, "")]
    drawn = [torch.rand(8, generator=init.generator(*stream)) for stream in streams]
    again = [torch.rand(8, generator=init.generator(*stream)) for stream in reversed(streams)]
    for index, numbers in enumerate(drawn):
        assert torch.equal(numbers, again[-1 - index])
        assert not any(torch.equal(numbers, other) for other in drawn[:index])


def test_names_with_the_same_32_bits_have_other_streams():
    first, second = (init.generator(0, name) for name in ("layers.191.weight", "layers.71636.weight"))
    assert first.initial_seed() == second.initial_seed()
    assert not torch.equal(torch.rand(8, generator=first), torch.rand(8, generator=second))


def test_a_fresh_seed_comes_from_the_default_generator():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        first, second = fresh_seed(), fresh_seed()
        torch.manual_seed(7)
        assert fresh_seed() == first
    assert first != second
    assert 0 <= first < 2**63


# Writing.


def test_values_are_cast_and_written_in_place():
    parameter = nn.Parameter(torch.zeros(2, 3, dtype=torch.float16))
    memory, version = parameter.data_ptr(), parameter._version
    assert write_(parameter, torch.full((2, 3), 1 / 3)) is parameter
    assert torch.equal(parameter, torch.full((2, 3), 1 / 3).half())
    assert (parameter.data_ptr(), parameter.requires_grad, parameter.grad_fn) == (memory, True, None)
    assert parameter._version > version  # autograd sees the change


SHARDED = {"first.weight": (7, 6), "first.bias": (7,), "second.weight": (1, 7, 3), "second.bias": (1,)}
"""Sizes that two processes cannot halve: the second has less, or nothing."""


def small_model() -> nn.Sequential:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(6, 7))
    model.add_module("second", nn.Conv1d(7, 1, 3))
    return model


def fill_all(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        distribution = "orthogonal" if parameter.dim() > 1 else "truncated_normal"
        fill_(parameter, 0.1, distribution=distribution, generator=init.generator(3, name))


def fill_shards(rank: int, folder: str) -> list[dict[str, Tensor]]:
    """Fill sharded models as one of two processes, and return them gathered; run in a process of its own."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    torch.set_num_threads(1 + rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    one, two = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
    layouts = [
        {"mesh": one},
        {"mesh": one, "shard_placement_fn": lambda parameter: Shard(1 if len(parameter.shape) == 2 else 0)},
        {"mesh": two},
    ]
    gathered = []
    for layout in layouts:
        with torch.device("meta"):
            model = small_model()
        fully_shard(model, **layout)
        with pytest.raises(UsageError, match=r"shape \(7, 6\) on the meta device .* model\.to_empty\(device=\.\.\.\)"):
            fill_all(model)
        model.to_empty(device="cpu")
        # the second begins when the first is done: a fill that waits for the other process runs into the timeout
        if rank == 1:
            dist.barrier()
        fill_all(model)
        if rank == 0:
            dist.barrier()
        gathered.append({name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()})
        assert (model.first.weight.to_local().shape == (7, 6)) == (layout["mesh"] is two)
    dist.destroy_process_group()
    return gathered


@pytest.mark.slow
def test_shards_hold_the_bits_of_the_whole(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        processes = [executor.submit(fill_shards, rank, str(tmp_path)) for rank in (0, 1)]
        gathered = [model for process in processes for model in process.result()]
    assert len(gathered) == 6
    whole = small_model()
    fill_all(whole)
    assert {name: tuple(parameter.shape) for name, parameter in whole.named_parameters()} == SHARDED
    for model in gathered:
        for name, parameter in whole.named_parameters():
            assert torch.equal(model[name], parameter), name


def test_plain_use_does_not_import_what_shards_need():
    code = (
        "import sys, torch, mpelu.init\n"
        "mpelu.init.fill_(torch.empty(4, 3), 0.1, distribution='orthogonal')\n"
        "assert 'torch.distributed.tensor' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ERRORS = [
    (lambda: draw((4, 3), -1.0), "std must be a number >= 0, got -1.0"),
    (lambda: draw((4, 3), math.nan), "std must be a number >= 0, got nan"),
    (
        lambda: draw((4, 3), 1.0, distribution="gaussian"),
        "distribution must be one of normal, truncated_normal, uniform, orthogonal, delta_orthogonal, got 'gaussian'",
    ),
    (lambda: draw((4,), 1.0, distribution="orthogonal"), r"2 or more dimensions, got shape \(4,\)"),
    (lambda: draw((4, 3), 1.0, distribution="orthogonal", groups=3), "groups must divide the 4 rows .*, got 3"),
    (
        lambda: draw((4, 3), 1.0, distribution="orthogonal", blocks=((0, 2), (3, 4))),
        r"must follow each other from row 0 to row 4, got \(\(0, 2\), \(3, 4\)\)",
    ),
    (lambda: draw((4, 3), 1.0, distribution="orthogonal", blocks=((0, 3),)), "from row 0 to row 4"),
    (lambda: fill_(torch.empty(4, 3, device="meta"), 1.0), r"\(4, 3\) on the meta device has no memory .*to_empty"),
    (lambda: fill_normal_(torch.empty(4, 3, device="meta"), 1.0), "on the meta device"),
    (lambda: write_(torch.empty(4, 3, device="meta"), torch.empty(4, 3)), "on the meta device"),
    (lambda: write_(torch.empty(4, 3), torch.empty(12)), r"shape \(12,\) do not fit a parameter of shape \(4, 3\)"),
    (lambda: taylor_normal_(torch.empty(4, 3), mode="fan_avg"), "mode must be one of fan_in, fan_out, average"),
    (lambda: taylor_normal_(torch.empty(4)), r"2 or more dimensions to have fans, got shape \(4,\)"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_errors(call, message):
    with pytest.raises(UsageError, match=message):
        call()


# Eq. 22 through an activation and a layer.


def moments(formula, variance: float = 1.0) -> tuple[float, float]:
    """Return E[f(y)^2] and E[f'(y)^2] for y ~ N(0, variance), by the midpoint rule, which never meets the kink at 0."""
    width = 1e-3
    y = (torch.arange(-10_000, 10_000, dtype=torch.float64) + 0.5) * width  # +-10 standard deviations
    density = torch.exp(-(y**2) / 2) / math.sqrt(2 * math.pi) * width
    y = (y * math.sqrt(variance)).requires_grad_()
    value = formula(y)
    (derivative,) = torch.autograd.grad(value.sum(), y)
    return (value.detach() ** 2 * density).sum().item(), (derivative**2 * density).sum().item()


def mean_and_standard_error(values: list[float]) -> tuple[float, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.mean().item(), (tensor.std() / math.sqrt(len(values))).item()


REPEATS = 40
SEEDS = range(REPEATS)
# a circle instead of a border: every output has all its inputs and every input reaches all its outputs
CONNECTED = {
    "Linear": (lambda: nn.Linear(24, 72, bias=False).double(), (64, 24)),
    "Conv2d": (
        lambda: nn.Conv2d(6, 18, 3, padding=1, padding_mode="circular", bias=False).double(),
        (4, 6, 6, 6),
    ),
    "grouped": (
        lambda: nn.Conv2d(12, 36, 3, padding=1, padding_mode="circular", groups=2, bias=False).double(),
        (4, 12, 6, 6),
    ),
}


def fill(layer: nn.Module, slope: float, mode: str, seed: int) -> None:
    taylor_normal_(layer.weight, slope, 1.0, mode, groups=getattr(layer, "groups", 1), generator=generator(seed))


@pytest.mark.parametrize("layer_name", CONNECTED)
@over_activations
def test_forward_signal_through_activation_and_layer(case, layer_name):
    """Eq. 22 with fan_in multiplies the second moment by 2 E[f^2] / (1 + slope^2), which is 1 for straight lines."""
    build, shape = CONNECTED[layer_name]
    activation, layer = case.build(shape[1]).double(), build()
    measured = []
    with torch.no_grad():
        for seed in SEEDS:
            fill(layer, case.slope, "fan_in", seed)
            measured.append(layer(activation(normal(*shape, seed=1000 + seed))).square().mean().item())
    wanted = 2 * moments(case.formula)[0] / (1 + case.slope**2)
    if case.linear:
        assert wanted == pytest.approx(1.0, rel=1e-6)
    mean, standard_error = mean_and_standard_error(measured)
    assert standard_error < 0.05  # sharp enough: swapped fans would be wrong by a factor of 3
    assert abs(mean - wanted) < 4 * standard_error


@pytest.mark.parametrize("layer_name", CONNECTED)
@over_activations
def test_gradient_through_layer_and_activation(case, layer_name):
    """Eq. 22 with fan_out multiplies the gradient by 2 E[f'^2] / (1 + slope^2), which is 1 for straight lines."""
    build, shape = CONNECTED[layer_name]
    activation, layer = case.build(shape[1]).double(), build()
    measured = []
    for seed in SEEDS:
        fill(layer, case.slope, "fan_out", seed)
        y = normal(*shape, seed=1000 + seed).requires_grad_()
        output = layer(activation(y))
        (gradient,) = torch.autograd.grad(output, y, normal(*output.shape, seed=2000 + seed))
        measured.append(gradient.square().mean().item())
    wanted = 2 * moments(case.formula)[1] / (1 + case.slope**2)
    if case.linear:
        assert wanted == pytest.approx(1.0, rel=1e-6)
    mean, standard_error = mean_and_standard_error(measured)
    assert standard_error < 0.05
    assert abs(mean - wanted) < 4 * standard_error
