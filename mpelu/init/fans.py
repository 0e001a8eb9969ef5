"""How many terms meet in one output and in one input of a weight: what the variance of the weight is divided by.

Every operation here is a sum of products weight * input. With independent weights of mean 0 and variance v, and inputs
of second moment q, an output that is a sum of n products has the second moment n v q, and an input that takes part in
m products receives m v times the mean squared gradient at the output. So with P products in one call

    fan_in = P / (number of outputs),    fan_out = P / (number of inputs),

both exact means over positions: a product with zero padding is not counted, and an input that a stride leaves out
counts with its 0 products. The rest of this file counts P, or says where the products lie, one dimension at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mpelu.errors import UsageError

Shape = Sequence[int]
Options = Mapping[str, Any]
Taps = Literal["all", "centre"]

FANS: dict[str, Callable[[float, float], float]] = {
    "fan_in": lambda fan_in, fan_out: fan_in,  # noqa: ARG005
    "fan_out": lambda fan_in, fan_out: fan_out,  # noqa: ARG005
    "average": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
}

CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
AVERAGES = {"avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3}
ADAPTIVE_AVERAGES = {"adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 3}
"""Operations of ``torch.nn.functional`` that move along positions, and along how many dimensions."""

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
"""How many matrices a recurrent layer or cell stacks in a weight, by the beginning of the operation's name."""


@dataclass(frozen=True)
class Fans:
    """The fans of one call of a weight.

    Attributes:
        fan_in: Second moment of the outputs / (variance of the weight * second moment of the inputs).
        fan_out: Mean squared gradient at the inputs / (variance of the weight * mean squared gradient at the outputs).

    Example:
        >>> Fans(fan_in=75.0, fan_out=400.0).of("average")
        237.5
    """

    fan_in: float
    fan_out: float

    def of(self, mode: str) -> float:
        """Return the fan of a mode: fan_in, fan_out or average.

        Raises:
            UsageError: If the mode is none of these.
        """
        if mode not in FANS:
            raise UsageError(f"mode must be one of {', '.join(FANS)}, got {mode!r}")
        return FANS[mode](self.fan_in, self.fan_out)


def fans(weight: Tensor, groups: int = 1) -> tuple[int, int]:
    """Return the nominal fan_in and fan_out of a weight of shape ``(out, in / groups, *kernel)``.

    Groups are seen; borders, strides and transposed convolutions are not: for these see :func:`effective_fans`.

    Raises:
        UsageError: If the weight has fewer than 2 dimensions, or out is no multiple of groups.

    Example:
        >>> fans(torch.empty(16, 3, 5, 5))
        (75, 400)
    """
    if weight.dim() < 2:
        raise UsageError(f"a weight must have 2 or more dimensions to have fans, got shape {tuple(weight.shape)}")
    if groups < 1 or weight.shape[0] % groups:
        raise UsageError(f"groups must divide the {weight.shape[0]} output channels, got {groups}")
    kernel = math.prod(weight.shape[2:])
    return weight.shape[1] * kernel, weight.shape[0] // groups * kernel


def fan(weight: Tensor, mode: str = "fan_in", groups: int = 1) -> float:
    """Return the nominal fan that the variance of a weight is divided by; ``mode`` is fan_in, fan_out or average."""
    return Fans(*fans(weight, groups)).of(mode)


def effective_fans(
    op: str,
    weight_shape: Shape,
    *,
    role: str = "weight",
    options: Options | None = None,
    input_shape: Shape = (),
    output_shape: Shape = (),
    taps: Taps = "all",
) -> Fans:
    r"""Return the fans of one call of a weight, with the borders, strides and groups of that call.

    .. math:: E[z^2] = \text{fan}_\text{in} \, v \, E[x^2], \qquad
        E[(\partial L / \partial x)^2] = \text{fan}_\text{out} \, v \, E[(\partial L / \partial z)^2]

    as means over all positions, for independent weights of mean 0 and variance v, inputs whose second moment is the
    same at every position, and gradients that are uncorrelated with each other. The inputs may be correlated, and need
    not have mean 0. Where their second moments differ between positions, see :func:`propagate_profile`.

    Zero padding counts as lost. Other padding is a call of its own before the convolution, which then has padding 0: it
    loses nothing, and each copy gives its gradient back to the entry it is a copy of. So before a pad that reflects,
    replicates or wraps, the mean squared gradient is that behind it times (positions behind) / (positions before).
    ``replicate`` gathers it at the border, ``reflect`` next to it; :func:`propagate_profile_backward` says where.

    A weight that stacks several matrices (see :func:`blocks`) has the fans of one of them. Where all of them read the
    same input, that input receives the sum of their gradients.

    Args:
        op: ``linear``, ``matmul``, ``bilinear``, ``conv1d`` to ``conv3d``, ``conv_transpose1d`` to
            ``conv_transpose3d``, a name that begins with ``lstm``, ``gru`` or ``rnn``, or one with ``attention`` in it.
        weight_shape: As the operation takes it: ``(out, in / groups, *kernel)``, of a transposed convolution
            ``(in, out / groups, *kernel)``, of ``bilinear`` ``(out, in1, in2)``, of ``matmul`` ``(in, out)`` where the
            weight stands on the right.
        role: Which weight of a recurrent or attention layer, as torch names it: ``weight_ih_l0``, ``in_proj_weight``.
        options: Of a convolution: ``stride``, ``padding``, ``dilation`` (a number, or one for each dimension) and
            ``groups``, as in ``torch.nn.functional``.
        input_shape: Of a convolution, ``matmul`` and ``bilinear``; dimensions in front of those that are read do not
            matter. For ``bilinear`` the input whose gradient fan_out is about: that fan goes with the second moment of
            the other input, and fan_in with the product of the second moments of both.
        output_shape: Of a convolution and ``matmul``; it holds what ``output_padding`` and ``output_size`` do.
        taps: ``centre`` where only the middle tap of the kernel is not 0 and has the energy of all of them, as
            ``delta_orthogonal`` writes it (see :func:`mpelu.init.draw`): it meets less zero padding.

    Raises:
        UsageError: If the operation is unknown, or a shape does not fit it.

    Example:
        >>> effective_fans("linear", (8, 4))
        Fans(fan_in=4.0, fan_out=8.0)
        >>> shapes = {"input_shape": (1, 4, 16, 16), "output_shape": (1, 8, 16, 16)}
        >>> effective_fans("conv2d", (8, 4, 3, 3), options={"padding": 1}, **shapes)  # (46 / 48)^2 of 36 and of 72
        Fans(fan_in=33.0625, fan_out=66.125)
    """
    call = _Call(op, tuple(weight_shape), role, options or {}, tuple(input_shape), tuple(output_shape), taps)
    count = COUNTS.get(op, _stacked if _stacks(op) else None)
    if count is None:
        known = ", ".join([*COUNTS, *(f"{name}*" for name in GATES), "*attention*"])
        raise UsageError(f"no fans are known for {op!r} with a weight of shape {call.weight_shape}; known: {known}")
    return count(call)


def blocks(op: str, weight_shape: Shape, *, role: str = "weight") -> tuple[tuple[int, int], ...]:
    """Return the ranges of rows, (first, behind the last), that are matrices of their own.

    The gates of a recurrent layer are stacked in one weight, and so are query, key and value in the ``in_proj_weight``
    of attention; any other weight is one matrix.

    Args:
        op: Name of the operation, as in :func:`effective_fans`.
        weight_shape: Shape of the weight.
        role: Which weight of the layer, as torch names it.

    Raises:
        UsageError: If the rows cannot be divided so.

    Example:
        >>> blocks("lstm", (32, 5), role="weight_ih_l0")
        ((0, 8), (8, 16), (16, 24), (24, 32))
        >>> blocks("linear", (32, 5))
        ((0, 32),)
    """
    stacked = any(name in role for name in ("weight_ih", "weight_hh", "in_proj"))
    rows, count = weight_shape[0], (_stacks(op) or 1) if stacked else 1
    if rows % count:
        raise UsageError(f"{role} of {op!r} must stack {count} matrices of one size, got shape {tuple(weight_shape)}")
    return tuple((index * rows // count, (index + 1) * rows // count) for index in range(count))


def propagate_profile(
    profile: Tensor,
    op: str,
    *,
    output_shape: Shape,
    weight_shape: Shape = (),
    options: Options | None = None,
    taps: Taps = "all",
    correlation: float = 0.0,
) -> Tensor:
    r"""Return the second moment at every position behind a call, from those before it.

    Zero padding sets the positions at a border apart from those inside, and the next layer reads this profile, not its
    mean: in a stack of 3x3 convolutions on 16x16 positions the first layer keeps 0.918 of the signal, a deep one
    0.977. A convolution with weights of variance v has

    .. math:: q_\text{out}(p) = v \, \frac{C_\text{in}}{\text{groups}} \sum_t q_\text{in}(p + t)

    with the sum over the taps that lie inside; what is returned is for v = 1. Of a uniform profile of 1 its mean is the
    fan_in of :func:`effective_fans`. An average with factors a of entries of second moment q, any two of which have the
    correlation c, has the second moment (1 - c) sum a^2 q + c (sum a sqrt(q))^2.

    Args:
        profile: Second moments, shape ``(*positions)``, averaged over examples and channels.
        op: A convolution or transposed convolution, ``pad``, ``avg_pool1d`` to ``avg_pool3d`` or
            ``adaptive_avg_pool1d`` to ``adaptive_avg_pool3d``.
        output_shape: Behind the call; only positions are read.
        weight_shape: Of a convolution, as in :func:`effective_fans`.
        options: With the names of ``torch.nn.functional``. Of a convolution ``stride``, ``padding``, ``dilation`` and
            ``groups``; of ``pad`` ``pad``, ``mode`` and ``value``; of pooling ``kernel_size``, ``stride``, ``padding``,
            ``count_include_pad`` and ``divisor_override``. The shape of the output holds what ``output_padding``,
            ``output_size`` and ``ceil_mode`` do.
        taps: As in :func:`effective_fans`.
        correlation: Of pooling: E[x y] / sqrt(E[x^2] E[y^2]) for two entries of a window. 0 if they are independent and
            have mean 0, mean^2 / q if they are independent and have another mean, 1 if they are equal.

    Returns:
        Shape ``(*positions behind the call)``, float64, on the CPU.

    Raises:
        UsageError: If the profile has another number of dimensions than the call, or the operation is none of these.
            Max pooling is none: what it does follows from the distribution, not from second moments.

    Example:
        >>> layer = {"weight_shape": (1, 1, 3, 3), "options": {"padding": 1}, "output_shape": (1, 1, 16, 16)}
        >>> profile = torch.ones(16, 16)
        >>> for _ in range(100):
        ...     before = profile
        ...     profile = propagate_profile(before, "conv2d", **layer) / 9
        >>> print(f"{profile.mean() / before.mean():.4f}")
        0.9774
    """
    before = profile.detach().to("cpu", torch.float64)
    options = options or {}
    call = _Call(op, tuple(weight_shape), "weight", options, tuple(before.shape), tuple(output_shape), taps)
    matrices = _matrices(call, before.dim())
    if op in CONVOLUTIONS:
        return _columns(call) * _along_each_dimension(matrices, before)
    if op in TRANSPOSED:
        return _rows(call) * _along_each_dimension(matrices, before)
    if op == "pad":
        kept = _along_each_dimension(matrices, torch.ones_like(before))
        return _along_each_dimension(matrices, before) + float(options.get("value") or 0) ** 2 * (1 - kept)
    independent = _along_each_dimension([matrix.square() for matrix in matrices], before)
    equal = _along_each_dimension(matrices, before.sqrt()).square()
    return (1 - correlation) * independent + correlation * equal


def propagate_profile_backward(
    profile: Tensor,
    op: str,
    *,
    input_shape: Shape,
    weight_shape: Shape = (),
    options: Options | None = None,
    taps: Taps = "all",
) -> Tensor:
    """Return the mean squared gradient at every position before a call, from those behind it.

    The transpose of :func:`propagate_profile`, for gradients that are uncorrelated with each other; of a uniform
    profile of 1 behind a convolution the mean is the fan_out of :func:`effective_fans`.

    Args:
        profile: Mean squared gradients, shape ``(*positions behind the call)``.
        op: As in :func:`propagate_profile`.
        input_shape: Before the call; only positions are read.
        weight_shape: Of a convolution.
        options: As in :func:`propagate_profile`.
        taps: As in :func:`effective_fans`.

    Returns:
        Shape ``(*positions before the call)``, float64, on the CPU.

    Raises:
        UsageError: As :func:`propagate_profile`.

    Example:
        >>> pad = {"pad": (1, 1), "mode": "replicate"}
        >>> propagate_profile_backward(torch.ones(6), "pad", options=pad, input_shape=(1, 1, 4))
        tensor([2., 1., 1., 2.], dtype=torch.float64)
    """
    behind = profile.detach().to("cpu", torch.float64)
    call = _Call(op, tuple(weight_shape), "weight", options or {}, tuple(input_shape), tuple(behind.shape), taps)
    transposes = [matrix.T for matrix in _matrices(call, behind.dim())]
    if op in CONVOLUTIONS:
        return _rows(call) * _along_each_dimension(transposes, behind)
    if op in TRANSPOSED:
        return _columns(call) * _along_each_dimension(transposes, behind)
    return _along_each_dimension([matrix.square() for matrix in transposes], behind)


@dataclass(frozen=True)
class _Call:
    """What is known of one call."""

    op: str
    weight_shape: tuple[int, ...]
    role: str
    options: Options
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    taps: Taps


@dataclass(frozen=True)
class _Side:
    """One dimension of a convolution: output o reads input o * stride + tap * dilation - padding.

    Of a transposed convolution the inputs are its outputs and the outputs its inputs: it is the same map, transposed.
    """

    weights: tuple[float, ...]
    """Mean square of each tap, over that of the weight."""
    stride: int
    padding: int
    dilation: int
    inputs: int
    outputs: int

    def hits(self, tap: int) -> range:
        """Return the outputs that read an input with this tap, not padding."""
        offset = tap * self.dilation - self.padding
        first = max(0, -(offset // self.stride))
        return range(first, max(first, min(self.outputs, (self.inputs - 1 - offset) // self.stride + 1)))

    def products(self) -> float:
        """Return the number of pairs (output, tap) that read an input."""
        return sum(weight * len(self.hits(tap)) for tap, weight in enumerate(self.weights))

    def matrix(self) -> Tensor:
        """Return the map, shape ``(outputs, inputs)``, float64."""
        matrix = torch.zeros(self.outputs, self.inputs, dtype=torch.float64, device="cpu")
        for tap, weight in enumerate(self.weights):
            outputs = torch.tensor(self.hits(tap), dtype=torch.long, device="cpu")
            matrix[outputs, outputs * self.stride + tap * self.dilation - self.padding] += weight
        return matrix


def _stacks(op: str) -> int:
    """Return how many matrices an operation stacks in a weight; 0 if it is neither recurrent nor attention."""
    return 3 if "attention" in op else next((count for name, count in GATES.items() if op.startswith(name)), 0)


def _stacked(call: _Call) -> Fans:
    first, behind = blocks(call.op, call.weight_shape, role=call.role)[0]
    return Fans(float(call.weight_shape[1]), float(behind - first))


def _linear(call: _Call) -> Fans:
    out, inputs = call.weight_shape
    return Fans(float(inputs), float(out))


def _matmul(call: _Call) -> Fans:
    *_, rows, columns = call.weight_shape
    if call.input_shape[-1:] == (rows,) and call.output_shape[-1:] == (columns,):
        return Fans(float(rows), float(columns))
    if call.input_shape[-2:-1] == (columns,) and call.output_shape[-2:-1] == (rows,):
        return Fans(float(columns), float(rows))
    raise UsageError(
        f"a matmul of a weight of shape {call.weight_shape} and an input of shape {call.input_shape} has no output of "
        f"shape {call.output_shape}"
    )


def _bilinear(call: _Call) -> Fans:
    out, first, second = call.weight_shape
    features = call.input_shape[-1] if call.input_shape else first
    if features not in (first, second):
        raise UsageError(f"an input of bilinear must have {first} or {second} features, got {call.input_shape}")
    return Fans(float(first * second), float(out * first * second // features))


def _convolution(call: _Call) -> Fans:
    sides = _sides(call)
    products = math.prod(side.products() for side in sides)
    return Fans(
        fan_in=_columns(call) * products / math.prod(side.outputs for side in sides),
        fan_out=_rows(call) * products / math.prod(side.inputs for side in sides),
    )


def _transposed_convolution(call: _Call) -> Fans:
    adjoint = _convolution(call)
    return Fans(fan_in=adjoint.fan_out, fan_out=adjoint.fan_in)


COUNTS: dict[str, Callable[[_Call], Fans]] = {
    "linear": _linear,
    "matmul": _matmul,
    "bilinear": _bilinear,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(TRANSPOSED, _transposed_convolution),
}


def _rows(call: _Call) -> int:
    """Return the channels of one group along the first dimension of a kernel."""
    groups = int(call.options.get("groups", 1))
    if groups < 1 or call.weight_shape[0] % groups:
        raise UsageError(f"groups of {call.op} must divide the first of {call.weight_shape}, got {groups}")
    return call.weight_shape[0] // groups


def _columns(call: _Call) -> int:
    """Return the channels of one group along the second dimension of a kernel."""
    return call.weight_shape[1]


def _sides(call: _Call) -> list[_Side]:
    """Return the dimensions of a convolution, or of the one that a transposed convolution is the adjoint of."""
    count = (CONVOLUTIONS | TRANSPOSED)[call.op]
    if len(call.weight_shape) != count + 2:
        raise UsageError(f"the weight of {call.op} must have {count + 2} dimensions, got shape {call.weight_shape}")
    kernel = call.weight_shape[2:]
    stride, dilation = (_for_each(call.options.get(name, 1), count) for name in ("stride", "dilation"))
    padding = _left_padding(call.options.get("padding", 0), kernel, dilation)
    inputs, outputs = _positions(call.input_shape, count, call.op), _positions(call.output_shape, count, call.op)
    if call.op in TRANSPOSED:
        inputs, outputs = outputs, inputs
    weights = (_tap_weights(taps, call.taps) for taps in kernel)
    return [_Side(*side) for side in zip(weights, stride, padding, dilation, inputs, outputs, strict=True)]


def _tap_weights(count: int, taps: Taps) -> tuple[float, ...]:
    if taps == "all":
        return (1.0,) * count
    return tuple(float(count) if tap == (count - 1) // 2 else 0.0 for tap in range(count))


def _left_padding(padding: Any, kernel: Shape, dilation: Shape) -> tuple[int, ...]:
    """Return the padding before the first position; ``same`` puts the odd one behind the last."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        return tuple(step * (taps - 1) // 2 for taps, step in zip(kernel, dilation, strict=True))
    return _for_each(padding, len(kernel))


def _for_each(value: Any, count: int) -> tuple[int, ...]:
    """Return an option of an operation for each of its dimensions."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(int(number) for number in (values * count if len(values) == 1 else values))


def _positions(shape: Shape, count: int, op: str) -> tuple[int, ...]:
    if len(shape) < count:
        raise UsageError(
            f"{op} needs the shapes of its input and output, {count} or more dimensions, got {tuple(shape)}"
        )
    return tuple(shape[-count:])


def _matrices(call: _Call, dimensions: int) -> list[Tensor]:
    """Return the map of each dimension, shape (positions behind, positions before), float64."""
    counts = CONVOLUTIONS | TRANSPOSED | AVERAGES | ADAPTIVE_AVERAGES | {"pad": dimensions}
    if call.op not in counts:
        raise UsageError(
            f"no law takes second moments at positions through {call.op!r}; known: {', '.join(counts)}. There is none "
            f"for max pooling: measure what it does"
        )
    if dimensions != counts[call.op]:
        raise UsageError(f"{call.op} needs a profile of {counts[call.op]} dimensions, got {dimensions}")
    if call.op in CONVOLUTIONS:
        return [side.matrix() for side in _sides(call)]
    if call.op in TRANSPOSED:
        return [side.matrix().T for side in _sides(call)]
    if call.op in AVERAGES:
        return _average_matrices(call, dimensions)
    if call.op in ADAPTIVE_AVERAGES:
        shapes = (_positions(shape, dimensions, call.op) for shape in (call.input_shape, call.output_shape))
        return [_adaptive_matrix(inputs, outputs) for inputs, outputs in zip(*shapes, strict=True)]
    return _pad_matrices(call, dimensions)


def _average_matrices(call: _Call, dimensions: int) -> list[Tensor]:
    options = call.options
    kernel = _for_each(options["kernel_size"], dimensions)
    stride = _for_each(options.get("stride") or kernel, dimensions)
    padding = _for_each(options.get("padding", 0), dimensions)
    divisor, include_pad = options.get("divisor_override"), options.get("count_include_pad", True)
    inputs, outputs = (_positions(shape, dimensions, call.op) for shape in (call.input_shape, call.output_shape))
    matrices = []
    for taps, step, pad, before, behind in zip(kernel, stride, padding, inputs, outputs, strict=True):
        matrix = _Side((1.0,) * taps, step, pad, 1, before, behind).matrix()
        # with ceil_mode a window may end behind the padding; what lies there is never counted
        widths = [min(output * step + taps, before + 2 * pad) - output * step for output in range(behind)]
        divisors = torch.tensor(widths, device="cpu") if include_pad else matrix.sum(1)
        matrices.append(matrix if divisor else matrix / divisors[:, None])
    return [matrices[0] / divisor, *matrices[1:]] if divisor else matrices


def _adaptive_matrix(inputs: int, outputs: int) -> Tensor:
    matrix = torch.zeros(outputs, inputs, dtype=torch.float64, device="cpu")
    for output in range(outputs):
        first, behind = output * inputs // outputs, -(-(output + 1) * inputs // outputs)
        matrix[output, first:behind] = 1 / (behind - first)
    return matrix


def _pad_matrices(call: _Call, dimensions: int) -> list[Tensor]:
    """Let ``torch.nn.functional.pad`` itself say, dimension by dimension, which entry a padded position copies."""
    pads, mode = tuple(call.options["pad"]), call.options.get("mode", "constant")
    pads += (0,) * (2 * dimensions - len(pads))
    matrices = []
    for index, inputs in enumerate(call.input_shape[-dimensions:]):
        left = 2 * (dimensions - 1 - index)  # pads are given from the last dimension to the first
        numbers = torch.arange(1, inputs + 1, dtype=torch.float64, device="cpu")[None, None]
        copied = F.pad(numbers, pads[left : left + 2], mode=mode)[0, 0].long()
        matrices.append(F.one_hot(copied, inputs + 1)[:, 1:].double())
    return matrices


def _along_each_dimension(matrices: Sequence[Tensor], profile: Tensor) -> Tensor:
    for dimension, matrix in enumerate(matrices):
        profile = torch.tensordot(matrix, profile, dims=([1], [dimension])).movedim(0, dimension)
    return profile
