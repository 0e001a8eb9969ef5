"""What a terminal, a figure and a page say about a diagnosis, for hand-made ones and for real ones."""

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
import torch

from mpelu.diagnostics import Diagnosis, Estimate, Finding, LayerRecord, Verdict, diagnose
from mpelu.diagnostics.page import render_diagnosis
from mpelu.diagnostics.pictures import signal_figure
from mpelu.diagnostics.text import FIRST, LAST, comparison, lines_of, matched, rows_text, table
from mpelu.models import create_model

SVG = "{http://www.w3.org/2000/svg}"
FINDING = Finding(
    state="vanishing",
    layer="conv70",
    per_layer=0.5,
    cause="the gain of the weights is too small",
    advice="mpelu.initialize(model, example)",
    effect="second moments stay where they are",
)


def weight(number: int, **changes: object) -> LayerRecord:
    values = {
        "name": f"conv{number}",
        "kind": "weight",
        "op": "conv2d",
        "depth": number,
        "shape": (4, 8, 8, 8),
        "mean": 0.0,
        "second_moment": 0.5**number,
        "correlation": 0.25,
        "gradient_norm": 2.0**number,
        "weight": f"conv{number}.weight",
        "weight_norm": 3.0,
        "predicted_second_moment": Estimate(0.5**number, 0.01 * 0.5**number),
    }
    return LayerRecord(**(values | changes))


def activation(number: int, **changes: object) -> LayerRecord:
    return LayerRecord(f"act{number}", "activation", "relu", number, (4, 8, 8, 8), 0.1, 0.3, **changes)


def made(count: int = 5, *, name: str = "conv", findings: tuple[Finding, ...] = (), **changes: object) -> Diagnosis:
    """Return a diagnosis of a net of so many convolutions, each with an activation behind it."""
    records: list[LayerRecord] = [LayerRecord("input", "input", "input", 0, (4, 3, 8, 8), 0.0, 1.0)]
    for number in range(1, count + 1):
        records += [weight(number, name=f"{name}{number}"), activation(number, dead=0.25, saturated=0.004)]
    verdict = Verdict(findings[0].state if findings else "healthy", findings, "The signal passes.")
    return replace(Diagnosis("Net", tuple(records), verdict, 2.25, 4, 1234567), **changes)


@pytest.fixture(scope="module")
def real() -> dict[str, Diagnosis]:
    torch.manual_seed(0)
    plain = create_model("plain15", in_channels=3, width=8)
    residual = create_model("nopre29", in_channels=3)
    images = torch.randn(4, 3, 16, 16)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    return {"plain": diagnose(plain, images, optimizer=optimizer), "residual": diagnose(residual, images)}


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("findings", [(), (FINDING,)], ids=["healthy", "vanishing"])
def test_no_line_is_wider_than_the_terminal_but_for_code(width, findings):
    diagnosis = made(100, findings=findings, notes=("a long note " * 20,), singular_values=(3.0, 0.1))
    for shown in (table(diagnosis, width), comparison(diagnosis, made(100), width)):
        assert all(len(line) <= width for line in shown.splitlines() if "mpelu.initialize" not in line)


def test_str_is_the_table_of_real_networks(real):
    for diagnosis in real.values():
        shown = str(diagnosis)
        assert shown == table(diagnosis)
        assert shown.startswith(f"{diagnosis.model}: {diagnosis.verdict.state}.")
        head = next(line for line in shown.splitlines() if line.startswith("layer"))
        assert head.split()[:2] == ["layer", "q"]
        rows = [line.split() for line in shown.splitlines() if line and line.split()[0] in names(diagnosis)]
        assert len(rows) == len(lines_of(diagnosis)) <= FIRST + LAST
        for row in rows:
            assert float(row[1]) == pytest.approx(diagnosis[row[0]].second_moment, rel=0.006)  # three digits
    assert "update" in str(real["plain"])
    assert "update" not in str(real["residual"])


def names(diagnosis: Diagnosis) -> set[str]:
    return {record.name for record in diagnosis.records}


def test_a_verdict_stands_on_top_in_words():
    lines = table(made(findings=(replace(FINDING, layer="conv3"),)), 80).splitlines()
    assert lines[:5] == [
        "Net: vanishing.",
        "1. vanishing from conv3 on, x 0.5 per weight",
        "   the gain of the weights is too small",
        "     mpelu.initialize(model, example)",
        "     then: second moments stay where they are",
    ]
    assert table(made(), 80).splitlines()[0] == "Net: healthy. The signal passes."


def test_a_row_has_what_was_measured_at_a_weight_and_behind_it():
    shown = table(made(1, loss=None), 100).splitlines()
    (head,) = [place for place, line in enumerate(shown) if line.startswith("layer")]
    assert shown[head].split() == ["layer", "q", "expected", "corr", "gradient", "dead", "satur", "|w|"]
    assert shown[head + 2].split() == ["conv1", "0.5", "0.5", "0.250", "2", "25", "<1", "3"]
    assert "loss" not in shown[-1]


def test_what_was_not_as_predicted_is_marked():
    far = weight(2, predicted_second_moment=Estimate(0.20, 0.01))
    near = weight(2, predicted_second_moment=Estimate(0.22, 0.01))
    diagnosis = made(1)
    for record, text in ((far, "0.2*"), (near, "0.22 ")):
        assert text in table(replace(diagnosis, records=(*diagnosis.records, record)), 100)


def test_a_long_net_is_shortened_in_the_middle_but_not_where_something_was_found():
    shown = table(made(200, findings=(FINDING,)), 100).splitlines()
    rows = [line.split()[0] for line in shown if re.match(r"conv|input|\.\.\.", line)]
    assert rows[FIRST] == rows[FIRST + 2] == "..."
    assert rows[FIRST + 1] == "conv70"
    assert rows[-LAST:] == [f"conv{number}" for number in range(189, 201)]
    left_out = [int(line.split()[1]) for line in shown if line.startswith("... ")]
    assert sum(left_out) + FIRST + LAST + 1 == 201


def test_an_activation_has_a_row_where_it_was_found_dead():
    dead = replace(FINDING, state="dead units", layer="act2", per_layer=None)
    shown = table(made(3, findings=(dead,)), 100)
    assert "1. dead units from act2 on\n" in shown
    assert re.search(r"^act2 .* 25 ", shown, re.M)


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_a_layer_may_have_the_name_of_a_number():
    named = made(2, name="NaN")
    assert Diagnosis.from_json(named.to_json()) == named


def test_numbers_that_are_not_finite_are_shown():
    diagnosis = made(2)
    broken = replace(diagnosis, records=(*diagnosis.records, weight(3, second_moment=math.nan, gradient_norm=math.inf)))
    assert re.search(r"^conv3 +nan .* inf ", table(broken, 100), re.M)
    assert Diagnosis.from_json(broken.to_json()) == broken
    json.loads(broken.to_json(), parse_constant=refuse)
    ET.fromstring(signal_figure(broken))
    nothing = [replace(record, second_moment=math.nan, gradient_norm=math.nan) for record in diagnosis.records]
    ET.fromstring(signal_figure(replace(diagnosis, records=tuple(nothing))))


def test_layers_are_compared_by_name_or_else_by_place():
    pairs = matched(made(3), made(4))
    assert [(old and old.record.name, new and new.record.name) for old, new in pairs] == [
        ("input", "input"), ("conv1", "conv1"), ("conv2", "conv2"), ("conv3", "conv3"), (None, "conv4"),
    ]  # fmt: skip
    assert [new for _, new in matched(made(4), made(3))][-1] is None
    renamed = matched(made(3), made(3, name="layer"))
    assert [(old.record.name, new.record.name) for old, new in renamed][1] == ("conv1", "layer1")
    shown = comparison(made(3, findings=(FINDING,)), made(4), 100)
    assert shown.startswith("before:\nNet: vanishing.")
    assert "after:\nNet: healthy. The signal passes." in shown
    assert re.search(r"^conv4 +- +0\.0625 +- +0\.250 +- +16$", shown, re.M)


def test_a_table_of_text_keeps_its_first_columns():
    head, rows = ["layer", *(f"number {index}" for index in range(20))], [["x" * 50, *["1.234"] * 20]]
    shown = rows_text(head, rows, 60).splitlines()
    assert all(len(line) <= 60 for line in shown)
    assert "…" in shown[1]
    assert shown[1].split()[1:] == ["1.234"] * (len(shown[0].split()) // 2)


# Figures


def test_a_figure_is_well_formed_says_what_it_shows_and_is_the_same_twice(real):
    for diagnosis in real.values():
        svg = signal_figure(diagnosis)
        assert svg == signal_figure(diagnosis)
        root = ET.fromstring(svg)
        assert diagnosis.verdict.state in root.find(f"{SVG}desc").text
        texts = [element.text for element in root.iter(f"{SVG}text")]
        assert {"second moment", "gradient norm", "correlation", "measured"} <= set(texts)
        assert not [text for text in texts if text and "$" in text]  # no formula of matplotlib is left as it is


def test_a_figure_has_a_band_where_something_is_predicted_and_a_line_where_it_was_found():
    alone, found = made(100), made(100, findings=(FINDING,))
    unpredicted = replace(
        alone, records=tuple(replace(record, predicted_second_moment=None) for record in alone.records)
    )
    assert drawn(signal_figure(alone)) > drawn(signal_figure(unpredicted))
    assert signal_figure(found).count("stroke-dasharray") == signal_figure(alone).count("stroke-dasharray") + 3


def drawn(svg: str) -> int:
    """Return how many points the paths of a figure have."""
    return len(re.findall(r"\bL ", svg))


def test_two_diagnoses_share_a_figure():
    svg = signal_figure(made(5), made(7), name="two")
    texts = [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]
    assert {"before", "after"} <= set(texts)
    assert all(identifier.startswith("two-") for identifier in re.findall(r'\bid="([^"]*)"', svg))


# The page


def test_a_page_needs_nothing_else_and_says_all(real):
    for diagnosis in real.values():
        page = render_diagnosis(diagnosis, title="A <net> & more")
        assert page == render_diagnosis(diagnosis, title="A <net> & more")
        assert "A &lt;net&gt; &amp; more" in page
        assert not re.findall(r'(?:src|href)="(?!#)|@import|url\((?!#)|<script|https?://(?!www\.w3\.org)', page)
        assert "prefers-color-scheme: dark" in page
        for record in diagnosis.records:
            assert f'<th scope="row">{record.name}</th>' in page


def test_a_page_shows_findings_and_what_was_before():
    page = render_diagnosis(made(3), title="t", before=made(3, findings=(replace(FINDING, layer="conv2"),)))
    assert "Net is healthy. Before, it was vanishing." in page
    assert "<pre>mpelu.initialize(model, example)</pre>" in page
    assert "q before" in page
    assert page.count("<h3>") == 2
