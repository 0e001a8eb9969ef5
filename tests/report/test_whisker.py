import math
import re
from xml.etree import ElementTree as ET

import pytest

from mpelu.report.finding import Interval
from mpelu.report.whisker import MARGIN, WIDTH, numbers, whiskers


def interval(estimate, low, high, *, unit="points", bound=None, n=5):
    return Interval("a minus b", unit, estimate, low, high, n, "", bound)


def places(svg):
    """Return where line, range and estimate are, in units of the picture."""
    root = ET.fromstring(svg)
    paths = {path.get("class"): path.get("d") for path in root.iter("path")}
    low, high = map(float, re.match(r"M([\d.]+) [\d.]+H([\d.]+)", paths["range"]).groups())
    return {
        "line": float(re.match(r"M([\d.]+)", paths["bound"])[1]),
        "low": low,
        "high": high,
        "estimate": float(root.find("circle").get("cx")),
    }


@pytest.mark.parametrize(
    ("one", "order"),
    [
        (interval(2.0, 1.0, 3.0), ("line", "low", "estimate", "high")),
        (interval(-2.0, -3.0, -1.0), ("low", "estimate", "high", "line")),
        (interval(0.5, -1.0, 2.0), ("low", "line", "estimate", "high")),
        (interval(0.9, 0.6, 1.0, bound=0.5), ("line", "low", "estimate", "high")),
    ],
)
def test_the_parts_stand_in_the_order_of_their_numbers(one, order):
    (svg,) = whiskers([one])
    found = places(svg)
    values = [found[name] for name in order]
    assert values == sorted(values)
    assert len(set(values)) == len(values)
    assert all(MARGIN <= value <= WIDTH - MARGIN for value in values)


def test_intervals_of_one_unit_share_an_axis():
    wide, narrow = map(places, whiskers([interval(10.0, 5.0, 20.0), interval(4.0, 3.0, 5.0)]))
    assert wide["line"] == narrow["line"]
    assert (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"]) == pytest.approx(15 / 2, rel=0.01)


def test_what_would_be_a_point_beside_another_has_an_axis_of_its_own():
    _, small = map(places, whiskers([interval(1000.0, 900.0, 1100.0), interval(2.0, 1.0, 3.0)]))
    assert small["high"] - small["low"] > 0.5 * WIDTH


def test_units_do_not_share_an_axis():
    alone = places(whiskers([interval(2.0, 1.0, 3.0)])[0])
    beside, _ = map(places, whiskers([interval(2.0, 1.0, 3.0), interval(90.0, 80.0, 95.0, unit="s")]))
    assert alone == beside


@pytest.mark.parametrize("one", [interval(1.0, -math.inf, math.inf), interval(0.0, 0.0, 0.0)], ids=["endless", "point"])
def test_the_extremes_are_drawn(one):
    found = places(whiskers([one])[0])
    assert all(math.isfinite(value) for value in found.values())


def test_numbers_are_as_exact_as_the_interval_is_short():
    assert numbers(interval(0.0305, -0.168, 0.229)) == ("0.03", "−0.17", "0.23")
    assert numbers(interval(31.71, 30.52, 32.9)) == ("31.7", "30.5", "32.9")
    assert numbers(interval(400.0, 300.0, 500.0)) == ("400", "300", "500")
    assert numbers(interval(2e-14, 1e-14, 3e-14)) == ("2e−14", "1e−14", "3e−14")


def test_rounding_hides_no_side():
    assert numbers(interval(-0.16, -0.33, -0.0021)) == ("−0.160", "−0.330", "−0.002")
    assert numbers(interval(0.9, 0.5004, 1.3, bound=0.5)) == ("0.9000", "0.5004", "1.3000")
