"""Gaussian calculus of an activation: its moments, covariances, and the maps of a wide layer."""

from mpelu.moments.covariance import covariance, slope_covariance
from mpelu.moments.elementwise import Activation, elementwise
from mpelu.moments.gaussian import Moments, expectation, moments
from mpelu.moments.maps import (
    CriticalPoint,
    DepthScale,
    FixedPoint,
    correlation_map,
    critical_point,
    depth_scale,
    fixed_point,
    slope,
    variance_map,
    variance_slope,
)

__all__ = [
    "Activation",
    "CriticalPoint",
    "DepthScale",
    "FixedPoint",
    "Moments",
    "correlation_map",
    "covariance",
    "critical_point",
    "depth_scale",
    "elementwise",
    "expectation",
    "fixed_point",
    "moments",
    "slope",
    "slope_covariance",
    "variance_map",
    "variance_slope",
]
