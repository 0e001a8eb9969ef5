"""Initialization of a whole model: plan rows first, then write what they describe."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.graph import read
from mpelu.graph.capture import Example
from mpelu.init.calibrate import in_training, refined
from mpelu.init.choosing import Choices, Wishes
from mpelu.init.fans import FANS
from mpelu.init.fill import DISTRIBUTIONS, factoring_once, fresh_seed, write_
from mpelu.init.parametrized import originals
from mpelu.init.probe import noise_like
from mpelu.init.rows import AS_IS, THROUGH, InitPlan, PlanRow
from mpelu.init.rules import METHODS, ORTHOGONAL, PUBLISHED, REFINED
from mpelu.init.starts import warn_of_meta

__all__ = ["AS_IS", "THROUGH", "InitPlan", "PlanRow", "apply", "initialize", "plan"]

RESIDUAL = ("scale", "zero", "fixup", "none")
REFINE = ("none", "noise", "data")
HEADS = ("signal", "zero")


def plan(
    model: nn.Module,
    example: Example,
    *,
    method: str = "auto",
    mode: str = "fan_in",
    std: float = 0.01,
    seed: int | None = None,
    distribution: str | None = None,
    residual: str = "scale",
    heads: str = "signal",
    refine: str | None = None,
    skip: Sequence[str] = (),
) -> InitPlan:
    """Work out the initialization of every parameter of a model; nothing is written.

    Methods of this library, for any activation; the second moment is kept at 1:

    - ``auto``: ``critical``, then calibrated on noise until both signals stay as they are.
    - ``critical``: weights whose rows sum to 0, with the gain 1 / sqrt(E[f'^2]) that keeps the gradient, and random
      biases that make up for the second moment (see :func:`mpelu.init.centered_critical`). Where a layer has no bias,
      or no activation on both sides, it is ``second_moment``.
    - ``second_moment``: sqrt(1 / (fan E[f^2])), with the taps that read zero padding counted as lost.

    Methods of the paper, N(0, std) with nominal fans:

    - ``eq22``: sqrt(2 / (fan (1 + slope^2))) with the slope alpha * beta of the activation that *feeds* the weight
      (Eq. 22 by its derivation). Images, sums, normalizations and other weights count as slope 1. The last layer always
      uses fan_in: no weight follows whose gradient fan_out would keep.
    - ``released``: the same formula with the slope of the net's first activation for every convolution, the one fed by
      the image included, and linear layers left as they are: what the authors' residual nets do (with fan_out).
    - ``msra``: sqrt(2 / fan) for every weight, as Caffe's filler and the paper's comparison do.
    - ``xavier``: sqrt(1 / fan); in average mode that is Glorot's formula.
    - ``gaussian``: ``std`` for every weight.

    And of Mishkin and Matas, arXiv:1511.06422:

    - ``lsuv``: orthonormal, then each layer scaled to unit second moment on the example, which has to be a batch of
      data. In one pass for all layers.

    ``tailored`` is what :func:`mpelu.tailor` writes: ``second_moment`` with orthogonal weights, calibrated on noise.

    Biases are 0 where no method says otherwise, normalizations start as the identity, with fresh running statistics.
    Parameters of activations, embeddings, attention and recurrent layers, and those that are used as values, are left
    as they are, and so are weights that the model computes, but for parametrizations that take the values which they
    are given (weight normalization); their rows say so. A weight that is read several times is set for its first call.

    A model on the meta device is planned like any other, without calibration, and the plan applied behind
    ``to_empty``; a sharded model is planned before ``fully_shard``, and the plan applied behind it. The weights are the
    same bits as those of one process.

    Args:
        model: Any module; it is read as a run on the example calls it, and not changed.
        example: A tensor, positional arguments or keyword arguments that the model accepts, for instance
            ``torch.zeros(1, 3, 32, 32)``. Its values matter for ``refine="data"`` only.
        method: One of the above.
        mode: ``fan_in``, ``fan_out`` or ``average``, for the methods of the paper.
        std: Of ``gaussian``; ignored by the others.
        seed: Of the fill; None draws one from torch's default generator.
        distribution: Of ``auto``, ``critical``, ``second_moment`` and ``lsuv``: ``normal``, ``truncated_normal``,
            ``uniform``, ``orthogonal`` or ``delta_orthogonal``. None means ``normal`` for ``second_moment``, else
            ``orthogonal``.
        residual: What the last weight of a branch starts as, where it is added to a trunk of n sums: ``scale`` gives it
            1 / n of the second moment that the trunk begins with, ``zero`` is 0, ``none`` treats it as any other. Where
            a normalization ends the branch, it sets the size; ``zero`` starts its factors at 0. ``fixup`` is ``zero``
            with a head of 0, and the others of the m weights in a branch are n^(-1 / (2 m - 2)) times as large (Zhang
            et al., arXiv:1901.09321; the scalars that it adds to the model are not added). The methods of the paper
            use ``none``.
        heads: ``signal``, or ``zero`` for a last layer that starts at 0.
        refine: ``noise`` or ``data`` scales each layer to its second moment by a forward pass on noise or on the
            example; ``none`` does not. None means ``noise`` for ``auto``, ``data`` for ``lsuv`` and ``none`` otherwise.
        skip: Patterns (``fnmatch``) of the names of parameters that are left as they are.

    Raises:
        UsageError: If an argument is unknown, or the model does not accept the example.
        UnknownNodeError: If a node that feeds a weight is not understood.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 2))
        >>> for row in plan(model, torch.zeros(1, 8), method="eq22", seed=0).weights:
        ...     print(row.parameter, row.fed_by, row.slope, round(row.std, 5))
        0.weight input 1.0 0.35355
        2.weight 1 1.0 0.35355
    """
    refine = REFINED.get(method, "none") if refine is None else refine
    distribution = distribution or ("orthogonal" if method in ORTHOGONAL else "normal")
    for name, value, known in (
        ("method", method, tuple(METHODS)),
        ("mode", mode, tuple(FANS)),
        ("distribution", distribution, DISTRIBUTIONS),
        ("residual", residual, RESIDUAL),
        ("refine", refine, REFINE),
        ("heads", heads, HEADS),
    ):
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise UsageError(f"seed must be an integer or None, got {seed!r}")
    if not (math.isfinite(std) and std >= 0):
        raise UsageError(f"std must be a number >= 0, got {std}")
    _check_model(model, refine)
    wishes = Wishes(
        method=method,
        mode=mode,
        std=std,
        distribution=distribution,
        residual="none" if method in PUBLISHED else residual,
        heads="zero" if residual == "fixup" and method not in PUBLISHED else heads,
        skip=(skip,) if isinstance(skip, str) else tuple(skip),
        measured=refine != "none",
    )
    _check_skip(wishes, model)
    with in_training(model):
        graph = read(model, example)
    with _on_cpu():
        choices = Choices(model, graph, wishes)
    warn_of_meta(choices.rows, model)
    result = InitPlan(method, mode, fresh_seed() if seed is None else seed, choices.rows)
    if refine == "none":
        return result
    with torch.inference_mode(False):
        probe = example if refine == "data" else noise_like(model, example, graph)
    return refined(result, model, probe, graph, choices.uses, choices.targets, balance=method == "auto")


def _on_cpu() -> AbstractContextManager[object]:
    """Make what is computed for a plan on the CPU, whatever device the caller has tensors made on."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def _check_model(model: nn.Module, refine: str) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    sharded = [name for name, parameter in model.named_parameters() if type(parameter.data) is not Tensor]
    if sharded and any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise UsageError(
            f"this model is sharded ({', '.join(sharded[:3])}, ...): plan it before fully_shard, on the meta device if "
            f"it does not fit into memory, and apply the plan behind it"
        )
    if refine != "none" and any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError(
            "calibration runs the model, and this one is on the meta device: plan it with refine='none', or give it "
            "memory first (model.to_empty(device='cpu')) and hand the plan on as JSON"
        )


def _check_skip(wishes: Wishes, model: nn.Module) -> None:
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    names += [name.partition(".parametrizations.")[0] + "." + name.partition(".parametrizations.")[2].partition(".")[0]
              for name in names if ".parametrizations." in name]  # fmt: skip
    unmatched = [pattern for pattern in wishes.skip if not any(fnmatchcase(name, pattern) for name in names)]
    if unmatched:
        raise UsageError(f"skip: no parameter of the model matches {', '.join(map(repr, unmatched))}")


def initialize(model: nn.Module, example: Example, **options: object) -> InitPlan:
    """Plan, then apply; the arguments, errors and result are those of :func:`plan`."""
    with factoring_once():
        init_plan = plan(model, example, **options)  # type: ignore[arg-type]
        apply(init_plan, model)
    return init_plan


def apply(init_plan: InitPlan, model: nn.Module) -> None:
    """Write what a plan describes; all is checked before the first parameter is written.

    Each parameter has a stream of its own, named after it, so that the same seed gives the same weights on any device,
    for any number of processes, and in the shards of a model that several processes hold (``fully_shard``). A model
    that is planned on the meta device is given memory by ``to_empty`` in between; running statistics of normalizations
    are written too, since they hold arbitrary numbers then.

    Raises:
        UsageError: If the plan is for another model, or the model is on the meta device.
    """
    held: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    _check_fits(init_plan, model, held)
    for row in init_plan.rows:
        if row.std is None:
            continue
        values = row.values(row.shape, init_plan.seed)
        for name, part in _written(row, model, held, values).items():
            write_(held[name], part)


def _written(row: PlanRow, model: nn.Module, held: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
    """Return the parameters to write for a row: its own, or those behind a parametrized weight."""
    if row.parameter in held:
        return {row.parameter: values}
    found = originals(model, row.parameter, values)
    if found is None:
        raise UsageError(f"the parametrization of {row.parameter} does not take the values of the plan any more")
    return found


def _check_fits(init_plan: InitPlan, model: nn.Module, held: Mapping[str, Tensor]) -> None:
    rows = {row.parameter: row for row in init_plan.rows}
    through = {name for name in rows if name not in held and _is_parametrized(model, name)}
    wrong = [f"no {name}" for name in rows if name not in held and name not in through]
    wrong += [f"{name}, which has no row" for name, _ in model.named_parameters() if name not in rows]
    wrong += [
        f"{name} of shape {tuple(held[name].shape)} instead of {row.shape}"
        for name, row in rows.items()
        if name in held and tuple(held[name].shape) != row.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more differences" if len(wrong) > 3 else ""
        raise UsageError(
            f"the plan is for another model: {type(model).__name__} has {', '.join(wrong[:3])}{more}. Apply it to the "
            f"module that it was made for, without wrappers"
        )
    on_meta = [name for name, row in rows.items() if row.std is not None and name in held and held[name].is_meta]
    if on_meta:
        raise UsageError(
            f"{', '.join(on_meta[:3])}{', ...' if len(on_meta) > 3 else ''} are on the meta device and have no memory "
            f"to write to; materialize the model first: model.to_empty(device=...)"
        )


def _is_parametrized(model: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    prefix = f"{path}.parametrizations.{attribute}.".removeprefix(".")
    return any(other.startswith(prefix) for other, _ in model.named_parameters())
