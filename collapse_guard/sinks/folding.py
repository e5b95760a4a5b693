"""Keeps a console readable when much happens at once: what is too much is counted, and the count is told.

Time is that of the events. Nothing here prints; what was folded is in the event log all the same.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime

from collapse_guard.events import Event

from .lines import Entry, who

__all__ = ["Folding"]

_SPAN = 60.0
"""Seconds that are looked at together."""

_ALWAYS = {"attached", "resumed", "exhausted", "carried_out", "fault", "summary"}
"""Told once by nature, or too important to be folded."""


@dataclass(slots=True)
class _Folded:
    """What was folded of one kind: when that began, at which steps, and how many entries."""

    began: float
    first: int
    last: int
    count: int = 1


_MANY = ("entries of all kinds",)


class Folding:
    """Decides which events are printed.

    Args:
        alike: entries of one kind (codebook, rule or action, label) that are printed within a minute.
        together: entries of all kinds that are printed within a minute.
    """

    def __init__(self, *, alike: int, together: int) -> None:
        """Begin with nothing printed and nothing folded."""
        self._alike, self._together = alike, together
        self._printed: dict[tuple[str, ...], deque[float]] = {}
        self._all: deque[float] = deque()
        self._folded: dict[tuple[str, ...], _Folded] = {}

    def take(self, event: Event, label: str) -> list[Entry] | None:
        """Take an event in: return what is printed in its place, or `None` where it is printed itself."""
        if event.event in _ALWAYS:
            return None
        now, kind = _seconds(event), _kind(event, label)
        mine = self._printed.setdefault(kind, deque())
        for times in (mine, self._all):
            while times and now - times[0] >= _SPAN:
                times.popleft()
        if kind not in self._folded and len(mine) < self._alike:
            if len(self._all) < self._together and _MANY not in self._folded:
                mine.append(now)
                self._all.append(now)
                return None
            kind = _MANY
        if kind in self._folded:
            self._folded[kind].count += 1
            self._folded[kind].last = event.step
            return []
        self._folded[kind] = _Folded(now, event.step, event.step)
        text = f"{': '.join(kind)}: more within this minute is counted here, and whole in the event log"
        return [Entry("folded", text, "", event.step, event.time)]

    def told(self, event: Event) -> list[Entry]:
        """Return the counts of what was folded more than a minute ago; at the end of the run all of them."""
        now, is_end = _seconds(event), event.event == "summary"
        due = {kind: each for kind, each in self._folded.items() if is_end or now - each.began >= _SPAN}
        for kind in due:
            del self._folded[kind]
        return [
            Entry("folded", f"{': '.join(kind)}: {each.count} from step {each.first} to {each.last}", "", each.last)
            for kind, each in due.items()
        ]


def _kind(event: Event, label: str) -> tuple[str, ...]:
    fields = event.fields
    what = fields.get("action") if event.event in ("intervention", "outcome") else fields.get("rule")
    return tuple(part for part in (who(fields) if "codebook" in fields else "", str(what or ""), label) if part)


def _seconds(event: Event) -> float:
    try:
        return datetime.fromisoformat(event.time).timestamp()
    except ValueError:  # an event of somebody's own making
        return 0.0
