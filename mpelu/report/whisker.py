"""An interval as a small picture: its range, its estimate, and the line that it has to clear."""

import math
from collections.abc import Sequence

from mpelu.report.finding import Interval

WIDTH, HEIGHT, MARGIN = 220.0, 30.0, 6.0
MIDDLE = 9.0
MOST_DECIMALS = 4
SIGNIFICANT = 0.04
"""Of the width: an interval narrower than this beside another one gets an axis of its own."""


def number_text(value: float) -> str:
    """Write a number with four significant digits, large ones whole.

    Example:
        >>> number_text(-0.33494), number_text(1696250.0), number_text(2e-14), number_text(0.0)
        ('−0.3349', '1,696,250', '2e−14', '0')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e9 else f"{value:.4g}"
    return signed(text)


def signed(text: str) -> str:
    """Write a true minus sign, and none before a zero."""
    negative = text.startswith("-") and any(digit in text.partition("e")[0] for digit in "123456789")
    return ("−" if negative else "") + text.removeprefix("-").replace("-", "−")


def numbers(interval: Interval) -> tuple[str, str, str]:
    """Write the estimate, the low and the high end of an interval as exactly as its length deserves.

    Example:
        >>> numbers(Interval("", "points", -0.33123, -0.51987, -0.1426, 5, ""))
        ('−0.33', '−0.52', '−0.14')
        >>> numbers(Interval("", "", 0.5557, 0.5557, 0.5557, 1, "computed"))
        ('0.5557', '0.5557', '0.5557')
    """
    values = (interval.estimate, interval.low, interval.high)
    length = interval.high - interval.low
    if not 1e-3 * abs(interval.estimate) < length < 1e3 or length < 1e-4:
        estimate, low, high = map(number_text, values)
    else:
        decimals = max(0, 1 - math.floor(math.log10(length)))
        while decimals < MOST_DECIMALS and any(_looks_like_the_line(end, interval, decimals) for end in values[1:]):
            decimals += 1
        estimate, low, high = (signed(f"{value:,.{decimals}f}") for value in values)
    return estimate, low, high


def interval_text(interval: Interval) -> str:
    """Write an interval in words.

    Example:
        >>> interval_text(Interval("a minus b", "points", -0.33, -0.52, -0.14, 5, "paired Student, 95 %"))
        'a minus b: −0.33 points (−0.52 to −0.14; n = 5; paired Student, 95 %)'
    """
    estimate, low, high = numbers(interval)
    unit = f" {interval.unit}" if interval.unit else ""
    span = "" if low == high else f"{low} to {high}; "
    bound = "" if interval.bound is None else f"; against {number_text(interval.bound)}"
    method = f"; {interval.method}" if interval.method else ""
    return f"{interval.quantity}: {estimate}{unit} ({span}n = {interval.n:,}{bound}{method})"


def _looks_like_the_line(value: float, interval: Interval, decimals: int) -> bool:
    """Return whether rounding hides on which side of the line a value lies."""
    return value != _line(interval) and round(value - _line(interval), decimals) == 0


def whiskers(intervals: Sequence[Interval]) -> tuple[str, ...]:
    """Return one SVG for each interval; those of one unit share an axis, so that their lengths can be compared.

    The upright line is the bound of the interval, and 0 where it has none.
    """
    domains = {unit: _domain([each for each in intervals if each.unit == unit]) for unit in {i.unit for i in intervals}}
    return tuple(_whisker(interval, *_fitting(interval, domains[interval.unit])) for interval in intervals)


def _domain(intervals: Sequence[Interval]) -> tuple[float, float]:
    ends = [
        value
        for interval in intervals
        for value in (interval.low, interval.high, interval.estimate, _line(interval))
        if math.isfinite(value)
    ]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _line(interval: Interval) -> float:
    return 0.0 if interval.bound is None else interval.bound


def _fitting(interval: Interval, shared: tuple[float, float]) -> tuple[float, float]:
    own = _domain([interval])
    return shared if own[1] - own[0] >= SIGNIFICANT * (shared[1] - shared[0]) else own


def _whisker(interval: Interval, first: float, last: float) -> str:
    def x(value: float) -> float:
        inside = min(max(value, first), last)
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (inside - first) / (last - first), 1)

    low, high = x(interval.low), x(interval.high)
    line = x(_line(interval))
    anchor = "start" if line < 20 else "end" if line > WIDTH - 20 else "middle"
    ends = "".join(
        f"M{end:g} {MIDDLE - 4:g}v8"
        if math.isfinite(value)
        else f"M{end - step:g} {MIDDLE - 4:g}l{step:g} 4l{-step:g} 4"
        for end, value, step in ((low, interval.low, -5), (high, interval.high, 5))
    )
    return (
        f'<svg class="whisker" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="xMinYMid" aria-hidden="true">'
        f'<path class="axis" d="M{MARGIN:g} {MIDDLE:g}H{WIDTH - MARGIN:g}"/>'
        f'<path class="bound" d="M{line:g} 1V{2 * MIDDLE - 1:g}"/>'
        f'<text x="{line:g}" y="{HEIGHT - 2:g}" text-anchor="{anchor}">{number_text(_line(interval))}</text>'
        f'<path class="range" d="M{low:g} {MIDDLE:g}H{high:g}{ends}"/>'
        f'<circle cx="{x(interval.estimate):g}" cy="{MIDDLE:g}" r="3.6"/></svg>'
    )
