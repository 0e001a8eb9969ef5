"""The residual blocks of Figures 4 and 5, drawn from the designs that the networks are built from.

Source:   Li et al., arXiv:1606.00305, sections 5.1 and 5.2, Figures 4 and 5; what is not drawn in the text is said in
          :mod:`mpelu.models.cifar_resnet`.
Command:  mpelu reproduce figure4 (figure5)
"""

from typing import TYPE_CHECKING

from mpelu.report.grid import Picture
from mpelu.studies.study import Claim, Exhibit, Results

if TYPE_CHECKING:
    from mpelu.report.diagram import Diagram

FIGURE4 = (
    ("(a) ResNet", "resnet", "ReLU"),
    ("(b) non-bottleneck", "nonbottleneck", "MPELU"),
    ("(c) full pre-activation", "preact", "ReLU"),
    ("(d) full, with MPELU", "preact", "MPELU"),
)
FIGURE5 = (
    ("(a) MPELU first, BN last", "fig5a", "MPELU"),
    ("(b) MPELU first", "fig5b", "MPELU"),
    ("(c) nopre, BN last", "fig5c", "MPELU"),
    ("(d) nopre", "nopre", "MPELU"),
    ("(e) nopre without BN", "fig5e", "MPELU"),
)
"""Title, design and activation of each block, from left to right."""
KINDS = ("conv", "norm", "act")


def step_text(step: str, activation: str) -> str:
    """Return what stands in the box of a step of a design.

    Example:
        >>> [step_text(step, "MPELU") for step in ("conv3", "norm", "act")]
        ['conv 3x3', 'BN', 'MPELU']
    """
    kernel = step.removeprefix("conv")
    return {"norm": "BN", "act": activation}.get(step, f"conv {kernel}x{kernel}")


def diagram(title: str, family: str, activation: str) -> "Diagram":
    """Return the boxes of a design of :data:`mpelu.models.cifar_resnet.DESIGNS`."""
    from mpelu.models import DESIGNS
    from mpelu.report.diagram import Diagram

    design = DESIGNS[family]
    steps = (*design.steps, *design.after.split())
    return Diagram(
        title=title,
        branch=tuple(step_text(step, activation) for step in design.steps),
        after=tuple(step_text(step, activation) for step in design.after.split()),
        kinds={step_text(step, activation): KINDS.index(step.rstrip("0123456789")) for step in steps},
    )


def _picture(name: str, title: str, blocks: tuple[tuple[str, str, str], ...], caption: str) -> Picture:
    from mpelu.report.diagram import diagram_figure

    svg = diagram_figure([diagram(*block) for block in blocks], name=name, title=title)
    return Picture(name=name, title=title, svg=svg, caption=caption, scale="any", data="")


def _figure4(_: Results) -> Picture:
    return _picture(
        "figure4",
        "Residual blocks with MPELU",
        FIGURE4,
        "Drawn from the designs that the networks are built from. The line at the right is the shortcut: the identity, "
        "but for the first block of a stage; in (c) and (d) that block's shortcut is a 1x1 convolution of what the "
        "first BN and activation give.",
    )


def _figure5(_: Results) -> Picture:
    return _picture(
        "figure5",
        "Alternatives for the residual function",
        FIGURE5,
        "Drawn from the designs that the networks are built from. (d) is the block that the paper proposes. The first "
        "block of a stage has a 1x1 convolution as its shortcut.",
    )


CLAIMS: tuple[Claim, ...] = ()
EXHIBITS = (
    Exhibit("figure4", "Residual blocks with MPELU", lambda _: (), _figure4),
    Exhibit("figure5", "Alternatives for the residual function", lambda _: (), _figure5),
)
