"""One self-contained page about the reproduction: claims, tables and figures, and behind each number its runs."""

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from mpelu.report import cells
from mpelu.report.charts import Chart, charts
from mpelu.report.drawing import with_ids
from mpelu.report.finding import OUTCOMES, Finding, Interval
from mpelu.report.grid import UNKNOWN, Cell, Grid, Picture
from mpelu.report.provenance import Provenance, Source, error_text, own_settings, trace, values_text
from mpelu.report.reproduction import (
    Judged,
    Reproduction,
    Shown,
    counts,
    counts_by_setting,
    has_numbers,
    parts,
    setting_text,
)
from mpelu.report.reproduction_text import HOW_TO_READ, exhibit_title, grid_columns, lead, paper_text
from mpelu.report.templates import templates
from mpelu.report.whisker import interval_text, numbers, signed, whiskers

TITLE = "MPELU, reproduced"
ON_THE_FACE = 4
"""Intervals of a claim that are seen before it is opened."""
REFUSED = ("script", "foreignObject", "image", "iframe", "animate", "set", "a")


@dataclass(frozen=True)
class DrawnInterval:
    """An interval with its picture."""

    interval: Interval
    svg: Markup
    estimate: str
    low: str
    high: str


@dataclass(frozen=True)
class DrawnFinding:
    """A finding with its pictures and the runs behind it."""

    finding: Finding
    setting: str
    intervals: tuple[DrawnInterval, ...]
    sources: tuple[Source, ...]
    charts: tuple[Chart, ...]

    @property
    def runs(self) -> int:
        return len(self.finding.runs)


@dataclass(frozen=True)
class DrawnClaim:
    """A claim with its findings, the weightiest and the others."""

    number: int
    main: DrawnFinding
    others: tuple[DrawnFinding, ...]


@dataclass(frozen=True)
class DrawnView:
    """A table or a picture at one setting."""

    told: bool
    setting: str
    grid: Grid | None
    picture: Picture | None
    svg: Markup
    charts: tuple[Chart, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class DrawnExhibit:
    """A table or a figure at every setting."""

    name: str
    title: str
    views: tuple[DrawnView, ...]


def render_reproduction(reproduction: Reproduction, *, title: str = TITLE) -> str:
    """Return the reproduction as one HTML page that needs no script and no network, the same for the same arguments.

    Raises:
        ValueError: If a picture holds more than a drawing: a script, a link or anything from outside.
    """
    provenance = trace(reproduction.records)
    found = counts(reproduction.claims)
    exhibits = [_exhibit(shown, provenance) for shown in reproduction.exhibits]
    return (
        templates()
        .get_template("reproduction.html.jinja")
        .render(
            title=title,
            lead=lead(reproduction),
            outcomes=OUTCOMES,
            counts=found,
            by_setting=counts_by_setting(reproduction.claims),
            parts=[
                (name, [_claim(claim, provenance) for claim in alike]) for name, alike in parts(reproduction.claims)
            ],
            claims=reproduction.claims,
            tables=[each for each in exhibits if each.name.startswith("table")],
            figures=[each for each in exhibits if not each.name.startswith("table")],
            left_out=reproduction.left_out,
            how_to_read=HOW_TO_READ,
            provenance=provenance,
            cells=cells,
            face=ON_THE_FACE,
            unknown=UNKNOWN,
            paper_text=paper_text,
            interval_text=interval_text,
            signed=signed,
            setting_text=setting_text,
            own_settings=own_settings,
            error_text=error_text,
            values_text=values_text,
            grid_columns=grid_columns,
            runs_of=lambda cell: provenance.behind(cell.runs),
            is_cell=lambda value: isinstance(value, Cell),
            slug=slug,
        )
    )


def slug(text: str) -> str:
    """Return a name as a class or an id has it.

    Example:
        >>> slug("not run")
        'not-run'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def checked_svg(svg: str) -> Markup:
    """Return a picture as it may stand in a page.

    Raises:
        ValueError: If it is not one ``<svg>`` element, or holds a script, a link or anything from outside.
    """
    try:
        root = ET.fromstring(svg)  # noqa: S314  # drawn by this package, not taken from outside
    except ET.ParseError as error:
        raise ValueError(f"a picture must be one <svg> element that is well formed, got {error}") from error
    if _local(root.tag) != "svg":
        raise ValueError(f"a picture must be one <svg> element, got <{_local(root.tag)}>")
    for element in root.iter():
        outside = [
            f"{_local(name)}={value!r}"
            for name, value in element.attrib.items()
            if _local(name).startswith("on")
            or (_local(name) in ("href", "src") and not value.startswith("#"))
            or re.search(r"url\((?!#)", value)
        ]
        if _local(element.tag) in REFUSED or outside:
            raise ValueError(f"a picture must only draw, got <{_local(element.tag)}> {', '.join(outside)}".rstrip())
    return Markup(svg)  # noqa: S704  # checked above


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _claim(claim: Judged, provenance: Provenance) -> DrawnClaim:
    return DrawnClaim(
        number=claim.finding.claim,
        main=_finding(claim.finding, provenance),
        others=tuple(_finding(finding, provenance) for finding in claim.others),
    )


def _finding(finding: Finding, provenance: Provenance) -> DrawnFinding:
    sources = provenance.behind(finding.runs)
    return DrawnFinding(
        finding=finding,
        setting=setting_text(finding.scale, finding.data),
        intervals=tuple(
            DrawnInterval(interval, Markup(svg), *numbers(interval))  # noqa: S704  # drawn from numbers
            for interval, svg in zip(finding.intervals, whiskers(finding.intervals), strict=True)
        ),
        sources=sources,
        charts=charts(sources),
    )


def _exhibit(shown: Shown, provenance: Provenance) -> DrawnExhibit:
    return DrawnExhibit(
        name=shown.name,
        title=exhibit_title(shown),
        views=tuple(_view(view, f"{shown.name}-{number}", provenance) for number, view in enumerate(shown.views, 1)),
    )


def _view(view: Grid | Picture, prefix: str, provenance: Provenance) -> DrawnView:
    told, setting = has_numbers(view), setting_text(view.scale, view.data)
    if isinstance(view, Picture):
        sources = provenance.behind(view.runs)
        svg = checked_svg(with_ids(view.svg, prefix)) if told else Markup()
        return DrawnView(told, setting, None, view, svg, (), sources)
    sources = provenance.behind(key for row in view.rows for cell in row if isinstance(cell, Cell) for key in cell.runs)
    return DrawnView(told, setting, view, None, Markup(), charts(sources), sources)
