"""Initialization: one tensor (``taylor_normal_``) or a whole model (``plan``, ``initialize``)."""

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
