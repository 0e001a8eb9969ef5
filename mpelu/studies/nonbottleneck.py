"""The MPELU non-bottleneck block beside the ReLU ResNet, and what the block does with ReLU (claim 38, Table 10).

Source:   Li et al., arXiv:1606.00305, section 5.2, Table 10.
Command:  mpelu reproduce table10
"""

from mpelu.report.grid import UNKNOWN, Cell, Grid
from mpelu.report.paper import printed
from mpelu.studies.arms import Arm, Contest, cell, contested, factors_of, jobs_of
from mpelu.studies.study import Exhibit, Results
from mpelu.studies.swapped import RELU

RESNET = RELU
MPELU = Arm("MPELU non-bottleneck", "nonbottleneck110-mpelu")
BLOCK_WITH_RELU = Arm("ReLU, nothing behind the addition", "nonbottleneck110-relu")
ARMS = (RESNET, MPELU, BLOCK_WITH_RELU)
TITLE_10 = "Test error of ResNets and MPELU non-bottleneck ResNets"


def show_10(results: Results) -> Grid:
    """Return Table 10 in the rows of the one depth whose numbers the text gives."""
    cited = {"network": "ResNet", "depth": "110"}
    mean = printed("table10", {**cited, "best_err": ""}, "mean_err")
    best = printed("table10", {**cited, "mean_err": ""}, "best_err")
    again = printed("table10", {"network": "ResNet* (re-trained 200 epochs)"}, "mean_err")
    block = printed("table10", {"network": "MPELU ResNet non-bottleneck", "depth": "110"}, "mean_err")
    cpu = results.setting.scale == "cpu"
    return Grid(
        "table10",
        TITLE_10,
        ("Network", "Test error, %, depth 110", "Paper's best"),
        (
            ("ResNet (He et al.)", mean, best.paper),
            ("ResNet* (200 epochs)", cell(results, RESNET, again), UNKNOWN),
            ("MPELU non-bottleneck ResNet", cell(results, MPELU, block), UNKNOWN),
            (f"{BLOCK_WITH_RELU.label} (not in the paper)", cell(results, BLOCK_WITH_RELU, Cell()), UNKNOWN),
        ),
        results.setting.scale,
        results.setting.data if cpu else "cifar10",
        factors_of(ARMS) if cpu else (),
    )


CLAIMS = (
    contested(
        38,
        "The MPELU non-bottleneck ResNet-110, with nothing behind the additions, is 1.14 points better than ResNet-110",
        (Contest(RESNET, MPELU),),
        controls=(Contest(RESNET, BLOCK_WITH_RELU), Contest(BLOCK_WITH_RELU, MPELU)),
        note="How much better it is has no part in the verdict. The same block with ReLU is run beside it, since the "
        "gain may be that of leaving out what stands behind the addition",
    ),
)
EXHIBITS = (Exhibit("table10", TITLE_10, jobs_of(ARMS), show_10),)
