"""Shapes of activations, several panels side by side."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mpelu.report.drawing import WIDTH_INCHES, drawing, line_style, svg_text


def shapes_figure(x: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]], *, name: str) -> str:
    """Return one panel for each group of curves as SVG, all with the same axes.

    Args:
        x: Inputs.
        panels: By title, the outputs of each activation by its name.
        name: Prefix of every id in the figure.
    """
    with drawing():
        figure = Figure(figsize=(1.4 * WIDTH_INCHES, 4.1), layout="constrained")
        areas = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, curves) in zip(areas, panels.items(), strict=True):
            _draw(axes, x, curves)
            axes.set_title(title, fontsize=10.5)
        areas[0].set_ylabel("f(y)")
        shown = "; ".join(f"{title}: {', '.join(curves)}" for title, curves in panels.items())
        return svg_text(figure, name=name, title="Shapes of activations", description=f"{shown}.")


def _draw(axes: Axes, x: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    for index, (label, y) in enumerate(curves.items()):
        axes.plot(x, y, **line_style(index), markevery=(5 * index + 4, 24), label=label)
    axes.set_xlabel("y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, handlelength=3.6, fontsize=9.5)
