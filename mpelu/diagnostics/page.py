"""A diagnosis as one self-contained HTML page: the verdict, the signal by depth, every layer, and the paper's views."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from mpelu.diagnostics import text
from mpelu.diagnostics.distribution import Distribution, distribution_table
from mpelu.diagnostics.linearization import Residual, residual_table
from mpelu.diagnostics.pictures import distribution_figure, residual_figure, signal_figure
from mpelu.diagnostics.records import Diagnosis, LayerRecord
from mpelu.report.signal import signal_figures, when

WIDE = 110
"""Characters of a table of text on the page."""


@dataclass(frozen=True)
class View:
    """One of the paper's analyses: figures, and what they were made of as text."""

    heading: str
    about: str
    figures: tuple[str, ...]
    table: str = ""


def render_diagnosis(
    diagnosis: Diagnosis, *, title: str, before: Diagnosis | None = None, views: Sequence[View] = ()
) -> str:
    """Return a diagnosis as one HTML page that needs no script and no network, the same for the same arguments.

    Args:
        diagnosis: What the page is about.
        title: The headline.
        before: Another diagnosis to compare with.
        views: See :func:`distribution_view`, :func:`residual_view` and :func:`learned_view`.
    """
    return (
        _environment()
        .get_template("diagnosis.html.jinja")
        .render(
            title=title,
            diagnosis=diagnosis,
            before=before,
            sides=[("Now", diagnosis)] if before is None else [("Before", before), ("After", diagnosis)],
            figure=signal_figure(diagnosis, before),
            columns=COLUMNS,
            views=views,
            comparison=None if before is None else text.comparison(before, diagnosis, WIDE),
            text=text,
        )
    )


def distribution_view(found: Sequence[Distribution]) -> View:
    """Return Tables 7 and 8 of the paper for a model."""
    return View(
        heading="Pre-activations by layer",
        about="Mean and variance of each weight's output, and how much of it lies above the thresholds where the "
        "residual of the linearization is bounded by 0.01, 0.5, 2 and 4.5 for alpha = beta = 1.",
        figures=(distribution_figure(found),),
        table=distribution_table(found, WIDE),
    )


def residual_view(found: Sequence[Residual]) -> View:
    """Return the analysis of section 4.4 of the paper for a model."""
    return View(
        heading="Residual of the linearization",
        about="What the line alpha beta y leaves out of the negative side of each activation, over the inputs that it "
        "got. The last column is the second moment that the activation gives, over the one that the line would.",
        figures=(residual_figure(found),),
        table=residual_table(tuple(found), WIDE),
    )


def learned_view(steps: Sequence[Mapping[str, Any]]) -> View:
    """Return how alpha and beta changed during training; the steps are as ``mpelu.report.read_signal`` gives them."""
    figures = signal_figures(steps, name="learned")
    first, last = steps[0], steps[-1]
    end = {record["name"]: record for record in last["records"]}
    rows = [
        [
            record["name"],
            *(text.number_text(each.get(key)) for key in ("alpha", "beta") for each in (record, end[record["name"]])),
        ]
        for record in first["records"]
        if record.get("alpha") is not None and record["name"] in end
    ]
    head = ["activation", f"alpha at {when(first)}", f"at {when(last)}", "beta", f"at {when(last)}"]
    return View(
        heading="Learned alpha and beta",
        about="Means over channels of each activation's alpha and beta, at several points of training.",
        figures=tuple(figures[key] for key in ("alpha", "beta") if key in figures),
        table=text.rows_text(head, rows, WIDE),
    )


COLUMNS: tuple[tuple[str, Callable[[LayerRecord], str]], ...] = (
    ("Kind", lambda record: record.kind),
    ("Depth", lambda record: str(record.depth)),
    ("Shape", lambda record: "×".join(map(str, record.shape[1:])) or "1"),
    ("Mean", lambda record: text.number_text(record.mean)),
    ("Second moment", lambda record: text.number_text(record.second_moment)),
    ("Expected", lambda record: text.expected_text(record.second_moment, record.predicted_second_moment)),
    ("Correlation", lambda record: text.correlation_text(record.correlation)),
    ("Dead, %", lambda record: text.percent_text(record.dead)),
    ("Saturated, %", lambda record: text.percent_text(record.saturated)),
    ("Not finite, %", lambda record: text.percent_text(record.non_finite)),
    ("Gradient norm", lambda record: text.number_text(record.gradient_norm)),
    ("Gradient signal to noise", lambda record: text.number_text(record.gradient_snr)),
    ("Weight norm", lambda record: text.number_text(record.weight_norm)),
    ("Update over weight", lambda record: text.number_text(record.update_ratio)),
)


def _environment() -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader("mpelu.diagnostics", "."), PackageLoader("mpelu.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
