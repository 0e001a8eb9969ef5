"""A row of a published table: the recipe behind it, at the paper's scale and at one for two cores."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mpelu.train.recipe import Recipe


@dataclass(frozen=True)
class Target:
    """A cell of a table of the paper: ``where`` picks the one line of ``mpelu/report/paper/<table>.csv``.

    Attributes:
        table: e.g. ``table01``.
        where: Columns and their values, which together hold for one line.
        column: The column of the number.
    """

    table: str
    where: Mapping[str, str]
    column: str


@dataclass(frozen=True)
class Row:
    """How one row of a table was made.

    Attributes:
        name: What it is called on the command line, e.g. ``nin-mpelu``.
        about: A few words for a list.
        paper: The recipe at full scale, as the text of the paper has it.
        code: What the released code has instead: fields of the recipe and their values.
        cpu: The fields that are different at scale ``cpu``; ``data`` is not among them. ``limit`` and ``resize`` do not
            hold for the built-in digits, which are 1,500 images of 16 pixels.
        factors: By what ``cpu`` shortens, in words and numbers, e.g. "width 64 to 16", and what is kept.
        targets: The cells that the row stands for, if the paper's text gives them or leaves them unknown.
    """

    name: str
    about: str
    paper: Recipe
    code: Mapping[str, Any] = field(default_factory=dict)
    cpu: Mapping[str, Any] = field(default_factory=dict)
    factors: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()

    def recipe(
        self,
        scale: Literal["paper", "cpu"] = "paper",
        *,
        follow: Literal["paper", "code"] = "paper",
        data: str | None = None,
    ) -> Recipe:
        """Return the recipe at a scale, following the text of the paper or the released code where they disagree.

        Args:
            scale: ``paper`` or ``cpu``.
            follow: ``paper`` or ``code``.
            data: In the place of the row's own data set; at scale ``cpu`` that is the built-in digits.
        """
        changes: dict[str, Any] = dict(self.code) if follow == "code" else {}
        if scale == "cpu":
            changes |= {**self.cpu, "data": "digits"}
        if data is not None:
            changes["data"] = data
        if scale == "cpu" and changes["data"] == "digits":
            changes |= {"limit": None, "resize": None}
        return dataclasses.replace(self.paper, **changes)
