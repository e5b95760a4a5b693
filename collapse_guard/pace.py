"""The pace: which steps of a calm window are recorded.

A reading of a calm codebook says as much from a part of the steps as from all of them, as long as that part is large
enough. The last steps before the reading are recorded: what it says is how the codebook is now. Steps from all over the
window would be fairer to data that come in long runs of a kind, and a collapse would be seen a reading later: most of
the first window that meets it would be from before it. Data in runs must be told from a collapse in any case, since
windows are as short where something is suspected.

Which steps it is follows from the policy, the step and the last readings alone: it is the same for all codebooks and on
all ranks, and asks no device. Nothing is left out here that somebody waits for: that is for the guard to tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from collapse_guard.policies import Reading

__all__ = ["Pace"]

_STEPS = 10  # of a window, at least: as many as a dense window of the default policy has
_TOKENS_PER_CODE = 16  # at least: with uniform use a code is then missed once in ten million
_MARGIN = 2  # times the tokens below which there is no verdict, as batches differ in size


class Pace:
    """Decides for one step after another whether it is recorded; at first all are.

    Attributes:
        steps: how many of the last steps of a calm window are recorded; `None` for all.
        rests: whether the coming step is not recorded.

    >>> pace = Pace()
    >>> pace.steps = 12
    >>> sum(not pace.turn(left, is_calm=True) for left in reversed(range(50)))
    12
    """

    def __init__(self) -> None:
        """Begin with a step that is recorded."""
        self.steps: int | None = None
        self.rests = False
        self._recorded = 1  # steps of the present windows, the coming one included
        self._least = _STEPS

    def turn(self, left: int, *, is_calm: bool) -> bool:
        """Decide on the coming step, and return whether it is left out.

        Args:
            left: steps that follow on it until the reading, from 0. is_calm: whether any may be left out.
        """
        self.rests = is_calm and self.steps is not None and left >= self.steps
        self._recorded += not self.rests
        return self.rests

    def note(self, readings: Iterable[Reading], *, every: int, min_tokens: int, has_all: bool) -> None:
        """Learn from the readings of one step how many steps the next window needs.

        A codebook that is called in some steps only may have been missed: the next window has all steps, and every one
        after it twice as many as had been thought enough.

        Args:
            readings: pooled over the ranks. every: steps of a calm window. min_tokens: fewest for a verdict.
            has_all: whether every codebook that is in use was read; of one that was not, nothing may be left out.
        """
        readings = list(readings)
        if not has_all and self.steps is not None:
            self._least = min(2 * self._least, every)
        steps = max([self._least, *(self._recorded * _wanted(each, min_tokens) / each.tokens for each in readings)])
        self.steps = math.ceil(steps) if has_all and readings and steps < every else None
        if all(each.tokens >= min_tokens for each in readings):  # else some windows go on
            self._recorded = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {"steps": self.steps, "rests": self.rests, "recorded": self._recorded, "least": self._least}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; from a state without one all steps are recorded until the next reading."""
        self.steps, self.rests = state.get("steps"), bool(state.get("rests", False))
        self._recorded, self._least = int(state.get("recorded", 1)), int(state.get("least", _STEPS))


def _wanted(reading: Reading, min_tokens: int) -> int:
    return max(_TOKENS_PER_CODE * reading.K, _MARGIN * min_tokens)
