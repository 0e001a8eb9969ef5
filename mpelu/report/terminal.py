"""The table of results for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from mpelu.report.cells import (
    common_measured_on,
    diverged_count_text,
    divergence_text,
    loss_text,
    measured_on,
    seeds_finished,
    spread_text,
)
from mpelu.report.summary import Summary, labels


def results_table(summaries: Sequence[Summary]) -> Table:
    """Return the results as a table that fits into 80 columns; a longer name is folded, a number never is."""
    place = common_measured_on(summaries)
    table = Table(
        title=Text("Test error in %, " + (place or "by data set and scale")),
        caption=Text(_caption(summaries)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=0,
    )
    table.add_column("recipe", overflow="fold", min_width=22)
    for header in ("n", "last epoch", "best epoch", "train\nloss", "di-\nverged"):
        table.add_column(header, justify="right", no_wrap=True)
    names = dict(zip(summaries, labels(summaries), strict=True))
    for here in dict.fromkeys(map(measured_on, summaries)):
        if place is None:
            table.add_section()
            table.add_row(Text(here, style="italic"))
        for summary in summaries:
            if measured_on(summary) == here:
                table.add_row(*map(Text, _cells(names[summary], summary)))
    return table


def _cells(label: str, summary: Summary) -> list[str]:
    return [
        label,
        str(seeds_finished(summary.last_epoch)),
        spread_text(summary.last_epoch),
        spread_text(summary.best_epoch),
        loss_text(summary.train_loss),
        diverged_count_text(summary),
    ]


def _caption(summaries: Sequence[Summary]) -> str:
    several = any(seeds_finished(summary.last_epoch) > 1 for summary in summaries)
    over_seeds = "best run (mean ± sd over n seeds); " if several else ""
    stopped = [
        f"{label}, {divergence_text(divergence)}"
        for label, summary in zip(labels(summaries), summaries, strict=True)
        for divergence in summary.diverged
    ]
    return "\n".join([f"{over_seeds}train loss of the last epoch; diverged runs enter no mean", *stopped])
