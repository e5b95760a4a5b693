"""A series of numbers in bounded memory: thinned by merging neighbours, never by leaving out the extremes.

What is kept of each stretch of steps is its lowest, its highest and its last value, so that a dip of one reading stays
visible however long the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Series", "Stretch"]

_MOST = 1024


@dataclass(slots=True)
class Stretch:
    """Readings in a row that are kept as one.

    Attributes:
        first, last: steps of its first and its last reading. low, high, end: lowest, highest and last value.
        count: of readings.
    """

    first: int
    last: int
    low: float
    high: float
    end: float
    count: int = 1

    def absorb(self, other: Stretch) -> None:
        """Take in the stretch that follows."""
        self.last, self.end = other.last, other.end
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count


class Series:
    """Values by step, at most `most` stretches of them.

    Args:
        most: stretches kept; at least 2.

    Attributes:
        stretches: in order.
    """

    def __init__(self, most: int = _MOST) -> None:
        """Begin empty."""
        self.stretches: list[Stretch] = []
        self._most = max(2, most)
        self._each = 1  # readings that a stretch holds before the next begins

    def __len__(self) -> int:
        """Return the number of readings, of which many may share a stretch."""
        return sum(each.count for each in self.stretches)

    @property
    def is_thinned(self) -> bool:
        """Whether stretches hold more than one reading."""
        return self._each > 1

    def add(self, step: int, value: float) -> None:
        """Append a reading."""
        new = Stretch(step, step, value, value, value)
        if self.stretches and self.stretches[-1].count < self._each:
            self.stretches[-1].absorb(new)
            return
        self.stretches.append(new)
        if len(self.stretches) > self._most:
            self._halve()

    def forget_after(self, step: int) -> None:
        """Drop the stretches that begin after a step."""
        while self.stretches and self.stretches[-1].first > step:
            self.stretches.pop()

    def columns(self, count: int, first: int, last: int) -> list[Stretch | None]:
        """Return what falls into each of `count` equal spans of the steps from `first` to `last`; `None` for nothing.

        A stretch that reaches over several spans shows in each of them: between its readings nothing else is known.
        """
        found: list[Stretch | None] = [None] * count
        span = max(1, last - first)
        for each in self.stretches:
            begin = min(count - 1, max(0, (each.first - first) * count // (span + 1)))
            end = min(count - 1, max(0, (each.last - first) * count // (span + 1)))
            for index in range(begin, end + 1):
                before = found[index]
                if before is None:
                    found[index] = Stretch(each.first, each.last, each.low, each.high, each.end, each.count)
                else:
                    before.absorb(each)
        return found

    def __iter__(self) -> Iterator[Stretch]:
        """Yield the stretches."""
        return iter(self.stretches)

    def _halve(self) -> None:
        merged: list[Stretch] = []
        for index, each in enumerate(self.stretches):
            if index % 2:
                merged[-1].absorb(each)
            else:
                merged.append(each)
        self.stretches, self._each = merged, self._each * 2
