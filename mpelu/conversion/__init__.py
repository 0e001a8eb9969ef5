"""Converting a model: activations of any kind replaced by learnable ones that start as the same function."""

from mpelu.conversion.converting import convert
from mpelu.conversion.record import Conversion, Left, Row

__all__ = ["Conversion", "Left", "Row", "convert"]
