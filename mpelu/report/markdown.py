"""The table of results as Markdown."""

from collections.abc import Sequence

from mpelu.report.cells import (
    count_text,
    diverged_count_text,
    duration_text,
    loss_text,
    measured_on,
    paper_style,
)
from mpelu.report.summary import Summary, labels

HEADERS = (
    "recipe", "data, scale", "test error %, last epoch", "test error %, best epoch", "train loss", "diverged",
    "parameters", "time per run",
)  # fmt: skip


def markdown_table(summaries: Sequence[Summary]) -> str:
    """Return the results as a Markdown table: errors as ``best (mean ± sd), n`` over the runs that finished."""
    rows = [_cells(label, summary) for label, summary in zip(labels(summaries), summaries, strict=True)]
    rules = ["---", "---", *["---:"] * (len(HEADERS) - 2)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (HEADERS, rules, *rows))


def _cells(label: str, summary: Summary) -> list[str]:
    return [
        escaped(label),
        escaped(measured_on(summary)),
        paper_style(summary.last_epoch),
        paper_style(summary.best_epoch),
        loss_text(summary.train_loss),
        diverged_count_text(summary),
        count_text(summary.parameters),
        duration_text(summary.wall_seconds),
    ]


def escaped(text: str) -> str:
    """Keep a name from ending its cell, opening a tag or becoming emphasis."""
    replacements = {"&": "&amp;", "<": "&lt;", "|": "\\|", "*": "\\*", "_": "\\_", "`": "\\`", "\n": " ", "\\": "\\\\"}
    return "".join(replacements.get(character, character) for character in text)
