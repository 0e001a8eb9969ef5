"""A diagnosis as a figure: second moment, gradient norm and correlation by depth, with what is predicted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpelu.diagnostics.distribution import Distribution
from mpelu.diagnostics.linearization import Residual
from mpelu.diagnostics.records import Diagnosis, Estimate, LayerRecord
from mpelu.diagnostics.text import lines_of
from mpelu.report.drawing import (
    COLORS,
    INK,
    WIDTH_INCHES,
    add_legend,
    drawing,
    height_inches,
    line_style,
    make_logarithmic,
    svg_text,
)

BAND = 2.0
"""Standard errors that the band around a prediction reaches to each side."""
PANEL_INCHES = 2.1
NAN = float("nan")


@dataclass(frozen=True)
class Panel:
    """One quantity by depth."""

    title: str
    logarithmic: bool
    measured: Callable[[LayerRecord], float | None]
    predicted: Callable[[LayerRecord], Estimate | None]


PANELS = (
    Panel(
        "second moment",
        logarithmic=True,
        measured=lambda record: record.second_moment,
        predicted=lambda record: record.predicted_second_moment,
    ),
    Panel(
        "gradient norm",
        logarithmic=True,
        measured=lambda record: record.gradient_norm,
        predicted=lambda record: record.predicted_gradient_norm,
    ),
    Panel(
        "correlation",
        logarithmic=False,
        measured=lambda record: record.correlation,
        predicted=lambda record: record.predicted_correlation,
    ),
)


def signal_figure(diagnosis: Diagnosis, before: Diagnosis | None = None, *, name: str = "signal") -> str:
    """Return the signal by depth as SVG: measured with marks, predicted as thin lines in bands.

    A band reaches two standard errors to each side; where the axis is logarithmic, these are relative ones.

    A vertical line stands where a finding of ``diagnosis`` starts.

    Args:
        diagnosis: What is shown.
        before: Another diagnosis to draw beside it.
        name: Prefix of every id in the figure, so that several figures can stand in one page.
    """
    shown = [diagnosis] if before is None else [before, diagnosis]
    labels = ["measured"] if before is None else ["before", "after"]
    records = [[line.record for line in lines_of(each)] for each in shown]
    panels = [panel for panel in PANELS if any(_values(panel, some) for some in records)]
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, 0.7 + PANEL_INCHES * len(panels)), layout="constrained")
        axes = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
        for panel, place in zip(panels, axes, strict=False):
            _draw(place, panel, records)
            _mark_findings(place, diagnosis, records[-1])
        axes[-1].set_xlabel("weight, in order of execution; 0 is the input")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()
        add_legend(figure, labels, columns=2)
        return svg_text(
            figure,
            name=name,
            title=f"Signal by depth in {diagnosis.model}",
            description=_description(diagnosis, before, panels),
        )


def _values(panel: Panel, records: Sequence[LayerRecord]) -> bool:
    return any(panel.measured(record) is not None for record in records)


def _draw(axes: Axes, panel: Panel, series: Sequence[Sequence[LayerRecord]]) -> None:
    for index, records in enumerate(series):
        every = max(1, len(records) // 9)
        measured = [_shown(panel, panel.measured(record)) for record in records]
        axes.plot(range(len(records)), measured, **line_style(index), markevery=(index % every, every))
        expected = [panel.predicted(record) for record in records]
        values = [_shown(panel, None if one is None else one.value) for one in expected]
        axes.plot(range(len(records)), values, color=COLORS[index % len(COLORS)], linewidth=0.8, alpha=0.7)
    if panel.logarithmic:
        make_logarithmic(axes)
    axes.set_ylim(axes.get_ylim())  # a wide band shall not flatten what was measured
    for index, records in enumerate(series):
        bands = [_band(panel, panel.predicted(record)) for record in records]
        low, high = [band[0] for band in bands], [band[1] for band in bands]
        color = COLORS[index % len(COLORS)]
        axes.fill_between(range(len(records)), low, high, color=color, alpha=0.22, linewidth=0)
    axes.set_ylabel(panel.title)


def _band(panel: Panel, expected: Estimate | None) -> tuple[float, float]:
    """Return where the band around a prediction begins and ends; on a logarithmic axis the error is a relative one."""
    if expected is None or not math.isfinite(_shown(panel, expected.value)):
        return NAN, NAN
    if not panel.logarithmic:
        return expected.value - BAND * expected.error, expected.value + BAND * expected.error
    factor = math.exp(min(BAND * expected.error / expected.value, 50.0))
    return expected.value / factor, expected.value * factor


def _shown(panel: Panel, value: float | None) -> float:
    """Return a value that the axis can show; nan leaves a gap."""
    if value is None or not math.isfinite(value):
        return NAN
    return value if value > 0 or not panel.logarithmic else NAN


def _mark_findings(axes: Axes, diagnosis: Diagnosis, records: Sequence[LayerRecord]) -> None:
    places = {record.name: place for place, record in enumerate(records)}
    for finding in diagnosis.verdict.findings:
        if finding.layer in places:
            axes.axvline(places[finding.layer], color=INK, linestyle=(0, (1, 2.5)), linewidth=1.1, alpha=0.8)


def _description(diagnosis: Diagnosis, before: Diagnosis | None, panels: Sequence[Panel]) -> str:
    titles = ", ".join(panel.title for panel in panels)
    versus = "" if before is None else f"; before, it was {before.verdict.state}"
    return f"{titles} at each weight of {diagnosis.model}, which is {diagnosis.verdict.state}{versus}."


def distribution_figure(found: Sequence[Distribution], *, name: str = "distribution") -> str:
    """Return the share of the outputs above each threshold, by weight, as SVG."""
    series = {
        f"y > {limit:.4g}": [each.above[index] for each in found] for index, limit in enumerate(found[0].thresholds)
    }
    numbers = [each.number for each in found]
    return _shares_figure(series, numbers, name=name, title="Outputs above thresholds by layer", x_label="weight")


def residual_figure(found: Sequence[Residual], *, name: str = "residual") -> str:
    """Return the share of the inputs whose residual is below each edge of the histogram, by activation, as SVG."""
    series = {
        f"residual < {edge:g}": [sum(each.histogram[: index + 1]) for each in found]
        for index, edge in enumerate(found[0].edges[1:])
    }
    numbers = list(range(1, len(found) + 1))
    title = "Residual of the linearization by layer"
    return _shares_figure(series, numbers, name=name, title=title, x_label="activation")


def _shares_figure(
    series: Mapping[str, Sequence[float]], numbers: Sequence[int], *, name: str, title: str, x_label: str
) -> str:
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, height_inches(list(series), columns=2)), layout="constrained")
        axes = figure.add_subplot()
        for index, shares in enumerate(series.values()):
            every = max(1, len(shares) // 9)
            percents = [100.0 * share for share in shares]
            axes.plot(numbers, percents, **line_style(index), markevery=(index % every, every))
        axes.set_ylim(0.0, 104.0)
        axes.set_xlabel(f"{x_label}, in order of execution")
        axes.set_ylabel("percent")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(figure, list(series), columns=2)
        return svg_text(figure, name=name, title=title, description=f"Percent by {x_label}: {'; '.join(series)}.")
