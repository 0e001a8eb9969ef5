"""Tables, figures and one self-contained page from the records of runs."""

from mpelu.report.markdown import markdown_table
from mpelu.report.page import render_page
from mpelu.report.plots import activation_shapes, error_curves, loss_curves, standalone
from mpelu.report.summary import Divergence, Record, Spread, Summary, summarize
from mpelu.report.terminal import results_table
from mpelu.report.verdict import Verdict

__all__ = [
    "Divergence",
    "Record",
    "Spread",
    "Summary",
    "Verdict",
    "activation_shapes",
    "error_curves",
    "loss_curves",
    "markdown_table",
    "render_page",
    "results_table",
    "standalone",
    "summarize",
]
