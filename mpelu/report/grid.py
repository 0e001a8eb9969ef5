"""A table of the paper with our numbers beside the paper's, and a picture that stands for one of its figures."""

from dataclasses import dataclass

from mpelu.report.summary import Spread

UNKNOWN = "–"
"""Stands where the text of the paper gives no number."""


@dataclass(frozen=True)
class Cell:
    """One cell: the paper's number, and ours.

    Attributes:
        paper: As the paper prints it, empty where its text does not give it.
        source: Where the paper's number comes from.
        ours: Our number over seeds, None where nothing was run.
        digits: Decimal places of ours.
        text: Said in the place of a number of ours, e.g. "diverged 5 of 5".
        runs: Keys of the records behind ours.
    """

    paper: str = ""
    source: str = ""
    ours: Spread | None = None
    digits: int = 2
    text: str = ""
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table in the layout of the paper: the first cells of a row name it.

    Attributes:
        name: e.g. ``table5``.
        title: Its headline.
        columns: Headings.
        rows: Of each, names first and then cells; as long as ``columns``.
        scale: Of our numbers.
        data: Name of the data set behind our numbers, empty where none is used.
        notes: Sentences below: what differs from the paper.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    scale: str
    data: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A figure of the paper, drawn from our numbers or from the code itself.

    Attributes:
        name: e.g. ``figure2``.
        title: Its headline.
        svg: The picture, one ``<svg>`` element.
        caption: What is seen.
        scale: Of the numbers in it.
        data: Name of the data set, empty where none is used.
        runs: Keys of the records behind it.
    """

    name: str
    title: str
    svg: str
    caption: str
    scale: str
    data: str
    runs: tuple[str, ...] = ()
