from mpelu.report.grid import Cell
from mpelu.studies import nonbottleneck
from mpelu.studies.nonbottleneck import BLOCK_WITH_RELU, MPELU, RESNET
from tests.studies.contests import CPU, ends, judged
from tests.studies.trained import results

(CLAIM,) = nonbottleneck.CLAIMS


def test_the_control_tells_the_removal_from_the_activation():
    found = judged(CLAIM, ends({RESNET: 7.0, MPELU: 5.0, BLOCK_WITH_RELU: 5.0}))
    assert found.outcome == "confirmed"
    assert [round(interval.estimate, 6) for interval in found.intervals] == [2.0, 2.0, 0.0]
    assert judged(CLAIM, ends({RESNET: 5.0, MPELU: 7.0, BLOCK_WITH_RELU: 4.0})).outcome == "refuted"
    assert judged(CLAIM, ends({RESNET: 5.0, BLOCK_WITH_RELU: 4.0})).outcome == "not run"


def test_table_10_has_the_numbers_of_the_text():
    grid = nonbottleneck.show_10(results(CLAIM.jobs(CPU), ends({RESNET: 7.0, MPELU: 5.0}), CPU))
    cells = {row[0]: row[1] for row in grid.rows}
    assert all(isinstance(each, Cell) for each in cells.values())
    papers = {name: each.paper for name, each in cells.items()}
    assert papers["ResNet (He et al.)"] == "6.61"
    assert papers["ResNet* (200 epochs)"] == "", "the text gives no number"
    assert papers["MPELU non-bottleneck ResNet"] == "5.47"
    assert cells["MPELU non-bottleneck ResNet"].ours is not None
    assert cells["ResNet (He et al.)"].ours is None, "their recipe is another one"
