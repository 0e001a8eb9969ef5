"""Panels of curves carry the names of their activations."""

import re

from mpelu.report.shapes import shapes_figure


def test_panels_have_their_own_names_and_curves():
    panels = {"(a)": {"one": [0.0, 1.0, 2.0], "two": [0.0, 0.5, 1.0]}, "(b)": {"three": [1.0, 1.0, 1.0]}}
    svg = shapes_figure([0.0, 1.0, 2.0], panels, name="shapes")
    assert {"(a)", "(b)", "one", "two", "three"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert "(a): one, two; (b): three." in svg
    changed = {**panels, "(b)": {"three": [1.0, 2.0, 1.0]}}
    assert shapes_figure([0.0, 1.0, 2.0], changed, name="shapes") != svg
    assert all(one.startswith("shapes-") for one in re.findall(r'\bid="([^"]+)"', svg))
