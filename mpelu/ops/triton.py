"""MPELU on CUDA devices: one pass over memory forward and one backward, without atomics.

Channel sums are added in an order that depends on the shape of x and on nothing else, so that results repeat bit by
bit. float64 has no kernels here: the reference computes it.

All arithmetic asks for the fused multiply-adds that it wants, and is compiled without others.
"""

from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mpelu.ops.fused import Gradients, alike, channel_stride
from mpelu.ops.plain import is_plain

_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))

_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}  # Triton 3.10 changes the default of the latter
_FORWARD_BYTES, _BACKWARD_BYTES = 8192, 4096
"""What a program reads of x at a time: 4 and 2 loads of 16 bytes for each of its 128 threads. Not measured on a GPU."""
_NARROWEST_PLANES, _NARROWEST_ROWS = 64, 128
"""The columns of the narrowest tile where a matrix has as many: 128 bytes, a cache line, of half types where a plane is
a row. Elsewhere as many as there are threads, so that each prepares the parameters of one column: in planes of 7x7, the
forward pass then has 27 instructions for an element of a half type, and with 64 columns 31.
"""
_CHAIN = 8
"""Terms that a lane adds in float32 before the sum goes on in float64. Rounding costs a sum of 8 terms at most
4 * 2^-24 of itself, if all are equal. float64 is slow on many devices: this way it takes one addition for 8 elements.
"""
_ENOUGH_PROGRAMS = 1024
"""Chains are shorter where they leave fewer programs: 8 for each multiprocessor of a large device. Not measured on a
GPU."""
_PARTIAL_SUMS = 1024
"""What a program of the second stage reads at a time: 8 for each of its 128 threads. Not measured on a GPU."""
_MANY_SAMPLES = 16
"""From so many on, the backward pass reads across planes as the forward pass does (see :func:`_plan`). It then writes
and reads two sums of 8 bytes for each place in the planes of a sample: a third more traffic with 16 samples of a half
type. With fewer it reads plane by plane, an element at a time, in 57 instructions or more. Not measured on a GPU.
"""

_PROPAGATE = tl.constexpr(tl.PropagateNan.ALL)
_LARGEST = tl.constexpr((2 - 2**-23) * 2.0**127)  # anything above is a float64 to Triton 3.7
_ROUNDER = tl.constexpr(1.5 * 2**23)  # t + rounder - rounder is t rounded to an integer
_LOG2_E, _LOG2_E_TAIL = tl.constexpr(1.44269502), tl.constexpr(1.92596303e-08)
_LN2 = tl.constexpr(0.693147182)
_LN2_HEAD, _LN2_TAIL = tl.constexpr(0.693145752), tl.constexpr(1.42860677e-06)  # n * ln2_head is exact


class _Plan(NamedTuple):
    """How a tensor is cut: its memory is a number of matrices, with a pair of parameters for every row or column."""

    parameter_blocks: int
    tiles: int
    """How many tiles have the same block of parameters."""
    chain: int
    """How many of these a program of the backward pass adds."""
    partial_sums: tuple[int, int]
    """How many partial sums the chains give to each channel, and how many places in a plane have one of their own."""
    cut: tuple[int, ...]
    """What both kernels take: rows, column_units, row_blocks, column_blocks, BY_ROW, ROWS, COLUMNS, UNIT and SPAN.

    Columns are counted in units, a constant of the compilation: that is how the compiler learns which elements it can
    load together. Where the parameters go by columns, so many in a span have the same.
    """


@lru_cache(maxsize=4096)
def _plan(size: int, channels: int, stride: int, capacity: int, many_samples: int = 1) -> _Plan:
    """Cut a dense tensor, where ``stride`` elements in a row have the same parameters, into tiles of that capacity.

    Planes whose size accesses of 16 bytes do not fit, such as 7x7, are not cut one by one: a sample is one row of a
    matrix, whose columns have the parameters of the plane that they lie in.
    """
    samples = size // (channels * stride)
    fits_better = gcd(channels * stride, 16) > gcd(stride, 16) and channels * stride < 2**31
    by_row = channels == 1 or (stride > 1 and not (fits_better and samples >= many_samples))
    rows, columns = (channels, stride) if by_row else (samples, channels * stride)
    matrices = size // (rows * columns)
    height, width = _tile(rows, columns, capacity, by_row=by_row)
    row_blocks, column_blocks = triton.cdiv(rows, height), triton.cdiv(columns, width)
    parameter_blocks, tiles = (row_blocks, matrices * column_blocks) if by_row else (column_blocks, row_blocks)
    chain = _CHAIN
    while chain > 1 and parameter_blocks * triton.cdiv(tiles, chain) < _ENOUGH_PROGRAMS:
        chain //= 2
    span = 1 if by_row else stride
    unit = gcd(columns, 16)
    cut = (rows, columns // unit, row_blocks, column_blocks, by_row, height, width, unit, span)
    return _Plan(parameter_blocks, tiles, chain, (triton.cdiv(tiles, chain), span), cut)


def _tile(rows: int, columns: int, capacity: int, *, by_row: bool) -> tuple[int, int]:
    """Return rows and columns of the tiles of a matrix: long where the parameters are the same, with little left over.

    Of 56 * 56 columns, 49 tiles of 64 have nothing left over, and 4 tiles of 1024 a quarter.
    """
    widths = [min(_NARROWEST_PLANES if by_row else _NARROWEST_ROWS, triton.next_power_of_2(columns))]
    while widths[-1] < min(capacity, columns):
        widths.append(2 * widths[-1])
    tiles = [(min(capacity // width, triton.next_power_of_2(rows)), width) for width in widths]
    counts = [triton.cdiv(rows, height) * triton.cdiv(columns, width) for height, width in tiles]
    good = [tile for tile, count in zip(tiles, counts, strict=True) if 16 * count <= 17 * min(counts)]
    return good[-1] if by_row else good[0]


def supports(x: Tensor) -> bool:
    """Return whether there are kernels for a plain tensor like this one."""
    return x.dtype in _DTYPES and x.numel() > 0


def forward(x: Tensor, alpha: Tensor, beta: Tensor, *, inplace: bool = False) -> Tensor:
    """Return y for tensors as :class:`mpelu.ops.fused.Backend` describes them."""
    channels = alpha.numel()
    plan = _plan(x.numel(), channels, channel_stride(x, channels), _FORWARD_BYTES // x.element_size())
    y = x if inplace else torch.empty_like(x)  # each element is read before it is written
    with torch.cuda.device_of(x):
        _forward[(plan.parameter_blocks * plan.tiles,)](x, alpha, beta, y, *plan.cut, **_OPTIONS)
    return y


def backward(
    grad: Tensor, saved: Tensor, alpha: Tensor, beta: Tensor, *, from_output: bool = False
) -> Gradients | None:
    """Return the gradients for x, alpha and beta from x or y, None if grad or what was saved is not plain."""
    if not is_plain(grad, saved):
        return None
    grad, saved = alike(grad, saved)
    channels, capacity = alpha.numel(), _BACKWARD_BYTES // saved.element_size()
    plan = _plan(saved.numel(), channels, channel_stride(saved, channels), capacity, _MANY_SAMPLES)
    splits, span = plan.partial_sums
    grad_x, grad_alpha, grad_beta = torch.empty_like(saved), torch.empty_like(alpha), torch.empty_like(beta)
    partial_sums = torch.empty((2, splits, channels, span), dtype=torch.float64, device=saved.device)
    block = _second_stage(channels, span)
    with torch.cuda.device_of(saved):
        _backward[(plan.parameter_blocks * splits,)](
            grad, saved, alpha, beta, grad_x, partial_sums, splits, plan.tiles, plan.chain, *plan.cut, from_output,
            **_OPTIONS,
        )  # fmt: skip
        _add[(triton.cdiv(channels, block[1]),)](
            partial_sums, alpha, beta, grad_alpha, grad_beta, splits, channels, span, from_output, *block, **_OPTIONS
        )
    return grad_x, grad_alpha, grad_beta


def _second_stage(channels: int, span: int) -> tuple[int, int, int]:
    """Return how many splits, channels and places of a span a program of the second stage reads at a time."""
    if span > 1:
        width = min(_PARTIAL_SUMS, triton.next_power_of_2(span))
        return _PARTIAL_SUMS // width, 1, width
    width = min(16, triton.next_power_of_2(channels))  # 16 numbers in a row are a cache line
    return _PARTIAL_SUMS // width, width, 1


@triton.jit
def _forward(
    x_ptr,
    alpha_ptr,
    beta_ptr,
    y_ptr,
    rows,
    column_units,
    row_blocks,
    column_blocks,
    BY_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    SPAN: tl.constexpr,
):
    columns = tl.cast(column_units, tl.int64) * UNIT
    program = tl.program_id(0)
    block = program // column_blocks
    matrix = (block // row_blocks).to(tl.int64)
    row = (block % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (program % column_blocks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    alpha, beta, floor = _parameters(alpha_ptr, beta_ptr, row, rows, column, columns, BY_ROW, SPAN)

    offsets = (matrix * rows + row)[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    stored = tl.load(x_ptr + offsets, inside, 0.0)
    x = stored.to(tl.float32)
    _, expm1 = _exponential(tl.maximum(x, floor, _PROPAGATE), beta, stored.dtype)
    tl.store(y_ptr + offsets, tl.where(x > 0, x, alpha * expm1).to(stored.dtype), inside)


@triton.jit
def _backward(
    grad_ptr,
    saved_ptr,
    alpha_ptr,
    beta_ptr,
    grad_x_ptr,
    partial_ptr,
    splits,
    tiles,
    chain,
    rows,
    column_units,
    row_blocks,
    column_blocks,
    BY_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    SPAN: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
):
    """Compute the gradient for x in a chain of tiles with the same parameters, and one partial sum for each of those.

    What is saved is x, or y. The second stage multiplies the sum of grad * x * exp(beta x) by alpha; given y, it is the
    sum of grad * (beta x) * exp(beta x), and the second stage also divides by beta.
    """
    columns = tl.cast(column_units, tl.int64) * UNIT
    program = tl.program_id(0)
    parameter_blocks = row_blocks if BY_ROW else column_blocks
    split = program // parameter_blocks
    first = split * chain
    if BY_ROW:
        matrix = (first // column_blocks).to(tl.int64)
        row = (program % parameter_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        start = (first % column_blocks).to(tl.int64) * COLUMNS
    else:
        matrix = tl.zeros((), tl.int64)
        row = first.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        start = (program % parameter_blocks).to(tl.int64) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    alpha, beta, floor = _parameters(alpha_ptr, beta_ptr, row, rows, column, columns, BY_ROW, SPAN)
    slope = alpha * beta
    slope_error = tl.fma(alpha, beta, -slope)

    sum_alpha = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_beta = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(first, tl.minimum(first + chain, tiles)):
        column = start + tl.arange(0, COLUMNS)
        offsets = (matrix * rows + row)[:, None] * columns + column[None, :]
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        stored = tl.load(saved_ptr + offsets, inside, 0.0)
        saved = stored.to(tl.float32)
        grad = tl.load(grad_ptr + offsets, inside, 0.0).to(tl.float32)

        positive = saved > 0
        negative = tl.minimum(saved, 0.0, _PROPAGATE)
        if FROM_OUTPUT:
            factor, exp, expm1 = _inverted(negative, alpha)
        else:
            factor = tl.maximum(negative, floor, _PROPAGATE)
            exp, expm1 = _exponential(factor, beta, stored.dtype)
        grad_negative = tl.where(positive, 0.0, grad)  # infinity times 0 would be NaN
        sum_alpha = tl.fma(grad_negative, expm1, sum_alpha)
        sum_beta = tl.fma(grad_negative * exp, factor, sum_beta)
        weight = exp * slope
        if stored.dtype == tl.float32:  # without the rounding of alpha * beta: 2.3 ulp instead of 3.1
            weight = tl.fma(exp, slope, tl.minimum(exp, _LARGEST) * slope_error)
        grad_x = tl.where(positive, grad, grad * weight)
        tl.store(grad_x_ptr + offsets, grad_x.to(stored.dtype), inside)

        if BY_ROW:  # the tiles go on from the last column to the next matrix
            start += COLUMNS
            wraps = start >= columns
            matrix = tl.where(wraps, matrix + 1, matrix)
            start = tl.where(wraps, 0, start)
        else:
            row += ROWS

    if BY_ROW:
        partial_offsets = split.to(tl.int64) * rows + row
        written, parameters = row < rows, rows
    else:
        partial_offsets = split.to(tl.int64) * columns + column
        written, parameters = column < columns, columns
    axis: tl.constexpr = 1 if BY_ROW else 0
    tl.store(partial_ptr + partial_offsets, tl.sum(sum_alpha.to(tl.float64), axis), written)
    partial_offsets += tl.cast(splits, tl.int64) * parameters
    tl.store(partial_ptr + partial_offsets, tl.sum(sum_beta.to(tl.float64), axis), written)


@triton.jit
def _add(
    partial_ptr,
    alpha_ptr,
    beta_ptr,
    grad_alpha_ptr,
    grad_beta_ptr,
    splits,
    channels,
    span,
    FROM_OUTPUT: tl.constexpr,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Add the partial sums of a block of channels."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    sum_alpha = tl.zeros((SPLITS, CHANNELS, SPAN), tl.float64)
    sum_beta = tl.zeros((SPLITS, CHANNELS, SPAN), tl.float64)
    for first_split in range(0, splits, SPLITS):
        split = first_split + tl.arange(0, SPLITS)
        rows = split.to(tl.int64)[:, None] * channels + channel[None, :]
        inside_rows = (split < splits)[:, None] & (channel < channels)[None, :]
        for first in range(0, span, SPAN):
            place = first + tl.arange(0, SPAN)
            offsets = rows[:, :, None] * span + place[None, None, :]
            inside = inside_rows[:, :, None] & (place < span)[None, None, :]
            sum_alpha += tl.load(partial_ptr + offsets, inside, 0.0)
            sum_beta += tl.load(partial_ptr + tl.cast(splits, tl.int64) * channels * span + offsets, inside, 0.0)
    factor = tl.load(alpha_ptr + channel, channel < channels, 0.0).to(tl.float64)
    if FROM_OUTPUT:
        factor /= tl.load(beta_ptr + channel, channel < channels, 1.0)
    grad_alpha = tl.sum(tl.sum(sum_alpha, 2), 0)
    grad_beta = factor * tl.sum(tl.sum(sum_beta, 2), 0)
    tl.store(grad_alpha_ptr + channel, grad_alpha.to(tl.float32), channel < channels)
    tl.store(grad_beta_ptr + channel, grad_beta.to(tl.float32), channel < channels)


@triton.jit
def _parameters(alpha_ptr, beta_ptr, row, rows, column, columns, BY_ROW: tl.constexpr, SPAN: tl.constexpr):
    """Return alpha, beta and the smallest x to compute with, in the shape that a tile takes them.

    From -inf there would be NaN: 0 * -inf. At the bound, exp is 0 as :func:`_exponential` computes it, which has no
    subnormal numbers. For beta < 0, it is infinite.
    """
    if BY_ROW:
        index, inside = row, row < rows
    else:
        index, inside = column if SPAN == 1 else column.to(tl.uint32) // SPAN, column < columns
    alpha = tl.load(alpha_ptr + index, inside, 0.0)
    beta = tl.load(beta_ptr + index, inside, 0.0)
    floor = tl.maximum(-tl.where(beta < 0, 89.0, 88.0) / tl.abs(beta), -_LARGEST)  # infinite before, if beta is 0
    axis: tl.constexpr = 1 if BY_ROW else 0
    return tl.expand_dims(alpha, axis), tl.expand_dims(beta, axis), tl.expand_dims(floor, axis)


@triton.jit
def _exponential(x, beta, dtype: tl.constexpr):
    """Return exp(beta x) and exp(beta x) - 1, as accurate as results of that dtype need them.

    With s = 2^n and p = exp(beta x) / s - 1, one polynomial gives both, as s p + s and s p + (s - 1). Where exp(beta x)
    overflows, n stops short of it and p grows instead: infinity without a NaN.
    """
    if dtype == tl.float32:
        # n = round(t / ln 2) and r = t - n ln 2 from t = beta x, whose rounding is carried along
        t = beta * x
        shifted = tl.minimum(tl.fma(t, _LOG2_E, _ROUNDER), _ROUNDER + 127.0)
        n = shifted - _ROUNDER
        head = tl.fma(n, -_LN2_HEAD, t)
        tail = tl.fma(n, -_LN2_TAIL, tl.fma(beta, x, -t))
        r = head + tail
        r_tail = (head - r) + tail
        # (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2, minimax in the relative error of exp(r) - 1: 2^-30.9
        q = tl.fma(r, 0.000198909911, 0.00139336498)
        q = tl.fma(q, r, 0.00833331048)
        q = tl.fma(q, r, 0.0416664667)
        q = tl.fma(q, r, 0.166666672)
        q = tl.fma(q, r, 0.5)
        p = r + tl.fma(r * r, q, r_tail)
    else:
        # f = log2(e) beta x - n, rounded only once, as n is an integer. The arithmetic of a device can do this faster
        # than its memory delivers half types, but not much more.
        rate = beta * _LOG2_E
        rate_tail = tl.fma(beta, _LOG2_E, -rate) + beta * _LOG2_E_TAIL
        shifted = tl.minimum(tl.fma(rate, x, _ROUNDER), _ROUNDER + 127.0)
        f = tl.fma(rate_tail, x, tl.fma(rate, x, -(shifted - _ROUNDER)))
        # (2^f - 1) / f for |f| <= 1/2, minimax in the relative error: 2^-25.6
        q = tl.fma(f, 0.0001540351, 0.00133907364)
        q = tl.fma(q, f, 0.00961823855)
        q = tl.fma(q, f, 0.055503577)
        q = tl.fma(q, f, 0.240226492)
        q = tl.fma(q, f, 0.693147182)
        p = q * f
    # the last bits of shifted are those of the integer n, and n = -127 gives 0
    s = ((shifted.to(tl.int32, bitcast=True) << 23) + (127 << 23)).to(tl.float32, bitcast=True)
    return tl.fma(s, p, s), tl.fma(s, p, s - 1.0)


@triton.jit
def _inverted(y, alpha):
    """Return beta x, exp(beta x) and exp(beta x) - 1 from y = f(x) for x <= 0."""
    inverse = tl.minimum(tl.maximum(1.0 / alpha, -_LARGEST), _LARGEST)  # wrong, but finite, if alpha is below 2^-128
    inverse_tail = tl.fma(-inverse, alpha, 1.0) * inverse
    expm1 = tl.maximum(tl.fma(y, inverse, y * inverse_tail), -1.0, _PROPAGATE)  # rounding may put y below -alpha
    exp = expm1 + 1.0
    # exp = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)]; about exp = 1, its rounding is not in f
    bits = exp.to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    f = tl.where(n == 0, expm1, (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0)
    # (log(1 + f) - f) / f^2, minimax in the relative error of the logarithm: 2^-30.3
    q = tl.fma(f, 0.0674664304, -0.116756566)
    q = tl.fma(q, f, 0.118881635)
    q = tl.fma(q, f, -0.124055885)
    q = tl.fma(q, f, 0.142195523)
    q = tl.fma(q, f, -0.166679963)
    q = tl.fma(q, f, 0.200021192)
    q = tl.fma(q, f, -0.250000089)
    q = tl.fma(q, f, 0.333333135)
    q = tl.fma(q, f, -0.5)
    log = tl.fma(n.to(tl.float32), _LN2, tl.fma(f * f, q, f))
    return log, exp, expm1  # where exp is 0, the logarithm is finite
