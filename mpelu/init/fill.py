"""Fills of one tensor: drawn on the CPU, each parameter from a stream of its own, and written whole or in shards.

What is drawn follows from the seed and the parameter's name, not from the device, the dtype, the number of threads or
processes, or the order of the parameters.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.init.fans import FANS, fan, fans

__all__ = [
    "DISTRIBUTIONS",
    "FANS",
    "draw",
    "fan",
    "fans",
    "fill_",
    "fill_normal_",
    "fresh_seed",
    "generator",
    "taylor_gain",
    "taylor_normal_",
    "write_",
]

KEPT_NUMBERS = 2**28
"""How many numbers of float64 :func:`factoring_once` keeps."""

TRUNCATION = 2.0
"""Where truncated normal numbers end, in standard deviations of the normal distribution that is truncated."""


def taylor_gain(slope: float) -> float:
    """Return sqrt(2 / (1 + slope^2)), where slope = alpha * beta is the slope of the negative side at 0.

    Source: Eq. 22 of the paper. It keeps the second moment exactly where the negative side is linear (ReLU,
    LeakyReLU, PReLU), and to first order around 0 where it is exponential: there the signal shrinks with depth.
    """
    return math.sqrt(2.0 / (1.0 + slope**2))


def fresh_seed() -> int:
    """Draw a seed from torch's default generator, for those who gave none; ``torch.manual_seed`` decides which."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


def generator(seed: int, name: str) -> torch.Generator:
    """Return the stream of one parameter: the same for the same seed and name, whatever else is drawn, and where.

    Args:
        seed: Any integer.
        name: Of the parameter in its model, as in ``named_parameters``.

    Example:
        >>> first = torch.rand(3, generator=generator(0, "fc.weight"))
        >>> torch.equal(first, torch.rand(3, generator=generator(0, "fc.weight")))
        True
        >>> torch.equal(first, torch.rand(3, generator=generator(0, "fc.bias")))
        False
    """
    digest = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
    stream = torch.Generator("cpu").manual_seed(digest % 2**32)
    # torch keeps 32 bits of a seed: of 1000 names two would share a stream once in 8000 models. Where it starts adds 12
    torch.empty(digest >> 52, device="cpu").uniform_(generator=stream)
    return stream


def draw(
    shape: Sequence[int],
    std: float,
    *,
    distribution: str = "normal",
    groups: int = 1,
    blocks: Sequence[tuple[int, int]] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw the values of a weight whose entries have the root mean square std and mean 0.

    - ``normal``: N(0, std^2).
    - ``truncated_normal``: a normal distribution cut off at two of its standard deviations, which are std / 0.8796, so
      that std is what is left of them.
    - ``uniform``: between -sqrt(3) std and sqrt(3) std.
    - ``orthogonal``: a matrix from the uniform (Haar) distribution of matrices with orthonormal rows or columns,
      whichever are fewer, times sqrt(max(rows, columns)) std. Then the mean square of the entries is std^2 in every
      draw, not on average only, and z = W x has the mean square fan_in std^2 mean(x^2): for each x if W has at least
      as many rows as columns; else on average over W, or over x with uncorrelated entries. So has the gradient, with
      fan_out, and rows and columns exchanged. A kernel is flattened to ``(out / groups, in / groups * taps)``.
    - ``delta_orthogonal``: such a matrix ``(out / groups, in / groups)``, times the square root of the number of taps,
      at the middle tap of the kernel, and 0 at the others: the mean square over the whole kernel is again std^2, and a
      convolution that keeps the number of positions is as orthogonal as the matrix. The middle of k taps is number
      (k - 1) // 2, from 0: with an even k the left one of two, which ``padding="same"`` puts on the output's position.
      With a stride, the positions between those that are read have no influence.

    Source of the last one: Xiao et al., arXiv:1806.05393, Sec. 3.2; here wide to narrow is allowed too.

    Args:
        shape: ``(out, in / groups, *kernel)``, or ``(in, out / groups, *kernel)`` of a transposed convolution. Groups
            divide the first dimension of both, and a transposed matrix is as orthogonal as the matrix: nothing else
            differs between them.
        std: Root mean square of the entries, >= 0.
        distribution: One of the above.
        groups: Of the convolution; each is a matrix of its own.
        blocks: Ranges of rows that are matrices of their own, one behind the other: see :func:`mpelu.init.blocks`.
        generator: A CPU generator, None for torch's default one.

    Returns:
        float32, on the CPU. The same bits for any number of threads; those of ``orthogonal`` may differ between builds
        of torch and kinds of CPU, in the last digits.

    Raises:
        UsageError: If std is negative or not finite, the distribution is unknown, the generator is not on the CPU, an
            orthogonal weight has fewer than 2 dimensions, or groups and blocks do not divide the rows.

    Example:
        >>> weight = draw((6, 4), 0.5, distribution="orthogonal")
        >>> torch.allclose(weight.T @ weight, 6 * 0.5**2 * torch.eye(4), atol=1e-5)
        True
    """
    shape = tuple(shape)
    if not (math.isfinite(std) and std >= 0):
        raise UsageError(f"std must be a number >= 0, got {std}")
    if generator is not None and generator.device.type != "cpu":
        raise UsageError(
            f"weights are drawn on the CPU, for every device: give a CPU generator, not {generator.device}"
        )
    if distribution in ENTRIES:
        return ENTRIES[distribution](shape, std, generator)
    if distribution not in MATRICES:
        raise UsageError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    if len(shape) < 2:
        raise UsageError(f"an orthogonal weight must have 2 or more dimensions, got shape {shape}")
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    for rows in _parts(values, blocks):
        if groups < 1 or rows.shape[0] % groups:
            raise UsageError(f"groups must divide the {rows.shape[0]} rows of a weight of shape {shape}, got {groups}")
        grouped = rows.view(groups, rows.shape[0] // groups, *shape[1:])
        grouped.copy_(MATRICES[distribution](tuple(grouped.shape), std, generator))
    return values


def fill_(
    tensor: Tensor,
    std: float,
    *,
    distribution: str = "normal",
    groups: int = 1,
    blocks: Sequence[tuple[int, int]] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a weight in place with what :func:`draw` draws; see there, and :func:`write_`, for the errors.

    Args:
        tensor: Of any floating dtype, on any device; it may be sharded.
        std: Root mean square of the entries.
        distribution: ``normal``, ``truncated_normal``, ``uniform``, ``orthogonal`` or ``delta_orthogonal``.
        groups: Of the convolution.
        blocks: Ranges of rows that are matrices of their own.
        generator: A CPU generator, None for torch's default one.

    Returns:
        The tensor.

    Example:
        >>> layer = torch.nn.Conv2d(64, 128, 3, groups=2)
        >>> weight = fill_(layer.weight, 0.1, distribution="orthogonal", groups=2, generator=generator(0, "weight"))
        >>> round(weight.square().mean().sqrt().item(), 6)
        0.1
    """
    _refuse_meta(tensor)
    values = draw(tensor.shape, std, distribution=distribution, groups=groups, blocks=blocks, generator=generator)
    return write_(tensor, values)


def fill_normal_(weight: Tensor, std: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill with N(0, std^2), drawn in float32 on the CPU so that a seed means the same weights on every device."""
    return fill_(weight, std, generator=generator)


def write_(parameter: Tensor, values: Tensor) -> Tensor:
    """Write the values of a whole parameter into it, or into the shard of it that this process holds.

    Each process gives the same values and keeps its part, without communication. It needs memory for the whole
    parameter, on the CPU and, while the shard is cut out, on the device.

    Args:
        parameter: Any tensor; of a ``torch.distributed.tensor.DTensor``, which ``fully_shard`` makes, the local shard
            is written.
        values: Of the shape of the whole parameter; cast to its dtype.

    Returns:
        The parameter.

    Raises:
        UsageError: If the parameter is on the meta device, or has another shape.

    Example:
        >>> write_(torch.empty(2, dtype=torch.float64), torch.tensor([1.0, 2.0]))
        tensor([1., 2.], dtype=torch.float64)
    """
    _refuse_meta(parameter)
    if parameter.shape != values.shape:
        raise UsageError(
            f"values of shape {tuple(values.shape)} do not fit a parameter of shape {tuple(parameter.shape)}"
        )
    with torch.no_grad():
        local, part = _local_part(parameter, values.detach().to(parameter.dtype))
        local.copy_(part)
    return parameter


def taylor_normal_(
    tensor: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    mode: str = "fan_in",
    *,
    groups: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill a weight with N(0, std), std = sqrt(2 / (fan (1 + alpha^2 beta^2))).

    Source: Li et al., arXiv:1606.00305, Eq. 22; the modes are those of the authors' Caffe filler "taylor".
    With alpha = 0 it is :func:`torch.nn.init.kaiming_normal_` for ReLU (MSRA), with alpha = beta = 1 it is the
    initialization for ELU; MSRA for a leaky unit of slope a is alpha = a, beta = 1.

    Args:
        tensor: Weight of shape ``(out, in / groups, *kernel)``, filled in place.
        alpha: Of the activation that *feeds* this weight.
        beta: Of the activation that feeds this weight.
        mode: ``fan_in`` keeps the forward signal, ``fan_out`` the gradient, ``average`` is between.
        groups: Groups of the convolution.
        generator: A CPU generator, None for the default one.

    Returns:
        The tensor.

    Raises:
        UsageError: If the mode is unknown or the tensor has fewer than 2 dimensions.

    Example:
        >>> weight = taylor_normal_(torch.empty(256, 64, 3, 3), alpha=1, beta=1, generator=generator(0, "weight"))
        >>> round(weight.std().item(), 3)
        0.042
    """
    std = taylor_gain(alpha * beta) / math.sqrt(fan(tensor, mode, groups))
    return fill_normal_(tensor, std, generator=generator)


def _local_part(parameter: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the memory that this process has of a parameter, and the values that belong there."""
    # whoever made a DTensor has imported this module; without it there are none, and its import takes half a second
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None or not isinstance(parameter, distributed.DTensor):
        return parameter, values
    # src_data_rank=None: cut the shard out of what this process has, instead of receiving it from the first one
    mesh, placements = parameter.device_mesh, parameter.placements
    sharded = distributed.distribute_tensor(values, mesh, placements, src_data_rank=None)
    return parameter.to_local(), sharded.to_local()


def _refuse_meta(parameter: Tensor) -> None:
    if parameter.is_meta:
        raise UsageError(
            f"a tensor of shape {tuple(parameter.shape)} on the meta device has no memory to write to; materialize the "
            f"model first: model.to_empty(device=...)"
        )


def _normal(shape: tuple[int, ...], std: float, stream: torch.Generator | None) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=stream)


def _truncated_normal(shape: tuple[int, ...], std: float, stream: torch.Generator | None) -> Tensor:
    """Draw by the inverse of the distribution function, from uniform numbers in the range that its ends leave."""
    inside = math.erf(TRUNCATION / math.sqrt(2))
    density_at_end = math.exp(-(TRUNCATION**2) / 2) / math.sqrt(2 * math.pi)
    kept_std = math.sqrt(1 - 2 * TRUNCATION * density_at_end / inside)
    scale = std / kept_std
    values = torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-inside, inside, generator=stream)
    return values.erfinv_().mul_(scale * math.sqrt(2)).clamp_(-TRUNCATION * scale, TRUNCATION * scale)


def _uniform(shape: tuple[int, ...], std: float, stream: torch.Generator | None) -> Tensor:
    end = math.sqrt(3) * std
    return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-end, end, generator=stream)


def _orthogonal(shape: tuple[int, ...], std: float, stream: torch.Generator | None) -> Tensor:
    groups, rows, columns = shape[0], shape[1], math.prod(shape[2:])
    return (_haar(groups, rows, columns, stream) * (std * math.sqrt(max(rows, columns)))).view(shape)


def _delta_orthogonal(shape: tuple[int, ...], std: float, stream: torch.Generator | None) -> Tensor:
    groups, rows, columns, *kernel = shape
    values = torch.zeros(shape, dtype=torch.float64, device="cpu")
    scale = std * math.sqrt(max(rows, columns) * math.prod(kernel))
    middle = [slice((taps - 1) // 2, (taps - 1) // 2 + 1) for taps in kernel]
    matrices = _haar(groups, rows, columns, stream) * scale
    values[:, :, :, *middle] = matrices.view(groups, rows, columns, *[1] * len(kernel))
    return values


class _Factors:
    """Orthogonal matrices by what they are drawn from, and the state that the stream is in behind them."""

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
        self._room = KEPT_NUMBERS

    def draw(self, shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
        key = hashlib.blake2b(stream.get_state().numpy().tobytes()).digest(), shape
        if key in self._found:
            matrices, behind = self._found[key]
            stream.set_state(behind)
            return matrices
        matrices = _factored(shape, stream)
        if matrices.numel() <= self._room:
            self._room -= matrices.numel()
            self._found[key] = matrices, stream.get_state()
        return matrices


_FACTORS: ContextVar[_Factors | None] = ContextVar("_FACTORS", default=None)


@contextmanager
def factoring_once() -> Iterator[None]:
    """Keep the orthogonal matrices that are drawn within, for when the same ones are drawn again.

    A plan is calibrated with the weights before they are written, and nearly all of its time is for their
    factorizations. The bits are those of drawing twice. As many are kept as take 2 GB. Within itself it changes
    nothing.
    """
    token = _FACTORS.set(_FACTORS.get() or _Factors())
    try:
        yield
    finally:
        _FACTORS.reset(token)


def _haar(count: int, rows: int, columns: int, stream: torch.Generator | None) -> Tensor:
    """Draw matrices with orthonormal rows or columns, whichever are fewer, uniformly; shape (count, rows, columns)."""
    shape = (count, max(rows, columns), min(rows, columns))
    factors = _FACTORS.get()
    tall = _factored(shape, stream) if factors is None or stream is None else factors.draw(shape, stream)
    return tall if rows >= columns else tall.mT


def _factored(shape: tuple[int, ...], stream: torch.Generator | None) -> Tensor:
    """Draw matrices with orthonormal columns.

    The Q of a normal matrix is uniform once the diagonal of R is made positive; the factorization does not do that.
    Source: Mezzadri, arXiv:math-ph/0609050, Sec. 5.
    """
    with _one_thread():
        orthogonal, triangular = torch.linalg.qr(_normal(shape, 1.0, stream).double())
    matrices: Tensor = orthogonal.mul_(torch.where(triangular.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[:, None, :])
    return matrices


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, of this Python thread only, and go back to as many as there were.

    The blocks of LAPACK's factorization follow from the number of threads, and its last bits with them: with torch 2.13
    and MKL, 1 and 2 threads differ from 64x64 on.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _parts(values: Tensor, blocks: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return the rows of each block."""
    rows = values.shape[0]
    edges = [0, *(behind for _, behind in blocks)]
    if blocks and ([first for first, _ in blocks] != edges[:-1] or edges[-1] != rows):
        raise UsageError(f"blocks must follow each other from row 0 to row {rows}, got {tuple(blocks)}")
    return [values[first:behind] for first, behind in blocks] or [values]


Draw = Callable[[tuple[int, ...], float, torch.Generator | None], Tensor]

ENTRIES: dict[str, Draw] = {"normal": _normal, "truncated_normal": _truncated_normal, "uniform": _uniform}
"""Distributions of single entries, independent of each other."""

MATRICES: dict[str, Draw] = {"orthogonal": _orthogonal, "delta_orthogonal": _delta_orthogonal}
"""Distributions of a matrix for each group, of shape (groups, rows, columns, *kernel)."""

DISTRIBUTIONS = (*ENTRIES, *MATRICES)
