"""The recipes behind the tables of the paper, one file for each row or family. Importing them imports no torch."""

from mpelu.recipes.catalog import recipe, row, rows
from mpelu.recipes.row import Row, Target

__all__ = ["Row", "Target", "recipe", "row", "rows"]
