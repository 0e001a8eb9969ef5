"""What was watched is found beside its run, and shown as a table, as figures and on the page."""

import io
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from mpelu.errors import DataError
from mpelu.report.page import render_page
from mpelu.report.signal import (
    MOMENTS,
    QUANTITIES,
    find_signals,
    read_signal,
    signal_figures,
    signal_table,
    spread_out,
    values_by_layer,
)

SECOND_MOMENT, GRADIENT_NORM = QUANTITIES[:2]


def step(number: int, *, layers: int = 3, scale: float = 1.0) -> dict[str, Any]:
    """Return a watched step: so many weights, each with an activation behind it."""
    records = []
    for layer in range(1, layers + 1):
        weight = {
            "name": f"conv{layer}",
            "kind": "weight",
            "second_moment": scale / layer,
            "gradient_norm": 1.0 * layer,
        }
        rates = {"name": f"act{layer}", "kind": "activation", "second_moment": 9.0, "alpha": 0.1 * layer, "beta": 1.0}
        records += [weight, rates]
    return {"step": number, "epoch": number / 100, "records": records}


def write_run(folder: Path, record: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record))
    if steps:
        (folder / "signal.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in steps))


def test_reading_leaves_out_what_was_cut_off_and_keeps_the_last_of_a_step(tmp_path):
    path = tmp_path / "signal.jsonl"
    lines = [json.dumps(each) for each in (step(0), step(100), step(0, scale=2.0), step(200))]
    path.write_text("\n".join(lines)[:-5])
    found = read_signal(path)
    assert [each["step"] for each in found] == [0, 100]
    assert found[0]["records"][0]["second_moment"] == 2.0
    path.write_text("")
    assert read_signal(path) == []
    path.write_text('{"step": 1}\n')
    with pytest.raises(DataError, match="line 1 is no watched step"):
        read_signal(path)


def test_the_smallest_seed_that_was_watched_stands_for_a_recipe(tmp_path, make_record):
    records = [make_record(seed=seed) for seed in range(3)] + [make_record("other", run_hash="ffff")]
    for record, steps in zip(records, ([], [step(0)], [step(0)], [step(0), step(1)]), strict=True):
        write_run(tmp_path / record["recipe"] / f"seed{record['seed']}", record, steps)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "signal.jsonl").write_text(f"{json.dumps(step(0))}\n")
    found = find_signals([tmp_path], records)
    assert [(signal.recipe, signal.seed, len(signal.steps)) for signal in found] == [
        ("other", 0, 2), ("plain30-mpelu-eq22", 1, 1),
    ]  # fmt: skip
    assert find_signals([tmp_path], records[:1]) == ()
    assert find_signals([tmp_path / "records.jsonl"], records) == ()


def test_values_are_those_of_the_layers_that_have_them():
    assert values_by_layer(step(0), SECOND_MOMENT) == [1.0, 1 / 2, 1 / 3]
    alpha = next(quantity for quantity in QUANTITIES if quantity.key == "alpha")
    assert values_by_layer(step(0), alpha) == pytest.approx([0.1, 0.2, 0.3])
    dead = step(0)
    dead["records"][2]["second_moment"] = 0.0
    dead["records"][4]["second_moment"] = math.nan
    values = values_by_layer(dead, SECOND_MOMENT)
    assert values[0] == 1.0
    assert all(map(math.isnan, values[1:]))
    assert values_by_layer({"records": []}, SECOND_MOMENT) == []


@pytest.mark.parametrize("count", [1, 2, MOMENTS, MOMENTS + 1, 50])
def test_a_few_points_in_time_are_shown_the_first_and_the_last_among_them(count):
    shown = spread_out(list(range(count)))
    assert len(shown) == min(count, MOMENTS)
    assert (shown[0], shown[-1]) == (0, count - 1)
    assert shown == sorted(set(shown))


def test_figures_are_of_what_was_watched_and_the_same_twice():
    steps = [step(100 * number, scale=0.5**number) for number in range(20)]
    figures = signal_figures(steps, name="run")
    assert figures == signal_figures(steps, name="run")
    assert set(figures) == {"second_moment", "gradient_norm", "alpha", "beta"}
    for svg in figures.values():
        root = ET.fromstring(svg)
        assert root.find("{http://www.w3.org/2000/svg}title").text.endswith("by layer over time")
        assert "epoch 0" in svg
        assert "epoch 19" in svg
        assert "$" not in svg


def test_the_table_has_the_first_and_the_last_step_and_fits(tmp_path, make_record):
    record = make_record("a-recipe-with-a-name-that-is-longer-than-a-column-of-a-table-should-be")
    write_run(tmp_path / "run", record, [step(0), step(300, scale=0.03)])
    console = Console(width=80, file=io.StringIO())
    console.print(signal_table(find_signals([tmp_path], [record])))
    text = console.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    rows = {line[:40].strip(): line[40:].split() for line in text.splitlines()}
    assert rows["second moment at the last weight"] == ["0.333", "0.01"]
    assert rows["gradient norm, first over last weight"] == ["0.333", "0.333"]
    assert rows["alpha, mean over layers"] == ["0.2", "0.2"]


def test_the_page_shows_it_only_where_there_is_some(tmp_path, make_record):
    record = make_record()
    write_run(tmp_path / "run", record, [step(0), step(100)])
    signals = find_signals([tmp_path], [record])
    page = render_page([record], title="t", lead="l", how_to_read=(), signals=signals)
    assert 'id="signal"' in page
    assert "Second moment by layer over time" in page
    without = render_page([record], title="t", lead="l", how_to_read=())
    assert 'id="signal"' not in without
    assert len(without) < len(page)
