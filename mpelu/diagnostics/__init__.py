"""Diagnosis: why a deep network does not train, measured in one forward and backward pass."""

from mpelu.diagnostics.examine import diagnose, unwrapped
from mpelu.diagnostics.measure import Observer, observed
from mpelu.diagnostics.records import STATES, Diagnosis, Estimate, Finding, LayerRecord, Verdict
from mpelu.diagnostics.steps import Steps
from mpelu.diagnostics.watch import Watch, watch

__all__ = [
    "STATES",
    "Diagnosis",
    "Estimate",
    "Finding",
    "LayerRecord",
    "Observer",
    "Steps",
    "Verdict",
    "Watch",
    "diagnose",
    "observed",
    "unwrapped",
    "watch",
]
