"""What a fit may spend, and what is left of it while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

__all__ = ["Allowance", "Budget"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a fit may spend; it ends earlier where nothing is left to gain.

    Attributes:
        iterations: comparisons of all latents with all codes, at least 1. The same iterations give the same codebook.
        seconds: wall time, above 0, or no bound. Looked at before each comparison, so it may be exceeded by one of
            them and by the start; what was reached by then depends on the machine, so that two runs may differ.

    Raises:
        ValueError: out of range.
    """

    iterations: int = 11
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse what allows nothing."""
        if self.iterations < 1:
            raise ValueError(f"budget: expected at least 1 iteration, got {self.iterations}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"budget: expected more than 0 seconds, or None for no bound, got {self.seconds}")


@dataclass(slots=True)
class Allowance:
    """What is left of a budget; an iteration over a part of the latents counts as that part.

    Attributes:
        budget: what was allowed.
        spent: iterations so far.
    """

    budget: Budget
    spent: float = 0.0
    _began: float = field(default_factory=time.perf_counter)

    def left(self, share: float = 1.0, reserve: float = 0.0) -> int:
        """Return how many more iterations over that share of the latents fit, `reserve` whole ones kept back."""
        if self.budget.seconds is not None and time.perf_counter() - self._began >= self.budget.seconds:
            return 0
        return max(0, int((self.budget.iterations - reserve - self.spent) / share + 1e-6))
