"""The reproduction in words: for Markdown and for the terminal."""

import re
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from mpelu.report.cells import NOTHING, duration_text
from mpelu.report.finding import OUTCOMES
from mpelu.report.grid import UNKNOWN, Cell, Grid, Picture
from mpelu.report.markdown import escaped
from mpelu.report.provenance import is_measurement
from mpelu.report.reproduction import (
    Judged,
    Reproduction,
    Shown,
    counts,
    counts_by_setting,
    has_numbers,
    setting_text,
)
from mpelu.report.whisker import interval_text, signed

NOT_RUN = "not run"
STYLES = {"confirmed": "green", "refuted": "red", "inconclusive": "yellow", "not run": "dim"}
HOW_TO_READ = (
    (
        "A verdict is read off intervals, not off means. Confirmed: the interval lies on the side that the paper "
        "claims. Refuted: it lies on the other side. Inconclusive: it reaches over the bound, so these runs cannot "
        "tell. A claim with several parts is confirmed if all of them are, and refuted if one of them is. Numbers in a "
        "claim are the paper's: whether ours are as large is not asked, only whether they have that order. Intervals "
        "beside those that decide are for comparison."
    ),
    (
        "Scale paper is the setting as published. At scale cpu networks are narrower and schedules shorter, by factors "
        "that each recipe states, and the images may be others: then a verdict is about the same effect at that scale, "
        "and the paper's number cannot be compared with ours. Where a claim was tested in several settings, its "
        "verdict is that of the setting nearest to the paper's; the others stand beneath it."
    ),
    (
        "The intervals cover 95 % each and are not corrected for their number: of twenty, one is expected to miss. A "
        "verdict asks for one end of an interval only, where the error is 2.5 %; of a claim with many parts the chance "
        "to be refuted wrongly is greater."
    ),
    (
        f"In the tables, {UNKNOWN} stands where the text of the paper gives no number. Runs that diverged enter no "
        "mean and are counted beside it."
    ),
)


def lead(reproduction: Reproduction) -> str:
    """Write in a few sentences what came out, and from what."""
    found = counts(reproduction.claims)
    total = len(reproduction.claims)
    outcome = (
        f"Of {total} claims of the paper, the runs so far confirm {found['confirmed']}, refute {found['refuted']} and "
        f"leave {found['inconclusive']} open; {found['not run']} "
        f"{'has' if found['not run'] == 1 else 'have'} not been tested."
    )
    small = sum(claim.finding.outcome == "refuted" and claim.finding.scale == "cpu" for claim in reproduction.claims)
    if small:
        outcome += f" Of those refuted, {small} {'is' if small == 1 else 'are'} so at a small scale only."
    records = list(reproduction.records.values())
    if not records:
        return f"{outcome} No run was given."
    measured = sum(map(is_measurement, records))
    trained = len(records) - measured
    images = sorted({record["data"]["name"] for record in records if record["data"]})
    seconds = sum(record["wall_seconds"] for record in records)
    counted = [_plural(count, noun) for count, noun in ((trained, "training"), (measured, "measurement")) if count]
    place = f", on {_listed(images)}" if images else ""
    return f"{outcome} Behind this: {_listed(counted)}, {duration_text(seconds)} of computing{place}."


def ours_text(cell: Cell) -> str:
    """Write our number as mean ± sd over n seeds, with what is said in its place or beside it.

    Example:
        >>> from mpelu.report.summary import Spread
        >>> ours_text(Cell(ours=Spread(best=4.0, mean=5.0, sd=1.4142, n=2), text="diverged 1 of 3"))
        '5.00 ± 1.41 (n = 2), diverged 1 of 3'
        >>> ours_text(Cell(paper="9.06"))
        'not run'
    """
    parts = [cell.text] if cell.text else []
    if cell.ours is not None:
        spread = "" if cell.ours.sd is None else f" ± {cell.ours.sd:.{cell.digits}f}"
        parts.insert(0, f"{signed(f'{cell.ours.mean:.{cell.digits}f}')}{spread} (n = {cell.ours.n})")
    return ", ".join(parts) or NOT_RUN


def paper_text(cell: Cell) -> str:
    """Write the paper's number, with a sign for what its text spells.

    Example:
        >>> paper_text(Cell(paper="4.43 (4.53+-0.12)")), paper_text(Cell())
        ('4.43 (4.53 ± 0.12)', '–')
    """
    return re.sub(r" ?\+- ?", " ± ", cell.paper).replace("->", "→") or UNKNOWN


def exhibit_title(shown: Shown) -> str:
    """Write the number of a table or figure and its headline.

    Example:
        >>> exhibit_title(Shown("table5", "Top-1 error", ()))
        'Table 5. Top-1 error'
    """
    kind = "Table" if shown.name.startswith("table") else "Figure"
    return f"{kind} {shown.name.removeprefix(kind.lower())}. {shown.title}"


def grid_columns(grid: Grid) -> tuple[bool, ...]:
    """Return of each column whether it holds numbers, the paper's beside ours, or names."""
    return tuple(any(isinstance(row[index], Cell) for row in grid.rows) for index in range(len(grid.columns)))


def headline_markdown(reproduction: Reproduction) -> str:
    """Return what came out in a paragraph, and how many claims have which outcome at which setting, as Markdown."""
    rows = [
        [place or "nothing was run", *(str(found[outcome]) for outcome in OUTCOMES)]
        for place, found in counts_by_setting(reproduction.claims).items()
    ]
    total = counts(reproduction.claims)
    if len(rows) > 1:
        rows.append(["all", *(str(total[outcome]) for outcome in OUTCOMES)])
    return f"{lead(reproduction)}\n\n{_table(['setting', *OUTCOMES], rows, numbers=range(1, 5))}"


def claims_markdown(reproduction: Reproduction) -> str:
    """Return every claim with its verdict and what that rests on, as a Markdown table."""
    rows = [
        [
            str(claim.finding.claim),
            claim.finding.statement,
            f"**{claim.finding.outcome}**" if claim.finding.intervals else claim.finding.outcome,
            _evidence(claim),
            _setting(claim),
        ]
        for claim in reproduction.claims
    ]
    return _table(["", "the paper says", "the runs say", "evidence", "setting"], rows, numbers=[0], verbatim=[2])


def tables_markdown(reproduction: Reproduction) -> str:
    """Return every table of the paper with our numbers beside the paper's, as Markdown."""
    parts = []
    for shown in reproduction.exhibits:
        grids = [view for view in shown.views if isinstance(view, Grid)]
        parts += [_grid(shown, grid) for grid in grids]
    return "\n".join(parts)


def figures_markdown(reproduction: Reproduction) -> str:
    """Return the caption of each figure of the paper, as Markdown; the pictures are on the page."""
    lines = [
        f"- {escaped(exhibit_title(shown))}{_place(view)}. {escaped(view.caption)}\n"
        for shown in reproduction.exhibits
        for view in shown.views
        if isinstance(view, Picture)
    ]
    return "".join(lines)


MARKDOWN: dict[str, Callable[[Reproduction], str]] = {
    "headline": headline_markdown,
    "claims": claims_markdown,
    "tables": tables_markdown,
    "figures": figures_markdown,
}


def reproduction_markdown(reproduction: Reproduction, only: str | None = None) -> str:
    """Return the reproduction as Markdown, or one part of it.

    Args:
        reproduction: What the runs say.
        only: ``headline``, ``claims``, ``tables`` or ``figures``.
    """
    return "\n".join(MARKDOWN[part](reproduction) for part in ([only] if only else MARKDOWN)).rstrip("\n")


def claims_table(reproduction: Reproduction) -> Table:
    """Return every claim with its verdict as a table for a terminal; how a setting differs is left to the page."""
    table = Table(
        title=Text(lead(reproduction)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("the runs say", no_wrap=True)
    table.add_column("the paper says", overflow="fold", ratio=3)
    table.add_column("evidence", overflow="fold", ratio=4)
    for claim in reproduction.claims:
        finding = claim.finding
        place = setting_text(finding.scale, finding.data)
        table.add_row(
            str(finding.claim),
            Text(finding.outcome, style=STYLES[finding.outcome]),
            Text(finding.statement),
            Text(_evidence(claim) + (f" [{place}]" if finding.outcome != "not run" else "")),
        )
    return table


def _evidence(claim: Judged) -> str:
    finding = claim.finding
    return finding.evidence or "; ".join(map(interval_text, finding.intervals)) or NOTHING


def _setting(claim: Judged) -> str:
    finding = claim.finding
    if finding.outcome == "not run":
        return NOTHING
    return setting_text(finding.scale, finding.data) + (f"; {finding.differs}" if finding.differs else "")


def _grid(shown: Shown, grid: Grid) -> str:
    numeric = grid_columns(grid)
    head: list[str] = []
    for column, holds_numbers in zip(grid.columns, numeric, strict=True):
        head += [f"{column}, paper", f"{column}, ours"] if holds_numbers else [column]
    rows = [
        [text for value, holds_numbers in zip(row, numeric, strict=True) for text in _texts(value, holds_numbers)]
        for row in grid.rows
    ]
    notes = "".join(f"\n{escaped(note[:1].upper() + note[1:])}\n" for note in grid.notes)
    return f"**{escaped(exhibit_title(shown))}**{_place(grid)}\n\n{_table(head, rows)}{notes}"


def _place(view: Grid | Picture) -> str:
    return f" (ours: {escaped(setting_text(view.scale, view.data))})" if has_numbers(view) else " (not run)"


def _texts(value: str | Cell, holds_numbers: bool) -> list[str]:
    if isinstance(value, Cell):
        return [paper_text(value), ours_text(value)]
    return [value, ""] if holds_numbers else [value]


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), verbatim: Sequence[int] = ()
) -> str:
    rules = ["---:" if index in numbers else "---" for index in range(len(head))]
    lines = [[escaped(text) for text in head], rules]
    lines += [[text if index in verbatim else escaped(text) for index, text in enumerate(row)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
