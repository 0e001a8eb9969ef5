import math
import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from mpelu.report.drawing import COLORS, INK, LINESTYLES, MARKERS
from mpelu.report.plots import activation_shapes, curve, error_curves, loss_curves
from mpelu.report.summary import summarize

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = {"loss": loss_curves, "error": error_curves}


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]


def relative_luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    low, high = sorted((relative_luminance(one), relative_luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_curve_is_mean_least_and_greatest_over_the_seeds(make_record):
    runs = [make_record(seed=0, losses=(2.0, 1.0, 0.5)), make_record(seed=1, losses=(4.0, 3.0, 1.5))]
    points = curve(runs, "train_loss")
    assert points.epochs == (1, 2, 3)
    assert (points.mean, points.low, points.high) == ((3.0, 2.0, 1.0), (2.0, 1.0, 0.5), (4.0, 3.0, 1.5))


def test_an_epoch_that_one_seed_lacks_is_left_out(make_record):
    runs = [make_record(seed=0), make_record(seed=1, losses=(2.0, None, math.nan))]
    assert curve(runs, "train_loss").epochs == (1,)


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_well_formed_and_the_same_twice(study_records, figure):
    summaries = summarize(study_records)
    svg = figure(summaries)
    assert svg == figure(summaries)
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title").text
    assert "plain30-mpelu-eq22" in root.find(f"{SVG}desc").text


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_a_figure_follows_the_colour_of_the_text_and_touches_nothing_else(study_records, figure):
    svg = figure(summarize(study_records))
    assert "fill: currentColor" in svg
    assert "stroke: currentColor" in svg
    assert INK not in svg
    assert "#000000" not in svg
    assert "#ffffff" not in svg
    assert "<style" not in svg  # inside a page, a style element would reach the whole page


def test_the_users_matplotlibrc_changes_nothing(study_records):
    summaries = summarize(study_records)
    plain = loss_curves(summaries)
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "axes.spines.top": True}):
        assert loss_curves(summaries) == plain
        assert mpl.rcParams["font.size"] == 30


def test_chance_is_the_logarithm_of_the_classes_of_the_data(make_record):
    summaries = summarize([make_record(classes=100)])
    assert "chance, ln 100 = 4.61" in texts(loss_curves(summaries))
    assert "chance, 99 %" in texts(error_curves(summaries))


def test_recipes_differ_without_colour():
    marks = [(LINESTYLES[i % len(LINESTYLES)], MARKERS[i % len(MARKERS)]) for i in range(30)]
    assert len(set(marks)) == 30


@pytest.mark.parametrize("background", ["#fdfdfa", "#15171a"])
def test_colours_read_on_the_light_and_the_dark_page(background):
    # 3 : 1 is what WCAG 2.1, criterion 1.4.11, asks of lines and marks
    assert min(contrast(color, background) for color in COLORS) >= 3.0


def test_a_loss_far_above_chance_is_cut_and_said(make_record):
    wild = make_record("wild", losses=(2.3, 4e8, None), errors=(90.0, 90.0, None), diverged="loss is nan at step 99")
    svg = loss_curves(summarize([make_record(), wild]))
    assert "cut at 5.76; the greatest value is 4e+08" in texts(svg)
    assert "wild (1 of 1 diverged)" in texts(svg)


@pytest.mark.parametrize("seeds", [1, 2])
def test_runs_without_any_completed_epoch_can_be_drawn(make_record, seeds):
    stopped = [make_record(seed=s, errors=(), losses=(), diverged="loss is nan at step 1") for s in range(seeds)]
    assert "chance, ln 10 = 2.30" in texts(loss_curves(summarize(stopped)))


@pytest.mark.parametrize("name", ["_hidden", "a $x$ b", "<script>alert(1)</script>"])
def test_a_name_is_drawn_as_it_is(make_record, name):
    assert name in texts(loss_curves(summarize([make_record(name)])))


def test_ids_carry_the_name_of_the_figure(study_records):
    svg = loss_curves(summarize(study_records), name="here")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids
    assert all(one.startswith("here-") for one in ids)


def test_shapes_name_the_five_activations():
    svg = activation_shapes()
    assert svg == activation_shapes()
    assert {"ReLU", "PReLU, slope 0.25", "ELU, alpha 1", "MPELU, alpha 3, beta 1"} <= set(texts(svg))
    assert "MPELU, alpha 25.6302, beta 0.01" in texts(svg)
