"""What a conversion did: a row for each activation, what was left and why, and the way back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from mpelu.errors import UsageError

HEAD = ("activation", "old", "new", "channels", "alpha", "beta", "error", "largest")


@dataclass(frozen=True)
class Row:
    """One use of an activation that was converted.

    Attributes:
        name: Of its node in the graph of the model as it was.
        old: What was there, as text.
        new: Class of the unit.
        unit: Path of the unit in the model; uses that share a unit have the same.
        channels: Number of parameters of each kind that serve this use.
        channel_dim: Dim of the channels, None where one parameter serves all entries.
        channel_rule: The layer that says so, or why it is so.
        alpha: One value, or one for each channel; None where the unit has none.
        beta: As alpha.
        error: Root mean square of new minus old over the inputs of the activation; None for a unit that cannot be
            evaluated apart from the model.
        largest_error: The largest difference at any of these inputs.
        measured: True where the inputs are those of the example, False where N(0, 1) was assumed: on the meta device,
            and where the example has no negative input there.
    """

    name: str
    old: str
    new: str
    unit: str
    channels: int
    channel_dim: int | None
    channel_rule: str
    alpha: tuple[float, ...] | None
    beta: tuple[float, ...] | None
    error: float | None
    largest_error: float | None
    measured: bool


@dataclass(frozen=True)
class Left:
    """An activation that was not converted, with the reason."""

    name: str
    old: str
    reason: str


@dataclass(eq=False)
class Conversion:
    """What :func:`mpelu.convert` did, in execution order. ``print(conversion)`` is a table.

    Attributes:
        model: The converted model.
        rows: One for each use of a converted activation.
        left: The other activations, each with its reason.
        largest_difference: Between any entry of the outputs before and after, in eval mode on the example; None where
            there are no values (meta device).
    """

    model: nn.Module
    rows: tuple[Row, ...]
    left: tuple[Left, ...]
    largest_difference: float | None
    steps_back: list[Callable[[], None]] = field(repr=False)
    """Each takes back one change; the last one comes first."""

    def undo(self) -> nn.Module:
        """Put everything back: the same module objects, classes and names as before.

        What was learned in the meantime by the other parameters stays; what the units learned is lost.

        Returns:
            The model.

        Raises:
            UsageError: If it was undone before, or the model was changed in between so that there is no way back.
        """
        if not self.steps_back:
            raise UsageError("this conversion was undone before")
        while self.steps_back:
            self.steps_back[-1]()
            self.steps_back.pop()
        return self.model

    def __str__(self) -> str:
        lines = _aligned([HEAD, *(_cells(row) for row in self.rows)])
        if self.largest_difference is not None:
            lines.append(f"largest difference of the outputs: {self.largest_difference:.3g}")
        if any(row.error and not row.measured for row in self.rows):
            lines.append(
                "some errors are for inputs from N(0, 1): the example gives no negative inputs there, or no values"
            )
        if any(row.alpha is not None and row.beta is not None and 0.0 in row.alpha for row in self.rows):
            lines.append(
                "where alpha is 0, the first step of training moves alpha only: the gradient of beta is 0 there"
            )
        if self.left:
            lines += _aligned(
                [("left as it is", "", "reason"), *((row.name, row.old, row.reason) for row in self.left)]
            )
        return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    number = "-" if row.error is None else f"{row.error:.2g}"
    largest = "-" if row.largest_error is None else f"{row.largest_error:.2g}"
    along = "" if row.channel_dim is None else f" (dim {row.channel_dim})"
    return (row.name, row.old, row.new, f"{row.channels}{along}", span(row.alpha), span(row.beta), number, largest)


def span(numbers: Sequence[float] | None) -> str:
    """Return one number, or the smallest and the largest of several."""
    if numbers is None:
        return "-"
    low, high = min(numbers), max(numbers)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
