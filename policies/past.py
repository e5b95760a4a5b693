"""The past of a codebook: what `rel` and `trend` compare its readings with.

    rel(field)                      the value / the best that this codebook has held so far, over two readings in a row
    trend(field, over: 5 readings)  slope per reading of the least-squares line through the last 5 values / their |mean|

Best is the highest value of a field in `HIGHEST_IS_BEST` and the lowest of one in `LOWEST_IS_BEST`; other fields have
no best, and no `rel`. `rel(perplexity) < 0.3` thus means "fallen below 30 % of what it has held", and `rel(loss) > 1.5`
"half as much again as its lowest"; of a value that is better than that, `rel` is 1. What one reading shows and the next
does not was not held: right after a start by k-means, say, codes are compared with the very latents that they were made
of. So `rel` is unknown until a second value is known, and while the best is not above 0.

`trend(perplexity, over: 5 readings) < -0.1` means "losing a tenth of its mean with every reading". It is unknown until
there are so many values, or if their mean is 0. Only readings that give a verdict count, so warm-up, small windows and
settling leave no trace; the values for `trend` begin anew with every intervention and with every rollback.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from .reading import Reading

__all__ = ["HIGHEST_IS_BEST", "LOWEST_IS_BEST", "NOTHING", "Derived", "Past", "Wanted", "slope"]

HIGHEST_IS_BEST = ("perplexity", "perplexity_ratio", "usage", "latent_rank", "codebook_rank", "finite_fraction")
LOWEST_IS_BEST = ("dead_fraction", "top_share", "relative_error", "quantization_error", "loss")

_IS_BETTER: dict[str, Callable[[float, float], bool]] = {
    **dict.fromkeys(HIGHEST_IS_BEST, operator.gt),
    **dict.fromkeys(LOWEST_IS_BEST, operator.lt),
}


@dataclass(frozen=True, slots=True)
class Past:
    """What is remembered of one codebook, no more than the policy asks for.

    Attributes:
        best: best finite value so far that two known values in a row came up to, by field.
        last: latest finite value, by field of which the best is wanted; none right after an intervention.
        recent: last finite values, oldest first, by field.
    """

    best: Mapping[str, float] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    recent: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def with_reading(self, reading: Reading, bests: Iterable[str], spans: Mapping[str, int]) -> Past:
        """Return the past with one more reading in it.

        Args:
            reading: one that gives a verdict.
            bests: fields whose best is wanted.
            spans: how many values of a field are wanted.
        """
        best, last, recent = self.best, dict(self.last), dict(self.recent)
        for name in bests:
            value = getattr(reading, name)
            if value is not None and math.isfinite(value):
                is_better = _IS_BETTER[name]
                before, known = last.get(name), best.get(name)
                last[name] = value
                if before is not None:
                    held = before if is_better(value, before) else value
                    if known is None or is_better(held, known):
                        best = {**best, name: held}
        for name, count in spans.items():
            value = getattr(reading, name)
            if value is not None and math.isfinite(value):
                recent[name] = (*recent.get(name, ()), value)[-count:]
        return Past(best, last, recent)

    def to_dict(self) -> dict[str, Any]:
        """Return the past as plain data."""
        recent = {name: list(values) for name, values in self.recent.items()}
        return {"best": dict(self.best), "last": dict(self.last), "recent": recent}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Past:
        """Rebuild a past from `to_dict`."""
        recent = {name: tuple(values) for name, values in plain["recent"].items()}
        if "last" not in plain:  # as older versions wrote it; what they call best need not have been held
            return cls({}, dict(plain["best"]), recent)
        return cls(dict(plain["best"]), dict(plain["last"]), recent)

    def restarted(self) -> Past:
        """Return the past without its latest values, for the time after an intervention."""
        return Past(self.best) if self.recent or self.last else self

    def trend(self, name: str, over: int) -> float | None:
        """Return the relative slope over so many values."""
        values = self.recent.get(name, ())
        return slope(values[-over:]) if len(values) >= over else None


class Wanted(NamedTuple):
    """What a `rel(...)` or a `trend(...)` asks for: a field, and over how many values; 0 for `rel`."""

    field: str
    over: int


class Derived(dict[str, "float | None"]):
    """Values of `rel(...)` and `trend(...)` at a reading by their text, each computed when it is first asked for.

    `None` where one is not known.

    Args:
        wanted: what can be asked for, by its text. past: up to the reading, which is the last in it.
        reading: may be left out where nothing can be asked for.
    """

    __slots__ = ("_past", "_reading", "_wanted")

    def __init__(self, wanted: Mapping[str, Wanted], past: Past, reading: Reading | None) -> None:
        """Compute nothing yet."""
        self._wanted, self._past, self._reading = wanted, past, reading

    def __missing__(self, text: str) -> float | None:
        """Compute a value."""
        wanted = self._wanted.get(text)
        if wanted is None:
            return None
        if wanted.over:
            found = self._past.trend(wanted.field, wanted.over)
        else:
            value, best = getattr(self._reading, wanted.field), self._past.best.get(wanted.field)
            if value is None or best is None or not best > 0:
                found = None
            else:  # what is better than what was held is 1
                found = 1.0 if _IS_BETTER[wanted.field](value, best) else value / best
        self[text] = found
        return found


NOTHING = Derived({}, Past(), None)
"""What is derived where nothing has passed yet."""


def slope(values: Sequence[float]) -> float | None:
    """Return the slope of the least-squares line through two or more values, per step, relative to their |mean|.

    >>> slope([8.0, 10.0, 12.0])
    0.2
    """
    places, run = _places(len(values))
    mean = sum(values) / len(values)
    rise = sum(map(operator.mul, places, values))
    return rise / run / abs(mean) if mean else None


@lru_cache(maxsize=100)  # a trend has at most so many values
def _places(count: int) -> tuple[tuple[float, ...], float]:
    """Return the places of so many values in a row, counted from their middle, and the sum of their squares."""
    places = tuple(place - (count - 1) / 2 for place in range(count))
    return places, sum(place**2 for place in places)
