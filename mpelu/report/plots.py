"""Figures of runs: curves by epoch, and shapes of activations."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpelu.report.drawing import (
    COLORS,
    INK,
    LINESTYLES,
    WIDTH_INCHES,
    add_legend,
    drawing,
    height_inches,
    line_style,
    svg_text,
)
from mpelu.report.summary import Record, Summary, finite, labels

CEILING = 2.5  # times chance: above it the vertical axis is cut
LEGEND_LETTERS = 60


@dataclass(frozen=True)
class Curve:
    """One number by epoch: its mean, least and greatest over the seeds, where every seed has one."""

    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curve(runs: Sequence[Record], key: str) -> Curve:
    """Return one number of the history by epoch, over all given runs; epochs that a run lacks are left out."""
    by_run = [{row["epoch"]: finite(row.get(key)) for row in run["history"]} for run in runs]
    by_epoch = {
        epoch: [value for values in by_run if (value := values.get(epoch)) is not None]
        for epoch in sorted({epoch for values in by_run for epoch in values})
    }
    complete = {epoch: values for epoch, values in by_epoch.items() if len(values) == len(runs)}
    return Curve(
        epochs=tuple(complete),
        mean=tuple(statistics.fmean(values) for values in complete.values()),
        low=tuple(map(min, complete.values())),
        high=tuple(map(max, complete.values())),
    )


def loss_curves(summaries: Sequence[Summary], *, name: str = "train-loss") -> str:
    """Return the training loss by epoch as SVG, with the loss of guessing, ln(classes), as a dotted line.

    Args:
        summaries: Recipes on one data set.
        name: Prefix of every id in the figure, so that several figures can stand in one page.
    """
    classes = summaries[0].classes
    chance = math.log(classes)
    return _history_figure(
        summaries,
        key="train_loss",
        chance=chance,
        chance_label=f"chance, ln {classes} = {chance:.2f}",
        y_label="training loss",
        name=name,
    )


def error_curves(summaries: Sequence[Summary], *, name: str = "test-error") -> str:
    """Return the test error by epoch as SVG, with the error of guessing as a dotted line; arguments as for the loss."""
    chance = 100.0 * (1.0 - 1.0 / summaries[0].classes)
    return _history_figure(
        summaries,
        key="test_error_percent",
        chance=chance,
        chance_label=f"chance, {chance:.3g} %",
        y_label="test error (%)",
        name=name,
    )


def activation_shapes(*, name: str = "activation-shapes") -> str:
    """Return ReLU, PReLU, ELU and two MPELUs as SVG; the second MPELU is all but PReLU with slope 0.25."""
    x = np.linspace(-4.0, 2.0, 241)
    shapes = {
        "ReLU": np.maximum(x, 0.0),
        "PReLU, slope 0.25": np.where(x > 0, x, 0.25 * x),
        "ELU, alpha 1": _mpelu(x, 1.0, 1.0),
        "MPELU, alpha 3, beta 1": _mpelu(x, 3.0, 1.0),
        "MPELU, alpha 25.6302, beta 0.01": _mpelu(x, 25.6302, 0.01),
    }
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, height_inches(list(shapes), columns=1)), layout="constrained")
        axes = figure.add_subplot()
        for index, y in enumerate(shapes.values()):
            axes.plot(x, y, **line_style(index), markevery=(8 * index, 40))
        axes.set_xlabel("x")
        axes.set_ylabel("f(x)")
        add_legend(figure, list(shapes), columns=1)
        description = "f(x) = x for x > 0, else alpha (exp(beta x) - 1). Shown: " + "; ".join(shapes) + "."
        return svg_text(figure, name=name, title="Shapes of activations", description=description)


def _mpelu(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(beta * np.minimum(x, 0.0)))


def _history_figure(
    summaries: Sequence[Summary], *, key: str, chance: float, chance_label: str, y_label: str, name: str
) -> str:
    names = [_legend_name(label, summary) for label, summary in zip(labels(summaries), summaries, strict=True)]
    columns = 1 if max(map(len, names)) > 26 else 2
    ceiling = CEILING * chance
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, height_inches(names, columns=columns)), layout="constrained")
        axes = figure.add_subplot()
        for index, summary in enumerate(summaries):
            _draw_recipe(axes, summary, key=key, index=index, ceiling=ceiling)
        _draw_chance(axes, chance, chance_label)
        _limit(axes, chance=chance, greatest=_greatest(summaries, key), ceiling=ceiling)
        axes.set_xlabel("epoch")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(figure, names, columns=columns)
        description = f"{y_label} by epoch; dotted line: {chance_label}. Recipes: {'; '.join(names)}."
        return svg_text(figure, name=name, title=f"{y_label.capitalize()} by epoch", description=description)


def _legend_name(label: str, summary: Summary) -> str:
    name = f"{label} ({len(summary.diverged)} of {len(summary.runs)} diverged)" if summary.diverged else label
    return textwrap.fill(name, LEGEND_LETTERS)


def _draw_recipe(axes: Axes, summary: Summary, *, key: str, index: int, ceiling: float) -> None:
    finished = [run for run in summary.runs if run["outcome"] == "finished"]
    color = COLORS[index % len(COLORS)]
    if finished:
        points = curve(finished, key)
        every = max(1, len(points.epochs) // 7)
        axes.plot(points.epochs, points.mean, **line_style(index), markevery=(index % every, every))
        if len(finished) > 1:
            axes.fill_between(points.epochs, points.low, points.high, color=color, alpha=0.18, linewidth=0)
    for run in summary.runs:
        if run["outcome"] == "diverged":
            points = curve([run], key)
            axes.plot(
                points.epochs, points.mean, color=color, linestyle=LINESTYLES[index % len(LINESTYLES)], linewidth=1
            )
            end = [min(value, ceiling) for value in points.mean[-1:]]
            axes.plot(points.epochs[-1:], end, color=color, marker="x", markersize=8, markeredgewidth=2, clip_on=False)


def _draw_chance(axes: Axes, chance: float, label: str) -> None:
    axes.axhline(chance, color=INK, linestyle=(0, (1, 2.5)), linewidth=1.1, alpha=0.8)
    axes.annotate(
        label, xy=(1.0, chance), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
        ha="right", va="bottom", fontsize=9,
    )  # fmt: skip


def _greatest(summaries: Sequence[Summary], key: str) -> float:
    histories = [run["history"] for summary in summaries for run in summary.runs]
    return max(
        (value for history in histories for row in history if (value := finite(row.get(key))) is not None), default=0.0
    )


def _limit(axes: Axes, *, chance: float, greatest: float, ceiling: float) -> None:
    """Start at 0 and end at the ceiling, and say so: a run far above chance would flatten every other curve."""
    axes.set_ylim(0.0, min(1.15 * max(greatest, chance), ceiling))
    if greatest > ceiling:
        note = f"cut at {ceiling:.3g}; the greatest value is {greatest:.3g}"
        axes.text(1.0, 1.015, note, transform=axes.transAxes, fontsize=9, ha="right")
