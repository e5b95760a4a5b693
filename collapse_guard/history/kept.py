"""What a run told, kept in memory as flat records: for a notebook, where one asks while it trains or just after.

Memory is bounded: at most `MOST_READINGS` readings and `MOST_EVENTS` other events, some 10 MB. When there are more
readings, of each two neighbours of a codebook the one with the lower perplexity stays, so that no dip is lost; of other
events the first and the latest halves stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from collapse_guard.events import Event

__all__ = ["MOST_EVENTS", "MOST_READINGS", "Kept"]

MOST_READINGS = 10_000
MOST_EVENTS = 1_000

NUMBERS = (
    "tokens",
    "perplexity",
    "ceiling",
    "perplexity_ratio",
    "usage",
    "dead_fraction",
    "top_share",
    "norm_ratio",
    "relative_error",
    "quantization_error",
    "loss",
)
WORDS = ("rule", "severity", "reason", "why", "action", "attempt", "result", "outcome", "summary")
_TOLD = {"alert", "intervention", "outcome", "cleared", "exhausted", "fault", "resumed"}


class Kept:
    """A sink that keeps flat records.

    Attributes:
        columns: keys of every record, in order: `step`, `time`, `event`, `codebook`, `stage` (`train` or `eval`),
            `health`, the numbers of a reading and the words of what happened; what does not apply is `None`.
    """

    columns = ("step", "time", "event", "codebook", "stage", "health", *NUMBERS, *WORDS)

    def __init__(self, *, most_readings: int = MOST_READINGS, most_events: int = MOST_EVENTS) -> None:
        """Begin with nothing."""
        self._most_readings, self._most_events = max(2, most_readings), max(2, most_events)
        self._readings: dict[str, list[dict[str, Any]]] = {}
        self._events: list[dict[str, Any]] = []
        self._count = 0

    def write(self, event: Event) -> None:
        """Keep a reading, or what happened on each codebook that an event concerns."""
        if event.event == "reading":
            self._readings.setdefault(str(event.fields["codebook"]), []).append(self._record(event, event.fields))
            self._count += 1
            if self._count > self._most_readings:
                self._thin()
        elif event.event in _TOLD:
            parts: Iterable[Mapping[str, Any]] = event.fields.get("members") or ({},)
            for part in parts:
                self._events.append(self._record(event, {**event.fields, **part}))
            if len(self._events) > self._most_events:
                half = self._most_events // 2
                self._events = self._events[:half] + self._events[-half:]

    def close(self) -> None:
        """Nothing is held that must be released; what was kept stays."""

    def records(self) -> list[dict[str, Any]]:
        """Return all records in the order of their steps."""
        readings = [record for kept in self._readings.values() for record in kept]
        return [dict(each) for each in sorted([*readings, *self._events], key=lambda record: record["step"])]

    def _record(self, event: Event, fields: Mapping[str, Any]) -> dict[str, Any]:
        head = {"step": event.step, "time": event.time, "event": event.event, "codebook": fields.get("codebook")}
        return head | {name: fields.get(name) for name in ("stage", "health", *NUMBERS, *WORDS)}

    def _thin(self) -> None:
        for name, kept in self._readings.items():
            pairs = [kept[at : at + 2] for at in range(0, len(kept), 2)]
            self._readings[name] = [min(pair, key=_perplexity) for pair in pairs]
        self._count = sum(map(len, self._readings.values()))


def _perplexity(record: dict[str, Any]) -> float:
    value = record["perplexity"]
    return value if isinstance(value, (int, float)) and value == value else float("inf")
