"""The collapses of the zoo that the policy may be tuned on: what goes wrong, and what its healthy twin has instead.

A package's own prevention is what its users are told to switch on: k-means start and replacement of dead codes. Dead is
a code with 0.2 tokens a step, a tenth of the uniform share where 256 tokens meet 128 codes. The 2 tokens a step that
are often recommended would be the uniform share there.
"""

from __future__ import annotations

from .ill_starts import ILL_STARTS
from .late import LATE
from .scenario import Scenario
from .standing import STANDING

__all__ = ["COLLAPSES"]

COLLAPSES: tuple[Scenario, ...] = (*STANDING, *ILL_STARTS, *LATE)
"""All but the fresh ones."""
