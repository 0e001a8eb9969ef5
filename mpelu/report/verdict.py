"""What a study says about one claim, with the numbers behind it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Verdict:
    """A claim, whether the runs bear it out, and the numbers that say so.

    Example:
        >>> Verdict("MPELU learns where ReLU does not", "holds", "test error 4.0 % against 90.0 %").outcome
        'holds'
    """

    statement: str
    outcome: Literal["holds", "fails", "inconclusive"]
    evidence: str
