"""Types of numbers that have a range: ``def __init__(self, dropout: UnitInterval = 0.1)``.

The check of configs reads the ranges from the source, as it does types, and refuses a number that
is outside, by file and line, before torch is imported. Calls from Python are not checked.
"""

import math
from dataclasses import dataclass
from typing import Annotated

__all__ = [
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Range",
    "UnitInterval",
]


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``, both of them included, and ``above`` a bound, without it."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and (
            number > self.above or self.above == -math.inf
        )

    def __str__(self) -> str:
        """For people: ``1 or more``, ``0 to 1``, ``above 0``, ``above 0, 1 or less``."""
        if self.above == -math.inf and -math.inf < self.least and self.most < math.inf:
            return f"{self.least} to {self.most}"
        parts = [f"above {self.above}"] if self.above > -math.inf else []
        parts += [f"{self.least} or more"] if self.least > -math.inf else []
        parts += [f"{self.most} or less"] if self.most < math.inf else []
        return ", ".join(parts)


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(0)]
UnitInterval = Annotated[float, Range(0, 1)]
