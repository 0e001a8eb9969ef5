"""Initialization: one tensor (``taylor_normal_``) or a whole model (``plan``, ``initialize``).

For one tensor, the others that the paper compares are torch's own: Gaussian is ``torch.nn.init.normal_``, Xavier is
``xavier_normal_``, MSRA is ``kaiming_normal_``; MSRA in average mode is ``taylor_normal_`` with alpha 0.
"""

from mpelu.init.fill import fan, fans, fill_normal_, taylor_gain, taylor_normal_
from mpelu.init.plan import METHODS, InitPlan, PlanRow, apply, initialize, negative_slope, plan

__all__ = [
    "METHODS",
    "InitPlan",
    "PlanRow",
    "apply",
    "fan",
    "fans",
    "fill_normal_",
    "initialize",
    "negative_slope",
    "plan",
    "taylor_gain",
    "taylor_normal_",
]
