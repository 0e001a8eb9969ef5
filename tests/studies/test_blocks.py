"""What is drawn is what is built: boxes of a figure against the modules of a block."""

import re
from dataclasses import replace

import pytest
from torch import nn

from mpelu.models import DESIGNS, Block
from mpelu.report.diagram import described
from mpelu.studies import blocks
from mpelu.studies.jobs import Setting
from mpelu.studies.study import Results

RESULTS = Results(Setting(), {})
DRAWN = {exhibit.name: exhibit.show(RESULTS) for exhibit in blocks.EXHIBITS}


def text_of(module):
    if isinstance(module, nn.Conv2d):
        return f"conv {module.kernel_size[0]}x{module.kernel_size[1]}"
    return "BN" if isinstance(module, nn.BatchNorm2d) else "MPELU"


@pytest.mark.parametrize(("title", "family", "activation"), blocks.FIGURE4 + blocks.FIGURE5)
def test_boxes_are_the_modules_of_the_block(title, family, activation):
    design = DESIGNS[family]
    block = Block(design, 16 * design.expansion, 16, 1, activation=lambda _: nn.Tanh())
    drawn = blocks.diagram(title, family, "MPELU")
    assert drawn.branch == tuple(text_of(module) for module in (*block.leading, *block.branch))
    assert drawn.after == tuple(text_of(module) for module in block.after)
    assert (activation in blocks.diagram(title, family, activation).branch) == ("act" in design.branch)


@pytest.mark.parametrize(
    ("name", "shown"), [("figure4", blocks.FIGURE4), ("figure5", blocks.FIGURE5)], ids=["figure4", "figure5"]
)
def test_every_box_stands_in_the_picture_in_its_order(name, shown):
    svg = DRAWN[name].svg
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    diagrams = [blocks.diagram(*block) for block in shown]
    assert texts == [text for each in diagrams for text in (each.title, *each.branch, *each.after)]
    assert all(described(each) in svg for each in diagrams)
    assert "currentColor" in svg
    assert svg.count("<svg") == 1


def test_all_designs_are_drawn():
    assert {family for _, family, _ in blocks.FIGURE4 + blocks.FIGURE5} == DESIGNS.keys()
    letters = [design.figure for design in DESIGNS.values()]
    for number, shown in ((4, blocks.FIGURE4), (5, blocks.FIGURE5)):
        for title, family, _ in shown:
            assert f"{number}{title[1]}" in DESIGNS[family].figure, letters


def test_another_design_is_another_picture(monkeypatch):
    changed = replace(DESIGNS["nopre"], branch="conv1 act conv3 norm act conv1", after="act")
    monkeypatch.setitem(DESIGNS, "nopre", changed)
    assert blocks._figure5(RESULTS).svg != DRAWN["figure5"].svg
    assert blocks.diagram("", "nopre", "MPELU").after == ("MPELU",)
