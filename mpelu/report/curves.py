"""Learning curves of several nets, one panel below the other: training loss, training error, test error."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpelu.report.drawing import INK, WIDTH_INCHES, add_legend, drawing, height_inches, line_style, svg_text
from mpelu.report.plots import LEGEND_LETTERS, curve
from mpelu.report.summary import Record, finite

PANELS = {
    "train_loss": "training loss",
    "train_error_percent": "training error (%)",
    "test_error_percent": "test error (%)",
}
"""Columns of a history, and what stands beside their panels."""
PANEL_INCHES = 2.1


def panels(groups: Mapping[str, Sequence[Record]], *, name: str, keys: Sequence[str] = tuple(PANELS)) -> str:
    """Return learning curves as SVG: means over seeds with their range, and a cross where a run diverged.

    Args:
        groups: Runs of each net, by its name in the legend; those without runs are left out of the drawing.
        name: Prefix of every id in the figure, so that several figures can stand in one page.
        keys: Columns of the histories, keys of :data:`PANELS`, from top to bottom.
    """
    shown = {label: runs for label, runs in groups.items() if runs}
    names = [textwrap.fill(label, LEGEND_LETTERS) for label in shown]
    height = height_inches(names, columns=1) - 3.35 + PANEL_INCHES * len(keys)
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        for axes, key in zip(figure.subplots(len(keys), sharex=True, squeeze=False).flat, keys, strict=True):
            for index, runs in enumerate(shown.values()):
                _draw(axes, runs, key, index)
            _limit(axes, list(shown.values()), key)
            axes.set_ylabel(PANELS[key])
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(figure, names, columns=1)
        title = ", ".join(PANELS[key] for key in keys)
        description = f"{title} by epoch; dotted lines: guessing. Nets: {'; '.join(names) or 'none was trained yet'}."
        return svg_text(figure, name=name, title=title.capitalize(), description=description)


def _draw(axes: Axes, runs: Sequence[Record], key: str, index: int) -> None:
    style = line_style(index)
    finished = [run for run in runs if run["outcome"] == "finished"]
    if finished:
        points = curve(finished, key)
        every = max(1, len(points.epochs) // 7)
        axes.plot(points.epochs, points.mean, **style, markevery=(index % every, every))
        axes.fill_between(points.epochs, points.low, points.high, color=style["color"], alpha=0.18, linewidth=0)
    for run in runs:
        points = curve([run], key)
        if run["outcome"] != "finished" and points.epochs:
            axes.plot(points.epochs, points.mean, color=style["color"], linestyle=style["linestyle"], linewidth=1)
            axes.plot(points.epochs[-1:], points.mean[-1:], color=style["color"], marker="x", markersize=8)


def _limit(axes: Axes, groups: Sequence[Sequence[Record]], key: str) -> None:
    """Start at 0, end little above guessing, whose value is a dotted line: no net of interest stays above it."""
    classes = [run["data"]["classes"] for runs in groups for run in runs]
    if not classes:
        return
    chance = math.log(classes[0]) if key == "train_loss" else 100.0 * (1.0 - 1.0 / classes[0])
    greatest = max(
        (value for runs in groups for run in runs for row in run["history"] if (value := finite(row.get(key)))),
        default=chance,
    )
    axes.axhline(chance, color=INK, linestyle=(0, (1, 2.5)), linewidth=1.1, alpha=0.8)
    axes.set_ylim(0.0, min(1.1 * max(greatest, chance), 1.5 * chance))
