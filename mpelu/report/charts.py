"""Curves over epochs as small SVG pictures for pages with many of them: a mean line and a band over the seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mpelu.report.plots import CEILING, Curve, curve
from mpelu.report.provenance import Source
from mpelu.report.summary import Record, finite

LINES = 6
"""Curves in one picture; so many colours can be told apart."""
WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 8.0, 20.0, 30.0
TOLERANCE = 0.35
"""Of a simplified line, in units of the picture, which are about pixels."""


@dataclass(frozen=True)
class Chart:
    """Two pictures of the same runs, and which line is which.

    Attributes:
        loss_svg: Training loss by epoch.
        error_svg: Test error by epoch.
        sources: Of the lines, in the order of their colours.
        several_seeds: Whether there is a band.
    """

    loss_svg: str
    error_svg: str
    sources: tuple[Source, ...]
    several_seeds: bool


@dataclass(frozen=True)
class _Frame:
    """From epochs and values to the picture."""

    epochs: int
    top: float

    def x(self, epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * epoch / max(self.epochs, 1)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, self.top) / self.top


def charts(sources: Sequence[Source]) -> tuple[Chart, ...]:
    """Return the curves of trainings, those on one data set together, at most six in a picture.

    Sources without a history (measurements, runs that diverged in their first epoch) have no curve.
    """
    drawn = [source for source in sources if source.kind == "training" and any(run["history"] for run in source.runs)]
    places: dict[tuple[str, int], list[Source]] = {}
    for source in drawn:
        places.setdefault((source.data, source.runs[0]["data"]["classes"]), []).append(source)
    return tuple(
        _chart(alike[first : first + LINES], classes)
        for (_, classes), alike in places.items()
        for first in range(0, len(alike), LINES)
    )


def simplified(points: Sequence[tuple[float, float]], tolerance: float = TOLERANCE) -> list[tuple[float, float]]:
    """Return the points of a line that are needed for it to stay within a tolerance (Ramer, Douglas and Peucker).

    Distances are taken upright, since the curves are functions of the epoch.

    Example:
        >>> simplified([(0, 0), (1, 1), (2, 2.1), (3, 0)], tolerance=0.2)
        [(0, 0), (2, 2.1), (3, 0)]
    """
    kept = {0, len(points) - 1}
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        (x0, y0), (x1, y1) = points[first], points[last]
        slope = (y1 - y0) / (x1 - x0) if x1 != x0 else 0.0
        off, farthest = max(
            ((abs(points[i][1] - y0 - slope * (points[i][0] - x0)), i) for i in range(first + 1, last)),
            default=(0.0, first),
        )
        if off > tolerance:
            kept.add(farthest)
            spans += [(first, farthest), (farthest, last)]
    return [points[index] for index in sorted(kept) if 0 <= index < len(points)]


def _chart(sources: Sequence[Source], classes: int) -> Chart:
    chance, guess = math.log(classes), 100.0 * (1 - 1 / classes)
    return Chart(
        loss_svg=_picture(sources, "train_loss", "training loss", chance, f"chance, ln {classes}"),
        error_svg=_picture(sources, "test_error_percent", "test error, %", guess, "chance"),
        sources=tuple(sources),
        several_seeds=any(len(_finished(source)) > 1 for source in sources),
    )


def _picture(sources: Sequence[Source], key: str, title: str, chance: float, chance_label: str) -> str:
    rows = [row for source in sources for run in source.runs for row in run["history"]]
    greatest = max((value for row in rows if (value := finite(row.get(key))) is not None), default=0.0)
    top = min(1.08 * max(greatest, chance), CEILING * chance)
    frame = _Frame(epochs=max(row["epoch"] for row in rows), top=top)
    lines = "".join(_lines(source, key, index, frame) for index, source in enumerate(sources))
    cut = (
        f'<text x="{WIDTH - RIGHT:g}" y="12" text-anchor="end">cut; greatest {greatest:.3g}</text>'
        if greatest > top
        else ""
    )
    label = escape(f"{title} by epoch; the list below names the lines", quote=True)
    y = frame.y(chance)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}">'
        f'<text class="name" x="0" y="12">{escape(title)}</text>{cut}{_axes(frame)}'
        f'<path class="chance" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>'
        f'<text x="{WIDTH - RIGHT:g}" y="{y - 4:.1f}" text-anchor="end">{escape(chance_label)}</text>{lines}</svg>'
    )


def _axes(frame: _Frame) -> str:
    base = HEIGHT - BOTTOM
    parts = [f'<text x="{WIDTH - RIGHT:g}" y="{HEIGHT - 2:g}" text-anchor="end">epoch</text>']
    for value in ticks(frame.top):
        y = frame.y(value)
        parts.append(f'<path class="rule" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(frame.epochs):
        if value == int(value):
            x = frame.x(value)
            parts.append(f'<text x="{x:.1f}" y="{base + 14:g}" text-anchor="middle">{value:g}</text>')
    return "".join(parts)


def ticks(top: float) -> list[float]:
    """Return from 0 on the multiples of 1, 2 or 5 times a power of ten that an axis shows, four to eight of them.

    Example:
        >>> ticks(2.4), ticks(30)
        ([0.0, 0.5, 1.0, 1.5, 2.0], [0.0, 10.0, 20.0, 30.0])
    """
    power = 10.0 ** math.floor(math.log10(top / 3))
    step = max(power * factor for factor in (1, 2, 5) if power * factor <= top / 3)
    return [float(f"{step * index:.12g}") for index in range(math.floor(top / step + 1e-9) + 1)]


def _lines(source: Source, key: str, index: int, frame: _Frame) -> str:
    finished = _finished(source)
    parts = []
    if finished and (points := curve(finished, key)).epochs:
        if len(finished) > 1:
            parts.append(f'<path class="band c{index}" d="{_band(points, frame)}"/>')
        parts.append(f'<path class="line c{index}" d="{_path(points.epochs, points.mean, frame)}"/>')
    for run in source.runs:
        if run["outcome"] == "diverged" and (points := curve([run], key)).epochs:
            x, y = frame.x(points.epochs[-1]), frame.y(points.mean[-1])
            parts.append(f'<path class="thin c{index}" d="{_path(points.epochs, points.mean, frame)}"/>')
            parts.append(f'<path class="cross c{index}" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8"/>')
    return "".join(parts)


def _finished(source: Source) -> list[Record]:
    return [run for run in source.runs if run["outcome"] == "finished"]


def _path(epochs: Sequence[int], values: Sequence[float], frame: _Frame, places: int | None = 1) -> str:
    points = [(frame.x(epoch), frame.y(value)) for epoch, value in zip(epochs, values, strict=True)]
    if len(points) == 1:  # a line of no length has round ends, and so is a dot
        points *= 2
    return "M" + "L".join(f"{round(x, places):g} {round(y, places):g}" for x, y in simplified(points))


def _band(points: Curve, frame: _Frame) -> str:
    there, back = (_path(points.epochs, values, frame, places=None) for values in (points.high, points.low))
    return f"{there}L{'L'.join(reversed(back[1:].split('L')))}Z"
