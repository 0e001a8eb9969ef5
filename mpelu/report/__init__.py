"""Tables, figures and one self-contained page from the records of runs."""

from mpelu.report.drawing import standalone
from mpelu.report.markdown import markdown_table
from mpelu.report.page import render_page
from mpelu.report.plots import activation_shapes, error_curves, loss_curves
from mpelu.report.provenance import is_measurement
from mpelu.report.reproduction_page import render_reproduction
from mpelu.report.reproduction_text import claims_table, reproduction_markdown
from mpelu.report.signal import Signal, find_signals, read_signal, signal_figures, signal_table
from mpelu.report.summary import Divergence, Record, Spread, Summary, summarize
from mpelu.report.terminal import results_table
from mpelu.report.verdict import Verdict

__all__ = [
    "Divergence",
    "Record",
    "Signal",
    "Spread",
    "Summary",
    "Verdict",
    "activation_shapes",
    "claims_table",
    "error_curves",
    "find_signals",
    "is_measurement",
    "loss_curves",
    "markdown_table",
    "read_signal",
    "render_page",
    "render_reproduction",
    "reproduction_markdown",
    "results_table",
    "signal_figures",
    "signal_table",
    "standalone",
    "summarize",
]
