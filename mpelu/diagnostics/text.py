"""A diagnosis as text: its verdict in words, and a table of its weights that is as wide as the terminal."""

import math
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from mpelu.diagnostics.records import Diagnosis, Estimate, Finding, LayerRecord

SHOWN = ("input", "weight", "attention", "recurrent", "embedding", "opaque")
"""Kinds that have a row each; the others are in ``to_json()``, and have one where a finding names them."""
FIRST, LAST = 40, 12
"""Rows that a table shows at most, from the start and from the end, beside those that findings name."""
NARROWEST, WIDEST = 40, 110
NOTHING = "-"
FAR = 4.0
"""Standard errors from which on a measured second moment is marked as another than the predicted one."""


@dataclass(frozen=True)
class Line:
    """One row of a table: the record of a layer, and what the activations behind it showed."""

    record: LayerRecord
    dead: float | None = None
    saturated: float | None = None


Column = tuple[str, Callable[[Line], str]]


def lines_of(diagnosis: Diagnosis) -> list[Line]:
    """Return what a table has rows for, in order of execution."""
    named = {finding.layer for finding in diagnosis.verdict.findings}
    found: list[Line] = []
    for record in diagnosis.records:
        if record.kind in SHOWN or record.name in named:
            found.append(Line(record, record.dead, record.saturated))
        elif found and record.kind == "activation":
            last = found[-1]
            found[-1] = Line(last.record, _most(last.dead, record.dead), _most(last.saturated, record.saturated))
    return found


def table(diagnosis: Diagnosis, width: int | None = None) -> str:
    """Return a diagnosis as lines of at most ``width`` characters (40 to 110; None is the terminal's width).

    ``q`` is the second moment of a layer's output and ``expected`` what is predicted for it, with a ``*`` where the two
    are more than four standard errors apart; ``corr`` is the correlation of two inputs, ``gradient`` the norm of the
    gradient with respect to the output, ``|w|`` that of the weight, ``update`` that of the optimizer's step over it.
    ``dead`` and ``satur`` are percent of the activations behind the layer. Columns without a value are left out.
    """
    width = _width(width)
    lines = lines_of(diagnosis)
    columns = [column for column in COLUMNS if any(column[1](line) != NOTHING for line in lines)]
    rows = [[line.record.name, *(cell(line) for _, cell in columns)] for line in lines]
    named = {finding.layer for finding in diagnosis.verdict.findings}
    kept = _kept([line.record.name in named for line in lines])
    parts = [*verdict_lines(diagnosis, width), "", *_grid(["layer", *(head for head, _ in columns)], rows, kept, width)]
    return "\n".join([*parts, *_facts(diagnosis, width)])


def comparison(before: Diagnosis, after: Diagnosis, width: int | None = None) -> str:
    """Return two diagnoses side by side, as lines of at most ``width`` characters: columns as in :func:`table`."""
    width = _width(width)
    parts = ["before:", *verdict_lines(before, width), "", "after:", *verdict_lines(after, width), ""]
    pairs = matched(before, after)
    head = ["layer"]
    rows = [[(new or old).record.name for old, new in pairs]]  # type: ignore[union-attr]  # never both None
    for name, cell in COMPARED:
        for when, side in (("before", 0), ("after", 1)):
            values = [NOTHING if pair[side] is None else cell(pair[side]) for pair in pairs]  # type: ignore[arg-type]
            head.append(f"{name} {when}" if when == "before" else when)
            rows.append(values)
    named = {finding.layer for each in (before, after) for finding in each.verdict.findings}
    kept = _kept([name in named for name in rows[0]])
    return "\n".join([*parts, *_grid(head, list(map(list, zip(*rows, strict=True))), kept, width)])


def rows_text(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a table of names and numbers as lines of at most ``width`` characters."""
    return "\n".join(_grid(list(head), [list(row) for row in rows], _kept([False] * len(rows)), _width(width)))


def matched(before: Diagnosis, after: Diagnosis) -> list[tuple[Line | None, Line | None]]:
    """Return which layer was which: by name, or by position where less than half of the names are the same."""
    old, new = lines_of(before), lines_of(after)
    by_name = {line.record.name: line for line in old}
    common = [line for line in new if line.record.name in by_name]
    if 2 * len(common) < max(len(old), len(new)):
        return list(zip_longest(old, new))
    seen = {line.record.name for line in new}
    gone = [(line, None) for line in old if line.record.name not in seen]
    return [*((by_name.get(line.record.name), line) for line in new), *gone]


def verdict_lines(diagnosis: Diagnosis, width: int) -> list[str]:
    """Return the verdict: a sentence, and for each finding what, where, why, and the call that mends it."""
    verdict = diagnosis.verdict
    summary = "" if verdict.findings else f" {verdict.summary}"  # findings say the same, and more
    lines = textwrap.wrap(f"{diagnosis.model}: {verdict.state}.{summary}", width)
    for number, finding in enumerate(verdict.findings, start=1):
        lines += textwrap.wrap(f"{number}. {headline(finding)}", width, subsequent_indent="   ")
        lines += textwrap.wrap(f"   {finding.cause}", width, subsequent_indent="   ") if finding.cause else []
        for part in finding.advice.splitlines():
            lines.append(f"     {part}")  # code is not folded
        effect = f"     then: {finding.effect}"
        lines += textwrap.wrap(effect, width, subsequent_indent="     ") if finding.effect else []
    return lines


def headline(finding: Finding) -> str:
    """Say what is wrong from where on.

    Example:
        >>> headline(Finding("vanishing", "conv7", 0.5, "", "", ""))
        'vanishing from conv7 on, x 0.5 per weight'
    """
    rate = "" if finding.per_layer is None else f", x {finding.per_layer:.3g} per weight"
    return f"{finding.state} from {finding.layer} on{rate}"


def number_text(value: float | None) -> str:
    """Write a number with three digits.

    Example:
        >>> number_text(0.00123456), number_text(None), number_text(float("nan"))
        ('0.00123', '-', 'nan')
    """
    return NOTHING if value is None else f"{value:.3g}"


def percent_text(share: float | None) -> str:
    """Write a share in percent.

    Example:
        >>> percent_text(0.5), percent_text(0.001), percent_text(0.0)
        ('50', '<1', '0')
    """
    if share is None:
        return NOTHING
    return "<1" if 0.0 < share < 0.01 else f"{100.0 * share:.0f}"


def correlation_text(value: float | None) -> str:
    """Write a correlation; near 1 what counts is how near.

    Example:
        >>> correlation_text(0.123), correlation_text(0.99998), correlation_text(0.99999999)
        ('0.123', '1-2e-05', '1.000')
    """
    if value is None:
        return NOTHING
    return f"1-{1.0 - value:.0e}" if 1e-6 < 1.0 - value < 1e-3 else f"{value:.3f}"


def expected_text(measured: float, expected: Estimate | None) -> str:
    """Write a predicted number, with a star where the measured one is another."""
    if expected is None:
        return NOTHING
    far = not math.isnan(measured) and abs(expected.deviation(measured)) > FAR
    return f"{expected.value:.3g}{'*' * far}"


COLUMNS: tuple[Column, ...] = (
    ("q", lambda line: number_text(line.record.second_moment)),
    ("expected", lambda line: expected_text(line.record.second_moment, line.record.predicted_second_moment)),
    ("corr", lambda line: correlation_text(line.record.correlation)),
    ("gradient", lambda line: number_text(line.record.gradient_norm)),
    ("dead", lambda line: percent_text(line.dead)),
    ("satur", lambda line: percent_text(line.saturated)),
    ("|w|", lambda line: number_text(line.record.weight_norm)),
    ("update", lambda line: number_text(line.record.update_ratio)),
)
COMPARED = (COLUMNS[0], COLUMNS[2], COLUMNS[3])


def _most(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _width(width: int | None) -> int:
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((100, 24)).columns if width is None else width))


def _kept(named: Sequence[bool]) -> list[bool]:
    return [index < FIRST or index >= len(named) - LAST or is_named for index, is_named in enumerate(named)]


def _grid(head: list[str], rows: list[list[str]], kept: Sequence[bool], width: int) -> Iterator[str]:
    """Yield the lines of a table: names to the left, numbers to the right; what is left out is counted."""
    shown = [row for row, keep in zip(rows, kept, strict=True) if keep]
    sizes = [max(len(row[column]) for row in (head, *shown)) for column in range(len(head))]
    while len(sizes) > 2 and sum(sizes[1:]) + 2 * len(sizes) + 8 > width:
        sizes.pop()  # of the columns the last ones say least
    sizes[0] = min(sizes[0], width - sum(sizes[1:]) - 2 * (len(sizes) - 1))
    left_out = 0
    for row, keep in zip([head, *rows], [True, *kept], strict=True):
        left_out += not keep
        if keep:
            if left_out:
                yield f"... {left_out} more; to_json() has all"[:width]
            left_out = 0
            cells = [cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=False)]
            yield "  ".join([_cut(row[0], sizes[0]), *cells]).rstrip()


def _cut(name: str, width: int) -> str:
    """Fit a name into a width; of what is too long the middle is left out, where names are most alike."""
    return name.ljust(width) if len(name) <= width else f"{name[: (width - 1) // 2]}…{name[len(name) - width // 2 :]}"


def _facts(diagnosis: Diagnosis, width: int) -> Iterator[str]:
    """Yield what is true of the whole model."""
    loss = "" if diagnosis.loss is None else f", loss {diagnosis.loss:.4g}"
    yield ""
    yield from textwrap.wrap(f"{diagnosis.examples} examples, {diagnosis.parameters:,} parameters{loss}", width)
    if diagnosis.singular_values:
        first, last = diagnosis.singular_values[0], diagnosis.singular_values[-1]
        yield from textwrap.wrap(f"singular values of the Jacobian from {first:.3g} to {last:.3g}", width)
    for note in diagnosis.notes:
        yield from textwrap.wrap(f"note: {note}", width, subsequent_indent="  ")
