"""Residual blocks as boxes from top to bottom: a branch, a shortcut around it, and what follows where they meet."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from mpelu.report.drawing import COLORS, INK, drawing, svg_text

BOX_WIDTH, BOX_HEIGHT = 1.5, 0.56
GAP = 0.4
"""Between boxes, for the arrow."""
LANE = 0.5
"""From the middle of a box to its side and on to the shortcut."""
COLUMN = 3.1
INCHES = 0.58
"""Of a unit of length."""


@dataclass(frozen=True)
class Diagram:
    """A block.

    Attributes:
        title: Above it.
        branch: Texts of the boxes beside the shortcut, from top to bottom.
        after: Texts of the boxes below the addition.
        kinds: Of each text, which decides its colour: index into the colours of :mod:`mpelu.report.drawing`.
    """

    title: str
    branch: tuple[str, ...]
    after: tuple[str, ...]
    kinds: dict[str, int]


def diagram_figure(diagrams: Sequence[Diagram], *, name: str, title: str) -> str:
    """Return blocks side by side as SVG.

    Args:
        diagrams: From left to right.
        name: Prefix of every id in the figure.
        title: For readers who do not see it; the description lists the boxes.
    """
    depth = max(len(each.branch + each.after) for each in diagrams) * (BOX_HEIGHT + GAP) + 2.2
    width = COLUMN * len(diagrams)
    with drawing():
        figure = Figure(figsize=(INCHES * width, INCHES * depth))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_xlim(0.0, width)
        axes.set_ylim(-depth, 0.0)
        axes.set_axis_off()
        for index, each in enumerate(diagrams):
            _draw(axes, each, COLUMN * index + 0.15 + BOX_WIDTH / 2)
        return svg_text(figure, name=name, title=title, description=" ".join(map(described, diagrams)))


def described(diagram: Diagram) -> str:
    """Return a block in words.

    Example:
        >>> described(Diagram("(d) nopre", ("conv", "BN"), (), {}))
        '(d) nopre: conv, BN, addition to the shortcut.'
    """
    return f"{diagram.title}: {', '.join((*diagram.branch, 'addition to the shortcut', *diagram.after))}."


def _draw(axes: Axes, diagram: Diagram, x: float) -> None:
    axes.text(x - BOX_WIDTH / 2, -0.35, diagram.title, fontsize=9.5, ha="left", va="center")
    y = -0.75
    fork = y - 0.3
    for index, text in enumerate(diagram.branch):
        top = y - GAP - (0.2 if index == 0 else 0.0)  # room for the fork
        _arrow(axes, (x, y), (x, top))
        _box(axes, diagram, text, x, top)
        y = top - BOX_HEIGHT
    meeting = y - GAP - 0.14
    _arrow(axes, (x, y), (x, meeting + 0.14))
    axes.add_patch(Circle((x, meeting), 0.14, facecolor="none", edgecolor=INK, linewidth=1.0))
    axes.plot([x - 0.14, x + 0.14], [meeting, meeting], color=INK, linewidth=1.0)
    axes.plot([x, x], [meeting - 0.14, meeting + 0.14], color=INK, linewidth=1.0)
    side = x + BOX_WIDTH / 2 + LANE
    axes.plot([x, side, side], [fork, fork, meeting], color=INK, linewidth=1.0)
    _arrow(axes, (side, meeting), (x + 0.14, meeting))
    y = meeting - 0.14
    for text in diagram.after:
        _arrow(axes, (x, y), (x, y - GAP))
        _box(axes, diagram, text, x, y - GAP)
        y -= GAP + BOX_HEIGHT
    _arrow(axes, (x, y), (x, y - GAP))


def _box(axes: Axes, diagram: Diagram, text: str, x: float, top: float) -> None:
    box = FancyBboxPatch(
        (x - BOX_WIDTH / 2, top - BOX_HEIGHT),
        BOX_WIDTH,
        BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.1",
        facecolor="none",
        edgecolor=COLORS[diagram.kinds[text] % len(COLORS)],
        linewidth=1.6,
    )
    axes.add_patch(box)
    axes.text(x, top - BOX_HEIGHT / 2, text, fontsize=9, ha="center", va="center_baseline")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7, shrinkA=0, shrinkB=0, color=INK, linewidth=1.0)
    )
