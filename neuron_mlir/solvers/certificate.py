"""What a solver's answer is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], bool]
"""Called with (best objective so far, proven lower bound); returns False to stop the search, which then keeps its
best.
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """An objective that is minimised, and a bound that no solution of the same problem is below."""

    objective: int
    lower_bound: int
    unit: str
    method: str
    """How both were found, a few words."""

    def __post_init__(self) -> None:
        if not 0 <= self.lower_bound <= self.objective:
            raise ValueError(f"lower bound {self.lower_bound} is not between 0 and the objective {self.objective}")

    @property
    def gap(self) -> float:
        """The part of the objective that is not proven necessary, 0 to 1."""
        return (self.objective - self.lower_bound) / self.objective if self.objective else 0.0

    @property
    def proven_optimal(self) -> bool:
        return self.objective == self.lower_bound
