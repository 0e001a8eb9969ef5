"""Blocks are drawn box by box, beside a shortcut that ends where the branch does."""

import re

from mpelu.report.diagram import Diagram, diagram_figure

PLAIN = Diagram("(a) plain", ("conv", "BN"), ("ReLU",), {"conv": 0, "BN": 1, "ReLU": 2})
BARE = Diagram("(b) bare", ("conv", "conv"), (), {"conv": 0})


def height(svg: str) -> float:
    found = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)
    assert found
    return float(found[1])


def test_every_box_is_drawn_with_its_text_inside_the_picture():
    svg = diagram_figure([PLAIN, BARE], name="x", title="Blocks")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert texts == ["(a) plain", "conv", "BN", "ReLU", "(b) bare", "conv", "conv"]
    places = [float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"', svg)]
    assert len(places) == len(texts)
    assert places[:4] == sorted(places[:4])
    assert max(places) < height(svg)
    assert "(b) bare: conv, conv, addition to the shortcut." in svg


def test_the_picture_is_as_high_as_its_longest_block():
    one, both = (diagram_figure(blocks, name="x", title="t") for blocks in ([BARE], [BARE, PLAIN]))
    assert height(one) < height(both)
    assert one == diagram_figure([BARE], name="x", title="t")


def test_kinds_have_colours_of_their_own():
    svg = diagram_figure([PLAIN], name="x", title="t")
    assert len(set(re.findall(r"stroke: (#[0-9a-f]{6})", svg))) == 3
