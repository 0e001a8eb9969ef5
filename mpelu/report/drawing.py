"""How figures are drawn: SVG text that follows the colour of the text around it and is the same on every run."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's colours for all kinds of colour vision, moved to a lightness that reads on white and on near-black
# (contrast of at least 3 with both); the fifth and the sixth lean on their marks.
COLORS = ("#d55e00", "#1f7fc4", "#0a8f6a", "#b8609a", "#8c7a1d", "#7d7f86")
LINESTYLES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

WIDTH_INCHES = 5.4
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


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our style only, whatever the user's own matplotlibrc says."""
    with style.context(["default", STYLE]):
        yield


def svg_text(figure: Figure, *, name: str, title: str, description: str) -> str:
    """Return a figure as SVG.

    Args:
        figure: Drawn within :func:`drawing`.
        name: Prefix of every id in the figure, so that several figures can stand in one page.
        title: For readers who do not see it; so is the description.
        description: A sentence or two.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(
        r"^.*?(?=<svg )|<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", buffer.getvalue(), flags=re.S
    )
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = with_ids(svg, name)
    svg = svg.replace(INK, "currentColor")
    head = f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-desc">{escape(description)}</desc>'
    root = (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" stroke-linejoin="round" font-family="sans-serif" '
    )
    return re.sub(r"<svg ([^>]*)>", lambda match: f"{root}{match[1]}>\n{head}", svg, count=1)


def with_ids(svg: str, prefix: str) -> str:
    """Return a figure with a prefix before each of its ids, so that it can stand in a page beside its like."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    return re.sub(
        r'aria-(labelledby|describedby)="([^"]*)"',
        lambda found: f'aria-{found[1]}="{" ".join(f"{prefix}-{one}" for one in found[2].split())}"',
        svg,
    )


def standalone(svg: str) -> str:
    """Return a figure as a file of its own: black on white, since no page around it sets the colours."""
    return svg.replace("<svg ", '<svg style="background: white; color: black" ', 1)


def make_logarithmic(axes: Axes) -> None:
    """Give axes, after everything is drawn, a logarithmic height of one decade at least, so that noise looks small."""
    if not math.isfinite(axes.dataLim.minposy):  # nothing positive was drawn
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10.0 * low:
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / math.sqrt(10.0), middle * math.sqrt(10.0))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own needs its math
    axes.yaxis.set_minor_formatter(NullFormatter())


def line_style(index: int) -> dict[str, Any]:
    """Return how the line of an index is drawn: colour, dashes and marks differ together."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINESTYLES[index % len(LINESTYLES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def height_inches(names: Sequence[str], *, columns: int) -> float:
    """Return how high a figure is that has a legend of these names below."""
    lines = sum(name.count("\n") + 1 for name in names)
    return 3.35 + 0.2 * math.ceil(lines / columns)


def add_legend(figure: Figure, names: Sequence[str], *, columns: int) -> None:
    """Put a legend below a figure; the names belong to the lines of index 0, 1 and so on."""
    handles = [Line2D([], [], **line_style(index)) for index in range(len(names))]
    blanks = ["-"] * len(names)  # set below: a legend drops a label that starts with an underscore
    legend = figure.legend(
        handles, blanks, loc="outside lower left", ncols=columns, frameon=False, handlelength=3.6, borderpad=0.2
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
