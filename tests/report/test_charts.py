import math
import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from mpelu.report.charts import LINES, charts, simplified, ticks
from mpelu.report.provenance import trace


def sources(records):
    return trace({str(number): record for number, record in enumerate(records)}).sources


def paths(svg, kind):
    return [path for path in ET.fromstring(svg).iter("path") if path.get("class").split()[0] == kind]


def test_each_recipe_is_a_line_and_several_seeds_have_a_band(study_records):
    (chart,) = charts(sources(study_records))
    for svg in (chart.loss_svg, chart.error_svg):
        assert len(paths(svg, "line")) == len(paths(svg, "band")) == 4
        assert len(paths(svg, "thin")) == len(paths(svg, "cross")) == 1
    assert chart.several_seeds


def test_one_seed_has_no_band(make_record):
    (chart,) = charts(sources([make_record()]))
    assert paths(chart.loss_svg, "band") == []
    assert not chart.several_seeds


def test_a_picture_holds_six_lines_and_one_data_set(make_record):
    many = [make_record(f"recipe{number}", run_hash=str(number)) for number in range(LINES + 2)]
    other = make_record("other", data="cifar10", run_hash="x")
    found = charts(sources([*many, other]))
    assert [len(chart.sources) for chart in found] == [LINES, 2, 1]
    assert found[-1].sources[0].data == "cifar10"


def test_runs_without_an_epoch_have_no_curve(make_record):
    assert charts(sources([make_record(errors=(), losses=(), diverged="loss is nan at step 3")])) == ()


def test_a_line_goes_down_when_the_loss_does(make_record):
    (chart,) = charts(sources([make_record(losses=(2.0, 1.0, 0.5))]))
    (line,) = paths(chart.loss_svg, "line")
    points = [tuple(map(float, pair.split())) for pair in re.split("[ML]", line.get("d"))[1:]]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    heights = [y for _, y in points]
    assert heights == sorted(heights)  # downwards on the screen


def test_what_is_far_above_chance_is_cut_and_said(make_record):
    (chart,) = charts(sources([make_record(losses=(900.0, 1.0, 0.5))]))
    assert "cut; greatest 900" in chart.loss_svg
    assert "cut;" not in chart.error_svg


def test_a_simplified_line_stays_within_its_tolerance():
    points = [(float(x), 50 * math.exp(-x / 30) + 3 * math.sin(x / 3)) for x in range(300)]
    kept = simplified(points, tolerance=0.35)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert len(kept) < len(points) / 3
    for x, y in points:
        (x0, y0), (x1, y1) = next(pair for pair in pairwise(kept) if pair[0][0] <= x <= pair[1][0])
        assert abs(y0 + (y1 - y0) * (x - x0) / (x1 - x0) - y) <= 0.35 + 1e-9


@pytest.mark.parametrize("top", [0.013, 1.0, 2.49, 5.76, 30.0, 97.2, 307.0])
def test_an_axis_has_some_ticks_within_it(top):
    found = ticks(top)
    assert 4 <= len(found) <= 8
    assert found[0] == 0.0
    assert found[-1] <= top * (1 + 1e-9)


def test_names_are_escaped(make_record):
    (chart,) = charts(sources([make_record('<script>"&')]))
    ET.fromstring(chart.loss_svg)
    assert "<script" not in chart.loss_svg
