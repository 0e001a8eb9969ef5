"""Normalizations that a model writes out: x / sqrt(mean(x^2) + eps), the same of x - mean(x), and x / |x|."""

from dataclasses import dataclass

import torch

from mpelu.graph.calls import Value
from mpelu.graph.drafts import Draft, Drafts

SQUARE = {-2.0: 4.0, 0.5: 0.25, 3.0: 9.0}
LARGE = (1.0, 4.0, 100.0)
"""Where a function is tried that may add an eps."""


@dataclass(frozen=True)
class _Centered:
    """x, or x - mean(x) over dims."""

    value: Value
    dims: tuple[int, ...] | None = None
    """None where nothing is taken off."""


@dataclass(frozen=True)
class _Size:
    """How large the entries of something are, over dims that are kept."""

    of: _Centered
    dims: tuple[int, ...]
    power: float
    """1 where it is the root of the mean square (or of the sum), 2 where it is the square of that."""
    norm: bool = False
    """True for the root of the sum."""


def merge_norms(drafts: Drafts) -> None:
    """Replace the quotient at the end of each normalization that is written out by one node that reads x.

    Root mean square normalization becomes op ``rms_norm``; with the mean taken off, ``layer_norm``, or ``batch_norm``
    where the mean is over the batch too; and with the Euclidean norm, ``normalize``. ``dim`` and ``eps`` are among the
    options. A factor or shift for each channel stays a node behind it. Means, ``var``, ``std`` and ``norm`` count that
    keep their dims. The steps before the quotient fall away where nothing else reads them.
    """
    for draft in list(drafts.by_value.values()):
        if draft.kind == "product" and draft.op in ("mul", "div") and len(draft.reads) == 2:
            first, second = draft.reads
            norm = _norm(drafts, draft, first, second)
            if norm is None and draft.op == "mul":
                norm = _norm(drafts, draft, second, first)
            if norm is not None:
                drafts.by_value[draft.value.number] = norm


def _norm(drafts: Drafts, product: Draft, value: Value, other: Value) -> Draft | None:
    """Return the node for value / size, or for value * (1 / size); None where ``other`` is nothing like it."""
    scale = drafts.by_value.get(other.number)
    if scale is None:
        return None
    pointwise = scale.function is not None and not scale.parameters
    pool = drafts.by_value.get(scale.reads[0].number) if pointwise else scale
    size = _size(drafts, pool)
    centered = _centered(drafts, value)
    if size is None or size.of != centered or centered.dims not in (None, size.dims):
        return None
    power = (-1.0 if product.op == "mul" else 1.0) / size.power
    if not (_agrees(scale, {point: point**power for point in LARGE}) if pointwise else power == 1.0):
        return None
    op = "normalize" if size.norm else "rms_norm"
    if centered.dims is not None:
        op = "batch_norm" if 0 in centered.dims else "layer_norm"
    options = {"dim": size.dims, "eps": _at_zero(scale) ** (1 / power) if pointwise else 0.0, "affine": False}
    return Draft(
        product.place, "norm", op, product.value, [centered.value], product.frame, options=options, calls=product.calls
    )


def _size(drafts: Drafts, pool: Draft | None) -> _Size | None:
    if pool is None or pool.kind != "pool" or not pool.options.get("keepdim"):
        return None
    dims = _dims(pool)
    if pool.op in ("var", "std"):
        return _Size(_Centered(pool.reads[0], dims), dims, 2.0 if pool.op == "var" else 1.0)
    if pool.op in ("norm", "vector_norm") and pool.options["ord"] in (None, 2, "fro"):
        return _Size(_Centered(pool.reads[0]), dims, 1.0, norm=True)
    square = drafts.by_value.get(pool.reads[0].number)
    if pool.op == "mean" and square is not None and square.function and not square.parameters:
        return _Size(_centered(drafts, square.reads[0]), dims, 2.0) if _agrees(square, SQUARE) else None
    return None


def _centered(drafts: Drafts, value: Value) -> _Centered:
    """Return x for x - mean(x), with the dims of the mean; anything else is itself."""
    draft = drafts.by_value.get(value.number)
    if draft is not None and draft.kind == "sum" and draft.options["coefficients"] == (1, -1):
        x, mean = draft.reads
        pool = drafts.by_value.get(mean.number)
        if pool is not None and pool.op == "mean" and pool.reads == [x] and pool.options.get("keepdim"):
            return _Centered(x, _dims(pool))
    return _Centered(value)


def _agrees(draft: Draft, values: dict[float, float]) -> bool:
    """True where the function of a node has these values, up to an eps that is added somewhere."""
    assert draft.function is not None
    found = draft.function(torch.tensor(list(values), dtype=torch.float64))
    return torch.allclose(found, torch.tensor(list(values.values()), dtype=torch.float64), rtol=1e-2, atol=0.0)


def _at_zero(draft: Draft) -> float:
    assert draft.function is not None
    return draft.function(torch.zeros((), dtype=torch.float64)).item()


def _dims(pool: Draft) -> tuple[int, ...]:
    dim, size = pool.options.get("dim"), len(pool.value.shape)
    dims = range(size) if dim is None else (dim,) if isinstance(dim, int) else dim
    return tuple(sorted(item % size for item in dims))
