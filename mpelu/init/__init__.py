"""Initialization: one tensor (``taylor_normal_``) or a whole model (``plan``, ``initialize``).

For one tensor, the others that the paper compares are torch's own: Gaussian is ``torch.nn.init.normal_``, Xavier is
``xavier_normal_``, MSRA is ``kaiming_normal_``; MSRA in average mode is ``taylor_normal_`` with alpha 0.
"""

from mpelu.init.fans import (
    Fans,
    blocks,
    effective_fans,
    fan,
    fans,
    propagate_profile,
    propagate_profile_backward,
)
from mpelu.init.fill import (
    DISTRIBUTIONS,
    draw,
    fill_,
    fill_normal_,
    fresh_seed,
    generator,
    taylor_gain,
    taylor_normal_,
    write_,
)
from mpelu.init.fold import FoldReport, FoldRow, fold
from mpelu.init.gains import GAINS, Critical, centered_critical, gain, negative_slope
from mpelu.init.plan import InitPlan, PlanRow, apply, initialize, plan
from mpelu.init.rules import METHODS
from mpelu.init.tailor import nonlinear_depth, tailor
from mpelu.init.transform import Transformed

__all__ = [
    "DISTRIBUTIONS",
    "GAINS",
    "METHODS",
    "Critical",
    "Fans",
    "FoldReport",
    "FoldRow",
    "InitPlan",
    "PlanRow",
    "Transformed",
    "apply",
    "blocks",
    "centered_critical",
    "draw",
    "effective_fans",
    "fan",
    "fans",
    "fill_",
    "fill_normal_",
    "fold",
    "fresh_seed",
    "gain",
    "generator",
    "initialize",
    "negative_slope",
    "nonlinear_depth",
    "plan",
    "propagate_profile",
    "propagate_profile_backward",
    "tailor",
    "taylor_gain",
    "taylor_normal_",
    "write_",
]
