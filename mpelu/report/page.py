"""One self-contained HTML page about a set of runs: verdicts, numbers, curves, settings and where they come from."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpelu.report import cells
from mpelu.report.plots import error_curves, loss_curves
from mpelu.report.signal import Signal, signal_figures
from mpelu.report.summary import Record, Summary, labels, summarize
from mpelu.report.templates import templates
from mpelu.report.verdict import Verdict


@dataclass(frozen=True)
class Panel:
    """The curves of all recipes on one data set at one scale."""

    place: str
    loss_svg: str
    error_svg: str


@dataclass(frozen=True)
class SignalPanel:
    """What was watched in one run: an SVG figure for each quantity, by its key."""

    run: str
    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Setting:
    """One setting: its value in each recipe, and whether the recipes differ in it."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def render_page(
    records: Sequence[Record],
    *,
    title: str,
    lead: str,
    how_to_read: Sequence[str],
    verdicts: Sequence[Verdict] = (),
    signals: Sequence[Signal] = (),
) -> str:
    """Return the report as one HTML page that needs no script and no network, the same for the same arguments.

    Args:
        records: The runs, each as its ``result.json`` holds it; recipes appear in the order of their first record.
        title: The headline.
        lead: One paragraph: what was asked, and what came out.
        how_to_read: Paragraphs that say what to look for and what not to conclude.
        verdicts: The claims that the runs were made for, if any.
        signals: What was watched in the runs, if anything.

    Raises:
        DataError: If :func:`~mpelu.report.summary.summarize` refuses the records.
    """
    summaries = summarize(records)
    settings = setting_rows(summaries)
    runs = [(label, run) for label, summary in zip(labels(summaries), summaries, strict=True) for run in summary.runs]
    return (
        templates()
        .get_template("page.html.jinja")
        .render(
            title=title,
            lead=lead,
            how_to_read=how_to_read,
            verdicts=verdicts,
            summaries=summaries,
            labels=labels(summaries),
            place=cells.common_measured_on(summaries),
            panels=curve_panels(summaries),
            signals=signal_panels(signals),
            several_seeds=any(cells.seeds_finished(summary.last_epoch) > 1 for summary in summaries),
            any_diverged=any(summary.diverged for summary in summaries),
            differing=[setting for setting in settings if setting.differs],
            common=[setting for setting in settings if not setting.differs],
            runs=runs,
            data_sets=_data_sets(summaries),
            environment=environment_rows([run for _, run in runs]),
            cells=cells,
        )
    )


def curve_panels(summaries: Sequence[Summary]) -> tuple[Panel, ...]:
    """Return the figures, one pair for each data set and scale: curves of different data never share axes."""
    places: dict[tuple[str, str, int, str], list[Summary]] = {}
    for summary in summaries:
        places.setdefault((summary.data, summary.data_sha256, summary.classes, summary.scale), []).append(summary)
    return tuple(
        Panel(
            place=cells.measured_on(alike[0]),
            loss_svg=loss_curves(alike, name=f"train-loss-{number}"),
            error_svg=error_curves(alike, name=f"test-error-{number}"),
        )
        for number, alike in enumerate(places.values(), start=1)
    )


def signal_panels(signals: Sequence[Signal]) -> tuple[SignalPanel, ...]:
    """Return the figures of each watched run."""
    return tuple(
        SignalPanel(
            run=f"{signal.recipe}, seed {signal.seed}",
            figures=tuple(signal_figures(signal.steps, name=f"signal-{number}").items()),
        )
        for number, signal in enumerate(signals, start=1)
    )


def setting_rows(summaries: Sequence[Summary]) -> tuple[Setting, ...]:
    """Return every setting of every recipe, in the order of the recipes' own fields."""
    configs: list[Mapping[str, object]] = [summary.runs[0]["config"] for summary in summaries]
    names = dict.fromkeys(name for config in configs for name in config)
    return tuple(Setting(name, tuple(_setting_text(config, name) for config in configs)) for name in names)


def environment_rows(records: Sequence[Record]) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    """Return each key of the environment with its values and the number of runs that had each.

    The start time differs in every run and is left out: it stands with the run.
    """
    environments: list[Mapping[str, object]] = [record["environment"] for record in records]
    names = dict.fromkeys(name for environment in environments for name in environment if name != "started_utc")
    return tuple(
        (name, tuple(Counter(_value_text(values.get(name), absent="not recorded") for values in environments).items()))
        for name in names
    )


def _value_text(value: object, *, absent: str) -> str:
    if value is None:
        return absent
    return value if isinstance(value, str) else json.dumps(value)


def _setting_text(config: Mapping[str, object], name: str) -> str:
    return _value_text(config[name], absent="none") if name in config else "not set"


def _data_sets(summaries: Sequence[Summary]) -> tuple[Mapping[str, object], ...]:
    return tuple({(summary.data, summary.data_sha256): summary.runs[0]["data"] for summary in summaries}.values())
