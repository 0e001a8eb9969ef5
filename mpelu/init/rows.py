"""A plan as data: a row for each parameter, and what the rows say of its values."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpelu.errors import UsageError
from mpelu.init.fill import draw, generator
from mpelu.init.table import table

AS_IS = "as it is"
"""Fill of a parameter that is left alone."""
THROUGH = "through its weight"
"""Fill of a parameter that a parametrization computes a weight from; the weight has a row of its own."""


@dataclass(frozen=True)
class PlanRow:
    """One parameter: what it will be filled with, and why.

    Attributes:
        parameter: Name in the model; of a parametrized weight that of the weight, ``conv.weight``, and of running
            statistics that of the buffer.
        layer: Kind and size of the layer.
        fed_by: The node that feeds it: an activation, "input", a norm, a sum ...
        fill: A distribution of :func:`mpelu.init.draw`, ``constant``, ``through its weight`` or ``as it is``.
        std: Root mean square of the entries; of ``constant`` their value; None where nothing is written.
        equation: Where the number comes from, or why the parameter is left as it is.
        fan: What the variance was divided by, None where there is none.
        gain: std * sqrt(fan).
        slope: Of the negative side of the activation that feeds it, where the method looks at one.
        second_moment: Of the layer's output, as predicted for inputs from N(0, 1) or, after calibration, as measured;
            None where something stands in front of it for which there is no law.
        output_shape: Of the layer for one example.
        shape: Of the parameter.
        groups: Of the convolution.
        blocks: Ranges of rows that are matrices of their own.
        centered: True where the rows of the weight sum to 0 at every tap.
        lr_multiplier: What the learning rate of this parameter is to be multiplied by; see
            :func:`mpelu.optim.param_groups`.
    """

    parameter: str
    layer: str
    fed_by: str
    fill: str
    std: float | None
    equation: str
    fan: float | None = None
    gain: float | None = None
    slope: float | None = None
    second_moment: float | None = None
    output_shape: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    groups: int = 1
    blocks: tuple[tuple[int, int], ...] = ()
    centered: bool = False
    lr_multiplier: float = 1.0

    def values(self, shape: Sequence[int], seed: int) -> Tensor:
        """Return what the parameter is filled with, shape ``shape``, float32 on the CPU.

        They depend on nothing but the row, the shape and the seed.
        """
        assert self.std is not None
        if self.fill == "constant":
            return torch.full(tuple(shape), self.std, dtype=torch.float32, device="cpu")
        stream = generator(seed, self.parameter)
        if not self.centered:
            return draw(
                shape, self.std, distribution=self.fill, groups=self.groups, blocks=self.blocks, generator=stream
            )
        drawn = draw(shape, 1.0, distribution=self.fill, groups=self.groups, blocks=self.blocks, generator=stream)
        numbers = drawn.numpy()  # torch adds up in another order with another number of threads, NumPy does not
        numbers -= numbers.mean(1, keepdims=True, dtype=np.float64)
        return drawn.mul_(self.std / math.sqrt(np.square(numbers, dtype=np.float64).mean()))


@dataclass(frozen=True)
class InitPlan:
    """What will happen to every parameter of a model, weights first and in execution order. ``print(plan)`` is a table.

    Attributes:
        method: Name of the method.
        mode: ``fan_in``, ``fan_out`` or ``average``.
        seed: Of the fill.
        rows: One for each parameter, for each parametrized weight, and for the running statistics that start anew.
        passes: How many passes over the network the calibration took.
    """

    method: str
    mode: str
    seed: int
    rows: tuple[PlanRow, ...]
    passes: int = 0

    @property
    def weights(self) -> tuple[PlanRow, ...]:
        """The rows of the weights that a rule looked at."""
        return tuple(row for row in self.rows if row.fan is not None)

    @property
    def lr_multipliers(self) -> dict[str, float]:
        """The parameters whose learning rate is to differ from that of their kind, with the factor."""
        return {row.parameter: row.lr_multiplier for row in self.rows if row.lr_multiplier != 1.0}

    def to_json(self) -> str:
        """Return the plan as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> "InitPlan":
        """Return the plan that :meth:`to_json` wrote.

        Raises:
            UsageError: If the text is no such plan.
        """
        try:
            fields = json.loads(text)
            return InitPlan(rows=tuple(_row(row) for row in fields.pop("rows")), **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"this is no plan as InitPlan.to_json writes it: {error}") from error

    def __str__(self) -> str:
        return table(self, shutil.get_terminal_size((120, 24)).columns)


def _row(fields: Mapping[str, Any]) -> PlanRow:
    """Return a row from JSON, which has lists for tuples."""
    lists = {name: tuple(fields[name]) for name in ("output_shape", "shape")}
    return PlanRow(**{**fields, **lists, "blocks": tuple((first, behind) for first, behind in fields["blocks"])})
