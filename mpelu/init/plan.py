"""Initialization of a whole model: plan rows first, then write the weights they describe."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from mpelu.errors import UsageError
from mpelu.graph import Reader, Source, read
from mpelu.init.fill import FANS, fan, fill_normal_, taylor_gain
from mpelu.nn import MPELU, SPELU


@dataclass(frozen=True)
class PlanRow:
    """One weight: what it will be filled with, and why.

    ``std`` is None where the weight is left as it is; then ``equation`` says why.
    """

    weight: str
    layer: str
    fed_by: str
    slope: float
    fan: float
    gain: float
    std: float | None
    equation: str
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class InitPlan:
    """The rows of a model in execution order. ``print(plan)`` is a table."""

    method: str
    mode: str
    seed: int | None
    rows: tuple[PlanRow, ...]

    def to_json(self) -> str:
        """Return the plan as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        head = ("weight", "layer", "fed by", "slope", "fan", "gain", "std", "equation")
        body = [
            (
                row.weight,
                row.layer,
                row.fed_by,
                f"{row.slope:.4g}",
                f"{row.fan:g}",
                f"{row.gain:.4f}",
                "as is" if row.std is None else f"{row.std:.5f}",
                row.equation,
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (head, *body)
        ]
        return "\n".join(line.rstrip() for line in lines)


def negative_slope(activation: nn.Module) -> float:
    """Return the slope of the negative side at 0 as Eq. 22 wants it: the root mean square over channels.

    For MPELU it is alpha * beta, for ELU alpha, for the rectified units their slope.

    Raises:
        UsageError: If the activation is none of the rectified or exponential units.
    """
    for kind, slope in SLOPES.items():
        if isinstance(activation, kind):
            return slope(activation)
    raise UsageError(f"Eq. 22 covers {', '.join(kind.__name__ for kind in SLOPES)}, got {type(activation).__name__}")


def _root_mean_square(values: Tensor) -> float:
    return math.sqrt(values.detach().double().square().mean().item())


SLOPES: dict[type[nn.Module], Callable[..., float]] = {
    MPELU: lambda unit: _root_mean_square(unit.alpha * unit.beta),
    SPELU: lambda unit: _root_mean_square(unit.alpha),
    nn.ReLU: lambda unit: 0.0,  # noqa: ARG005
    nn.LeakyReLU: lambda unit: float(unit.negative_slope),
    nn.PReLU: lambda unit: _root_mean_square(unit.weight),
    nn.ELU: lambda unit: float(unit.alpha),
}


def _layer(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return f"Linear({module.in_features} -> {module.out_features})"
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    kernel = "x".join(str(side) for side in module.kernel_size)
    return f"Conv {kernel}({module.in_channels} -> {module.out_channels})"


def _slope(source: Source) -> float:
    """Return the slope behind a weight; images, sums, norms and other weights act as a linear unit of slope 1."""
    return 1.0 if source.module is None else negative_slope(source.module)


@dataclass(frozen=True)
class _Weight:
    """What a rule may look at."""

    reader: Reader
    slope: float
    net_slope: float
    fan_in: float
    fan: float
    std: float


def _eq22(weight: _Weight) -> tuple[float, float, float | None, str]:
    fan_used = weight.fan_in if weight.reader.last else weight.fan
    return weight.slope, fan_used, taylor_gain(weight.slope) / math.sqrt(fan_used), "Eq. 22"


def _released(weight: _Weight) -> tuple[float, float, float | None, str]:
    if isinstance(weight.reader.module, nn.Linear):
        return weight.slope, weight.fan_in, None, "released code: linear layers keep torch's default"
    std = taylor_gain(weight.net_slope) / math.sqrt(weight.fan)
    return weight.net_slope, weight.fan, std, "Eq. 22, one slope for the net (released code)"


def _msra(weight: _Weight) -> tuple[float, float, float | None, str]:
    return 0.0, weight.fan, math.sqrt(2.0 / weight.fan), "MSRA, sqrt(2 / fan)"


def _xavier(weight: _Weight) -> tuple[float, float, float | None, str]:
    return weight.slope, weight.fan, 1.0 / math.sqrt(weight.fan), "Xavier, sqrt(1 / fan)"


def _gaussian(weight: _Weight) -> tuple[float, float, float | None, str]:
    return weight.slope, weight.fan, weight.std, "Gaussian, fixed std"


METHODS = {"eq22": _eq22, "released": _released, "msra": _msra, "xavier": _xavier, "gaussian": _gaussian}


def plan(
    model: nn.Module,
    example: Tensor,
    *,
    method: str,
    mode: str = "fan_in",
    std: float = 0.01,
    seed: int | None = None,
) -> InitPlan:
    """Work out the initialization of every convolution and linear layer of a model; nothing is written.

    Methods, each for N(0, std) weights and zero biases:

    - ``eq22``: sqrt(2 / (fan (1 + slope^2))) with the slope alpha * beta of the activation that *feeds* the weight
      (Eq. 22 of the paper by its derivation). Images, sums, normalizations and other weights count as slope 1. The
      last layer always uses fan_in: no weight follows whose gradient fan_out would keep.
    - ``released``: the same formula with the slope of the net's first activation for every convolution, the one fed by
      the image included, and linear layers left as they are: what the authors' residual nets do (with fan_out).
    - ``msra``: sqrt(2 / fan) for every weight, as Caffe's filler and the paper's comparison do.
    - ``xavier``: sqrt(1 / fan); in average mode that is Glorot's formula.
    - ``gaussian``: ``std`` for every weight.

    Args:
        model: Any module that torch.fx can trace.
        example: An input of the right shape and dtype, for instance ``torch.zeros(1, 3, 32, 32)``.
        method: One of the above.
        mode: ``fan_in``, ``fan_out`` or ``average``.
        std: Of ``gaussian``; ignored by the others.
        seed: Of the fill that may follow.

    Raises:
        UsageError: If the method or mode is unknown, or the model does not accept the example.
        UnknownNodeError: If a node that feeds a weight is not understood.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 2))
        >>> print(plan(model, torch.zeros(1, 8), method="eq22"))
        weight    layer             fed by  slope  fan  gain    std      equation
        0.weight  Linear(8 -> 8)    input   1      8    1.0000  0.35355  Eq. 22
        2.weight  Linear(8 -> 2)    1       1      8    1.0000  0.35355  Eq. 22
    """
    if method not in METHODS:
        raise UsageError(f"unknown initialization {method!r}; known: {', '.join(METHODS)}")
    if mode not in FANS:
        raise UsageError(f"mode must be one of {', '.join(FANS)}, got {mode!r}")
    readers = read(model, example)
    net_slope = next((_slope(reader.source) for reader in readers if reader.source.module is not None), 1.0)
    rows = []
    for reader in readers:
        groups = getattr(reader.module, "groups", 1)
        weight = _Weight(
            reader=reader,
            slope=_slope(reader.source),
            net_slope=net_slope,
            fan_in=fan(reader.module.weight, "fan_in", groups),
            fan=fan(reader.module.weight, mode, groups),
            std=std,
        )
        slope, fan_used, row_std, equation = METHODS[method](weight)
        rows.append(
            PlanRow(
                weight=f"{reader.name}.weight",
                layer=_layer(reader.module),
                fed_by=reader.source.name,
                slope=slope,
                fan=fan_used,
                gain=(row_std or 0.0) * math.sqrt(fan_used),
                std=row_std,
                equation=equation,
                output_shape=reader.output_shape,
            )
        )
    return InitPlan(method, mode, seed, tuple(rows))


def apply(init_plan: InitPlan, model: nn.Module) -> None:
    """Write the weights that a plan describes, and set the biases beside them to 0.

    With a seed, each weight has a generator of its own, so that the same seed gives the same weights on any device and
    whatever else was drawn before; without one, torch's default generator is used.
    """
    for index, row in enumerate(init_plan.rows):
        if row.std is None:
            continue
        module = model.get_submodule(row.weight.removesuffix(".weight"))
        generator = None if init_plan.seed is None else _generator(init_plan.seed, index)
        fill_normal_(module.get_parameter("weight"), row.std, generator=generator)
        if isinstance(module.bias, Tensor):
            nn.init.zeros_(module.bias)


def _generator(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)


def initialize(
    model: nn.Module,
    example: Tensor,
    *,
    method: str,
    mode: str = "fan_in",
    std: float = 0.01,
    seed: int | None = None,
) -> InitPlan:
    """Plan, then apply; the arguments, errors and result are those of :func:`plan`."""
    init_plan = plan(model, example, method=method, mode=mode, std=std, seed=seed)
    apply(init_plan, model)
    return init_plan
