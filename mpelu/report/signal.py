"""What was watched during a run: read from its file, and drawn by layer over time."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table
from rich.text import Text

from mpelu.errors import DataError
from mpelu.report.drawing import (
    WIDTH_INCHES,
    add_legend,
    drawing,
    height_inches,
    line_style,
    make_logarithmic,
    svg_text,
)
from mpelu.report.summary import Record, finite
from mpelu.report.words import with_numbers

SIGNAL = "signal.jsonl"
"""The file in a run folder, beside ``result.json``."""
MOMENTS = 6
"""Points in time that a figure shows at most; so many lines can be told apart."""


@dataclass(frozen=True)
class Quantity:
    """One number of a layer, and how it is drawn."""

    key: str
    title: str
    logarithmic: bool


QUANTITIES = (
    Quantity("second_moment", "second moment", logarithmic=True),
    Quantity("gradient_norm", "gradient norm", logarithmic=True),
    Quantity("correlation", "correlation of two inputs", logarithmic=False),
    Quantity("weight_norm", "weight norm", logarithmic=True),
    Quantity("update_ratio", "update over weight", logarithmic=True),
    Quantity("alpha", "alpha, mean over channels", logarithmic=False),
    Quantity("beta", "beta, mean over channels", logarithmic=False),
)
LAYERS_OF = {"alpha": "activation", "beta": "activation"}
"""Which kind of layer shows a quantity; the others are shown at the weights."""


@dataclass(frozen=True)
class Signal:
    """What was watched in one run."""

    study: str
    recipe: str
    run_hash: str
    seed: int
    steps: tuple[Mapping[str, Any], ...]
    """Each with ``step``, ``epoch`` (or null) and ``records``, one for each layer."""

    @property
    def name(self) -> str:
        """What files and ids are called after."""
        return f"signal-{self.recipe}-{self.run_hash}-seed{self.seed}"


def read_signal(path: Path) -> list[dict[str, Any]]:
    """Read a file of watched steps, in order; a last line that was cut off is left out.

    Raises:
        DataError: If there is no such file, or a line is something else.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no file {path}; 'mpelu train --watch 100' and mpelu.watch(..., path=...) write one") from None
    lines = content.split("\n")[:-1]  # what stands behind the last line break is no whole line
    steps = [_step(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    return list({step["step"]: step for step in sorted(steps, key=lambda step: step["step"])}.values())


def _step(line: str, where: str) -> dict[str, Any]:
    try:
        step = with_numbers(json.loads(line))
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); take the line out") from error
    if not isinstance(step, dict) or not {"step", "records"} <= step.keys():
        raise DataError(f"{where} is no watched step, which has 'step' and 'records'; take the line out")
    return step


def find_signals(paths: Iterable[Path], records: Sequence[Record]) -> tuple[Signal, ...]:
    """Return what was watched in the runs below the given folders: of each recipe, the run with the smallest seed.

    Args:
        paths: Folders of one run or of many; other paths hold no signal.
        records: Those of the runs to look at.
    """
    wanted = {_key(record) for record in records}
    found: dict[tuple[str, str], Signal] = {}
    for path in paths:
        for file in sorted(path.rglob(SIGNAL)) if path.is_dir() else ():
            result = file.with_name("result.json")
            record = json.loads(result.read_text()) if result.exists() else None
            if record is None or _key(record) not in wanted:
                continue
            signal = Signal(*_key(record), steps=tuple(read_signal(file)))
            before = found.get((signal.study, signal.run_hash))
            if signal.steps and (before is None or signal.seed < before.seed):
                found[signal.study, signal.run_hash] = signal
    return tuple(found.values())


def _key(record: Record) -> tuple[str, str, str, int]:
    return record["study"], record["recipe"], record["hash"], record["seed"]


def signal_table(signals: Sequence[Signal]) -> Table:
    """Return what became of the signal, as a table that fits into 80 columns: the first and the last watched step."""
    table = Table(
        title=Text("Signal in training"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    table.add_column("recipe", overflow="fold", max_width=44)
    for header in ("first", "last"):
        table.add_column(header, justify="right", no_wrap=True)
    for signal in signals:
        ends = signal.steps[0], signal.steps[-1]
        table.add_section()
        table.add_row(*map(Text, [f"{signal.recipe}, seed {signal.seed}", *map(when, ends)]))
        for label, number in NUMBERS.items():
            table.add_row(*map(Text, [f"  {label}", *map(number, ends)]))
    return table


def _last_second_moment(step: Mapping[str, Any]) -> str:
    return _text(values_by_layer(step, QUANTITIES[0])[-1:])


def _gradient_ratio(step: Mapping[str, Any]) -> str:
    norms = values_by_layer(step, QUANTITIES[1])
    return _text([norms[0] / norms[-1]] if norms else [])


def _mean_alpha(step: Mapping[str, Any]) -> str:
    return _text(_mean(step, "alpha"))


def _mean_beta(step: Mapping[str, Any]) -> str:
    return _text(_mean(step, "beta"))


def _mean(step: Mapping[str, Any], key: str) -> list[float]:
    values = [value for record in step["records"] if (value := finite(record.get(key))) is not None]
    return [statistics.fmean(values)] if values else []


def _text(values: Sequence[float]) -> str:
    return f"{values[0]:.3g}" if values else "—"


NUMBERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "second moment at the last weight": _last_second_moment,
    "gradient norm, first over last weight": _gradient_ratio,
    "alpha, mean over layers": _mean_alpha,
    "beta, mean over layers": _mean_beta,
}


def signal_figures(steps: Sequence[Mapping[str, Any]], *, name: str) -> dict[str, str]:
    """Return an SVG figure by layer over time for each quantity that was watched, by its key.

    Args:
        steps: As :func:`read_signal` gives them.
        name: Prefix of every id in the figures.
    """
    drawn = {
        quantity.key: layer_curves(steps, quantity, name=f"{name}-{quantity.key.replace('_', '-')}")
        for quantity in QUANTITIES
    }
    return {key: svg for key, svg in drawn.items() if svg is not None}


def layer_curves(steps: Sequence[Mapping[str, Any]], quantity: Quantity, *, name: str) -> str | None:
    """Return one quantity by layer as SVG, a line for each of a few points in time; None where no step has it."""
    series = [(when(step), values_by_layer(step, quantity)) for step in steps]
    series = spread_out([(label, values) for label, values in series if values])
    if not series:
        return None
    kind = LAYERS_OF.get(quantity.key, "weight")
    labels = [label for label, _ in series]
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, height_inches(labels, columns=3)), layout="constrained")
        axes = figure.add_subplot()
        for index, (_, values) in enumerate(series):
            every = max(1, len(values) // 7)
            layers = range(1, len(values) + 1)
            axes.plot(layers, values, **line_style(index), markevery=(index % every, every))
        if quantity.logarithmic:
            make_logarithmic(axes)
        axes.set_xlabel(f"{kind}, in order of execution")
        axes.set_ylabel(quantity.title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(figure, labels, columns=3)
        description = f"{quantity.title} of each {kind} in order of execution, at {', '.join(labels)}."
        title = f"{quantity.title.capitalize()} by layer over time"
        return svg_text(figure, name=name, title=title, description=description)


def values_by_layer(step: Mapping[str, Any], quantity: Quantity) -> list[float]:
    """Return one quantity at each layer that has it, nan where it is not finite or, on a log axis, not positive."""
    kind = LAYERS_OF.get(quantity.key, "weight")
    values = [
        number if (number := finite(record[quantity.key])) is not None else float("nan")
        for record in step["records"]
        if record["kind"] == kind and record.get(quantity.key) is not None
    ]
    shown = [value if value > 0 or not quantity.logarithmic else float("nan") for value in values]
    return shown if any(value == value for value in shown) else []  # nan is not equal to itself


def when(step: Mapping[str, Any]) -> str:
    """Say at which point of training a step was.

    Example:
        >>> when({"step": 300, "epoch": None}), when({"step": 300, "epoch": 1.5})
        ('step 300', 'epoch 1.5')
    """
    epoch = step.get("epoch")
    return f"step {step['step']}" if epoch is None else f"epoch {epoch:.3g}"


def spread_out(items: Sequence[Any]) -> list[Any]:
    """Return at most :data:`MOMENTS` of the items: the first, the last and evenly spaced ones between."""
    if len(items) <= MOMENTS:
        return list(items)
    return [items[round(index * (len(items) - 1) / (MOMENTS - 1))] for index in range(MOMENTS)]
