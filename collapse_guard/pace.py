"""The pace: which steps of a calm window are recorded.

A reading of a calm codebook says as much from a part of the steps as from all of them, as long as that part is large
enough and spread evenly. Which steps it is follows from the policy, the step and the last readings alone: it is the
same for all codebooks and on all ranks, and asks no device. Nothing is left out here that somebody waits for: that is
for the guard to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from collapse_guard.policies import Reading

__all__ = ["Pace"]

_STEPS = 10  # of a window, at least: as many as a dense window of the default policy has
_TOKENS_PER_CODE = 16  # at least: with uniform use a code is then missed once in ten million
_MARGIN = 2  # times the tokens below which there is no verdict, as batches differ in size
_GOLDEN = (5**0.5 - 1) / 2


class Pace:
    """Decides for one step after another whether it is recorded; at first all are.

    Attributes:
        share: of the steps of a calm window that are recorded, in (0, 1].
        rests: whether the coming step is not recorded.

    >>> pace = Pace()
    >>> pace.share = 0.2
    >>> [left for left in reversed(range(50)) if not pace.turn(left, is_calm=True)]
    [47, 44, 39, 34, 31, 26, 18, 13, 10, 5, 0]
    """

    def __init__(self) -> None:
        """Begin with a step that is recorded."""
        self.share = 1.0
        self.rests = False
        self._recorded = 1  # steps of the present windows, the coming one included

    def turn(self, left: int, *, is_calm: bool) -> bool:
        """Decide on the coming step, and return whether it is left out.

        The last step before a reading is always recorded. Multiples of the golden ratio modulo 1 are spread evenly over
        any run of steps and any regular part of them (Weyl, "Über die Gleichverteilung von Zahlen mod. Eins", 1916): a
        codebook that is called in every second step only is recorded as often as any other.

        Args:
            left: steps that follow on it until the reading, from 0. is_calm: whether any may be left out.
        """
        self.rests = is_calm and left * _GOLDEN % 1 >= self.share
        self._recorded += not self.rests
        return self.rests

    def note(self, readings: Iterable[Reading], *, every: int, min_tokens: int, has_all: bool) -> None:
        """Learn from the readings of one step how many steps the next window needs.

        Args:
            readings: pooled over the ranks. every: steps of a calm window. min_tokens: fewest for a verdict.
            has_all: whether every codebook that is in use was read; of one that was not, nothing may be left out.
        """
        readings = list(readings)
        steps = max([_STEPS, *(self._recorded * _wanted(each, min_tokens) / each.tokens for each in readings)])
        self.share = min(steps / every, 1.0) if has_all and readings else 1.0
        if all(each.tokens >= min_tokens for each in readings):  # else some windows go on
            self._recorded = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {"share": self.share, "rests": self.rests, "recorded": self._recorded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; from a state without one all steps are recorded until the next reading."""
        self.share, self.rests = float(state.get("share", 1.0)), bool(state.get("rests", False))
        self._recorded = int(state.get("recorded", 1))


def _wanted(reading: Reading, min_tokens: int) -> int:
    return max(_TOKENS_PER_CODE * reading.K, _MARGIN * min_tokens)
