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

from mpelu.ops import reference
from mpelu.ops.fused import channel_stride

_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))

_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}  # Triton 3.10 changes the default of the latter
_FORWARD_BYTES, _BACKWARD_BYTES = 8192, 4096
"""What a program reads of x at a time: 4 and 2 loads of 16 bytes for each of its 128 threads. Not measured on a GPU."""
_NARROWEST = 64
"""The columns of the narrowest tile where a matrix has as many: 128 bytes, a cache line, of half types."""
_CHAIN = 8
"""Terms that a lane adds in float32 before the sum goes on in float64. Rounding costs a sum of 8 terms at most
4 * 2^-24 of itself, if all are equal. float64 is slow on many devices: this way it takes one addition for 8 elements.
"""
_ENOUGH_PROGRAMS = 1024
"""Chains are shorter where they leave fewer programs: 8 for each multiprocessor of a large device. Not measured on a
GPU."""
_PARTIAL_SUMS = 1024
"""What a program of the second stage reads at a time: 8 for each of its 128 threads. Not measured on a GPU."""

_PROPAGATE = tl.constexpr(tl.PropagateNan.ALL)
_LARGEST = tl.constexpr(3.40282347e38)
_ROUNDER = tl.constexpr(1.5 * 2**23)  # t + rounder - rounder is t rounded to an integer
_LOG2_E = tl.constexpr(1.44269502)
_LN2_HEAD, _LN2_TAIL = tl.constexpr(0.693145752), tl.constexpr(1.42860677e-06)  # n * ln2_head is exact


class _Plan(NamedTuple):
    """How a tensor is cut: its memory is a number of matrices, with a pair of parameters for every row or column."""

    parameter_blocks: int
    tiles: int
    """How many tiles have the same block of parameters."""
    chain: int
    """How many of these a program of the backward pass adds."""
    cut: tuple[int, ...]
    """What both kernels take: rows, column_units, row_blocks, column_blocks, BY_ROW, ROWS, COLUMNS and UNIT.

    Columns are counted in units, a constant of the compilation: that is how the compiler learns which elements it can
    load together.
    """


@lru_cache(maxsize=4096)
def _plan(size: int, channels: int, stride: int, capacity: int) -> _Plan:
    """Cut a dense tensor, where ``stride`` elements in a row have the same parameters, into tiles of that capacity."""
    by_row = stride > 1 or channels == 1
    rows, columns = (channels, stride) if by_row else (size // channels, channels)
    matrices = size // (rows * columns)
    widths = [min(_NARROWEST, triton.next_power_of_2(columns))]
    while by_row and widths[-1] < min(capacity, columns):
        widths.append(2 * widths[-1])

    def blocks(width: int) -> tuple[int, int, int]:
        height = min(capacity // width, triton.next_power_of_2(rows))
        return height, triton.cdiv(rows, height), triton.cdiv(columns, width)

    # the widest of those with the fewest tiles: 56 * 56 columns fill 49 tiles of 64, but three quarters of 4 of 1024
    width = min(reversed(widths), key=lambda width: blocks(width)[1] * blocks(width)[2])
    height, row_blocks, column_blocks = blocks(width)
    parameter_blocks, tiles = (row_blocks, matrices * column_blocks) if by_row else (column_blocks, row_blocks)
    chain = _CHAIN
    while chain > 1 and parameter_blocks * triton.cdiv(tiles, chain) < _ENOUGH_PROGRAMS:
        chain //= 2
    unit = gcd(columns, 16)
    cut = (rows, columns // unit, row_blocks, column_blocks, by_row, height, width, unit)
    return _Plan(parameter_blocks, tiles, chain, cut)


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


def backward(grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for x, alpha and beta."""
    channels = alpha.numel()
    plan = _plan(x.numel(), channels, channel_stride(x, channels), _BACKWARD_BYTES // x.element_size())
    splits = triton.cdiv(plan.tiles, plan.chain)
    grad_x, grad_alpha, grad_beta = torch.empty_like(x), torch.empty_like(alpha), torch.empty_like(beta)
    partial_sums = torch.empty((2, splits, channels), dtype=torch.float64, device=x.device)
    width = min(16, triton.next_power_of_2(channels))  # 16 numbers in a row are a cache line
    with torch.cuda.device_of(x):
        _backward[(plan.parameter_blocks * splits,)](
            grad, x, alpha, beta, grad_x, partial_sums, splits, plan.tiles, plan.chain, *plan.cut, **_OPTIONS
        )
        _add[(triton.cdiv(channels, width),)](
            partial_sums, alpha, grad_alpha, grad_beta, splits, channels, _PARTIAL_SUMS // width, width, **_OPTIONS
        )
    return grad_x, grad_alpha, grad_beta


def backward_from_output(grad: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for x, alpha and beta where alpha * beta > 0; there is no kernel for it yet."""
    grad_x, grad_alpha, grad_beta = reference.backward_from_output(grad, y, alpha, beta)
    assert grad_x is not None
    assert grad_alpha is not None
    assert grad_beta is not None
    return grad_x, grad_alpha, grad_beta


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
):
    columns = tl.cast(column_units, tl.int64) * UNIT
    program = tl.program_id(0)
    block = program // column_blocks
    matrix = (block // row_blocks).to(tl.int64)
    row = (block % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (program % column_blocks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    alpha, beta, floor = _parameters(alpha_ptr, beta_ptr, row, rows, column, columns, BY_ROW, x_ptr.dtype.element_ty)

    offsets = (matrix * rows + row)[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    stored = tl.load(x_ptr + offsets, inside, 0.0)
    x = stored.to(tl.float32)
    _, expm1 = _exponential(tl.maximum(x, floor, _PROPAGATE), beta, stored.dtype)
    tl.store(y_ptr + offsets, tl.where(x > 0, x, alpha * expm1).to(stored.dtype), inside)


@triton.jit
def _backward(
    grad_ptr,
    x_ptr,
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
):
    """Compute the gradient for x in a chain of tiles with the same parameters, and one partial sum for each of those.

    The sum of grad * x * exp(beta x) is multiplied by alpha in the second stage.
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
    alpha, beta, floor = _parameters(alpha_ptr, beta_ptr, row, rows, column, columns, BY_ROW, x_ptr.dtype.element_ty)
    slope = alpha * beta
    slope_error = tl.fma(alpha, beta, -slope)

    sum_alpha = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_beta = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(first, tl.minimum(first + chain, tiles)):
        column = start + tl.arange(0, COLUMNS)
        offsets = (matrix * rows + row)[:, None] * columns + column[None, :]
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        stored_x = tl.load(x_ptr + offsets, inside, 0.0)
        x = stored_x.to(tl.float32)
        grad = tl.load(grad_ptr + offsets, inside, 0.0).to(tl.float32)

        positive = x > 0
        bounded = tl.minimum(tl.maximum(x, floor, _PROPAGATE), 0.0, _PROPAGATE)
        exp, expm1 = _exponential(bounded, beta, stored_x.dtype)
        grad_negative = tl.where(positive, 0.0, grad)  # infinity times 0 would be NaN
        sum_alpha = tl.fma(grad_negative, expm1, sum_alpha)
        sum_beta = tl.fma(grad_negative * exp, bounded, sum_beta)
        weight = exp * slope
        if stored_x.dtype == tl.float32:  # without the rounding of alpha * beta: 2.4 ulp instead of 2.65
            weight = tl.fma(exp, slope, tl.minimum(exp, _LARGEST) * slope_error)
        grad_x = tl.where(positive, grad, grad * weight)
        tl.store(grad_x_ptr + offsets, grad_x.to(stored_x.dtype), inside)

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
    grad_alpha_ptr,
    grad_beta_ptr,
    splits,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the partial sums of a block of channels."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sum_alpha = tl.zeros((ROWS, COLUMNS), tl.float64)
    sum_beta = tl.zeros((ROWS, COLUMNS), tl.float64)
    for first in range(0, splits, ROWS):
        split = first + tl.arange(0, ROWS)
        offsets = split.to(tl.int64)[:, None] * channels + channel[None, :]
        inside = (split < splits)[:, None] & (channel < channels)[None, :]
        sum_alpha += tl.load(partial_ptr + offsets, inside, 0.0)
        sum_beta += tl.load(partial_ptr + tl.cast(splits, tl.int64) * channels + offsets, inside, 0.0)
    alpha = tl.load(alpha_ptr + channel, channel < channels, 0.0)
    tl.store(grad_alpha_ptr + channel, tl.sum(sum_alpha, 0).to(tl.float32), channel < channels)
    tl.store(grad_beta_ptr + channel, (alpha * tl.sum(sum_beta, 0)).to(tl.float32), channel < channels)


@triton.jit
def _parameters(alpha_ptr, beta_ptr, row, rows, column, columns, BY_ROW: tl.constexpr, dtype: tl.constexpr):
    """Return alpha, beta and the smallest x to compute with, in the shape that a tile takes them.

    From -inf there would be NaN: 0 * -inf. At the bound, exp is 0 as :func:`_exponential` computes it: the polynomial
    has no subnormal numbers. For beta < 0, it is infinite.
    """
    index, end = (row, rows) if BY_ROW else (column, columns)
    alpha = tl.load(alpha_ptr + index, index < end, 0.0)
    beta = tl.load(beta_ptr + index, index < end, 0.0)
    underflow: tl.constexpr = 88.0 if dtype == tl.float32 else 104.0
    floor = tl.maximum(-tl.where(beta < 0, 89.0, underflow) / tl.abs(beta), -_LARGEST)  # infinite before, if beta is 0
    axis: tl.constexpr = 1 if BY_ROW else 0
    return tl.expand_dims(alpha, axis), tl.expand_dims(beta, axis), tl.expand_dims(floor, axis)


@triton.jit
def _exponential(x, beta, dtype: tl.constexpr):
    """Return exp(beta x) and exp(beta x) - 1, as accurate as results of that dtype need them."""
    if dtype == tl.float32:
        # With t = beta x, n = round(t / ln 2), r = t - n ln 2, s = 2^n and p = exp(r) - 1, one polynomial gives both
        # exp(t) - 1 = s p + (s - 1) and exp(t) = s p + s, which is accurate if the rounding of t is carried along.
        t = beta * x
        # n stays below the overflow of s, and r grows where exp(t) overflows: infinity without a NaN
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
        # the last bits of shifted are those of the integer n, and n = -127 gives 0
        s = ((shifted.to(tl.int32, bitcast=True) << 23) + (127 << 23)).to(tl.float32, bitcast=True)
        return tl.fma(s, p, s), tl.fma(s, p, s - 1.0)
    else:  # noqa: RET505  # Triton compiles the one or the other
        # The polynomial above would take longer than the memory. The exponential of the hardware, with an error of
        # 2^-22.5, is good for half types, but subtracting 1 near 0 enlarges its error: to 2^-21.0 where a polynomial
        # takes over, (2^t - 1) / t for |t| <= 0.45, minimax in the relative error: 2^-21.7.
        t = (beta * _LOG2_E) * x
        exp = tl.exp2(t)
        q = tl.fma(t, 0.00133335451, 0.00965710636)
        q = tl.fma(q, t, 0.0555046946)
        q = tl.fma(q, t, 0.24022454)
        q = tl.fma(q, t, 0.693147182)
        return exp, tl.where(tl.abs(t) < 0.45, q * t, exp - 1.0)
