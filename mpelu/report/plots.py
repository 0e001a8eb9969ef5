"""Figures as SVG text that follows the colour of the text around it and is the same on every run."""

import io
import math
import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mpelu.report.summary import Record, Summary, finite, labels

# Okabe and Ito's colours for all kinds of colour vision, moved to a lightness that reads on white and on near-black
# (contrast of at least 3 with both); the fifth and the sixth lean on their marks.
COLORS = ("#d55e00", "#1f7fc4", "#0a8f6a", "#b8609a", "#8c7a1d", "#7d7f86")
LINESTYLES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

WIDTH_INCHES = 5.4
CEILING = 2.5  # times chance: above it the vertical axis is cut
LEGEND_LETTERS = 60
INK = "#010203"  # stands for the colour of the text around the figure, and is replaced by currentColor
STYLE = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 10.5,
    "grid.alpha": 0.13,
    "grid.color": INK,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "mpelu",
    "text.color": INK,
    "text.parse_math": False,  # a recipe's name may hold a dollar sign
    "xtick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.color": INK,
    "ytick.major.width": 0.7,
}


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


def standalone(svg: str) -> str:
    """Return a figure as a file of its own: black on white, since no page around it sets the colours."""
    return svg.replace("<svg ", '<svg style="background: white; color: black" ', 1)


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
    with _drawing():
        figure = Figure(figsize=(WIDTH_INCHES, _height(list(shapes), columns=1)), layout="constrained")
        axes = figure.add_subplot()
        for index, y in enumerate(shapes.values()):
            axes.plot(x, y, **_line(index), markevery=(8 * index, 40))
        axes.set_xlabel("x")
        axes.set_ylabel("f(x)")
        _legend(figure, list(shapes), columns=1)
        description = "f(x) = x for x > 0, else alpha (exp(beta x) - 1). Shown: " + "; ".join(shapes) + "."
        return _svg(figure, name=name, title="Shapes of activations", description=description)


def _mpelu(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(beta * np.minimum(x, 0.0)))


def _history_figure(
    summaries: Sequence[Summary], *, key: str, chance: float, chance_label: str, y_label: str, name: str
) -> str:
    names = [_legend_name(label, summary) for label, summary in zip(labels(summaries), summaries, strict=True)]
    columns = 1 if max(map(len, names)) > 26 else 2
    ceiling = CEILING * chance
    with _drawing():
        figure = Figure(figsize=(WIDTH_INCHES, _height(names, columns=columns)), layout="constrained")
        axes = figure.add_subplot()
        for index, summary in enumerate(summaries):
            _draw_recipe(axes, summary, key=key, index=index, ceiling=ceiling)
        _draw_chance(axes, chance, chance_label)
        _limit(axes, chance=chance, greatest=_greatest(summaries, key), ceiling=ceiling)
        axes.set_xlabel("epoch")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, names, columns=columns)
        description = f"{y_label} by epoch; dotted line: {chance_label}. Recipes: {'; '.join(names)}."
        return _svg(figure, name=name, title=f"{y_label.capitalize()} by epoch", description=description)


def _legend_name(label: str, summary: Summary) -> str:
    name = f"{label} ({len(summary.diverged)} of {len(summary.runs)} diverged)" if summary.diverged else label
    return textwrap.fill(name, LEGEND_LETTERS)


def _draw_recipe(axes: Axes, summary: Summary, *, key: str, index: int, ceiling: float) -> None:
    finished = [run for run in summary.runs if run["outcome"] == "finished"]
    color = COLORS[index % len(COLORS)]
    if finished:
        points = curve(finished, key)
        every = max(1, len(points.epochs) // 7)
        axes.plot(points.epochs, points.mean, **_line(index), markevery=(index % every, every))
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


def _line(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINESTYLES[index % len(LINESTYLES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def _height(names: Sequence[str], *, columns: int) -> float:
    lines = sum(name.count("\n") + 1 for name in names)
    return 3.35 + 0.2 * math.ceil(lines / columns)


def _legend(figure: Figure, names: Sequence[str], *, columns: int) -> None:
    handles = [Line2D([], [], **_line(index)) for index in range(len(names))]
    blanks = ["-"] * len(names)  # set below: a legend drops a label that starts with an underscore
    legend = figure.legend(
        handles, blanks, loc="outside lower left", ncols=columns, frameon=False, handlelength=3.6, borderpad=0.2
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw with our style only, whatever the user's own matplotlibrc says."""
    with style.context(["default", STYLE]):
        yield


def _svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(
        r"^.*?(?=<svg )|<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", buffer.getvalue(), flags=re.S
    )
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    head = f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-desc">{escape(description)}</desc>'
    root = (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" stroke-linejoin="round" font-family="sans-serif" '
    )
    return re.sub(r"<svg ([^>]*)>", lambda match: f"{root}{match[1]}>\n{head}", svg, count=1)
