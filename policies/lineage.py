"""Lineage: which lines of an event log still count, where runs went on from checkpoints.

A run that is killed at step 100 and goes on from a checkpoint of step 60 takes steps 61 to 100 again. What the log says
of the first time is *superseded*: the run itself has forgotten it. The event `resumed` marks it: it names the run that
it `continues`, whose lines after the `step` of the event no longer count, nor do those that it wrote in order to close
(`closing`). Nothing is ever deleted from a log; a reader leaves out what is superseded.

Plain records in, yes or no out; opening files is left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

__all__ = ["Lineage", "Segment", "current_history"]

Segment: TypeAlias = tuple[str, int]
"""What one process wrote of one run: the name on its lines, and how often a run of that name had begun before."""


class Lineage:
    """The runs of a log and which of them went on from which. Show it every record, in the order of the log.

    Attributes:
        latest: what began last; `None` before the first record.
        parents: for each segment that went on from another: that one, and the last step of it that counts.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.latest: Segment | None = None
        self.parents: dict[Segment, tuple[Segment, float]] = {}
        self._begun: dict[str, int] = {}
        self._order: list[Segment] = []
        self._attached: set[Segment] = set()

    def note(self, record: Mapping[str, Any]) -> Segment:
        """Take one record, and return the segment that it belongs to."""
        name, event = str(record.get("run")), record.get("event")
        is_attached = event == "attached" and not record.get("repeated")
        if name not in self._begun or (is_attached and (name, self._begun[name]) in self._attached):
            self._begun[name] = self._begun.get(name, -1) + 1
            self.latest = (name, self._begun[name])
            self._order.append(self.latest)
        segment = (name, self._begun[name])
        if is_attached:
            self._attached.add(segment)
        if event == "resumed" and segment not in self.parents and (parent := self._parent(segment, record)) is not None:
            step = record.get("step")
            is_number = isinstance(step, (int, float)) and not isinstance(step, bool)
            self.parents[segment] = (parent, float(step) if is_number else math.inf)
        return segment

    def _parent(self, segment: Segment, record: Mapping[str, Any]) -> Segment | None:
        """Return what a segment goes on from: the one that it names, or in a log that names none the one before it."""
        name = record.get("continues")
        if name is not None:
            begun = self._begun.get(str(name), -1) - (str(name) == segment[0])
            return (str(name), begun) if begun >= 0 else None
        place = self._order.index(segment)
        return self._order[place - 1] if place else None

    def last_steps(self, segment: Segment) -> dict[Segment, float]:
        """Return the history of a segment: itself and all that it went on from, each with its last step that counts."""
        found, last = {segment: math.inf}, math.inf
        while segment in self.parents:
            segment, step = self.parents[segment]
            if segment in found:  # a log that was put together by hand
                break
            last = min(last, step)
            found[segment] = last
        return found

    def superseded(self) -> set[Segment]:
        """Return the segments that others went on from, and those whose own beginning was gone on from again later."""
        last_of = {parent: segment for segment, (parent, _) in self.parents.items()}
        given_up = {segment for segment, (parent, _) in self.parents.items() if last_of[parent] != segment}
        return given_up | set(last_of)

    @property
    def runs_count(self) -> int:
        """How many runs the log holds; one that went on from another is the same run."""
        return len(self._order) - len(self.superseded())


def counts(record: Mapping[str, Any], last: float) -> bool:
    """Whether a record of a segment counts, of which the last step that counts is `last`; infinite for the latest."""
    if last == math.inf:
        return True
    step = record.get("step")
    return not record.get("closing") and isinstance(step, (int, float)) and step <= last


def current_history(records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the records of the run that began last, from its first step on, without those that are superseded.

    >>> log = [{"run": "a", "event": "attached", "step": 0}, {"run": "a", "event": "reading", "step": 5}]
    >>> log += [{"run": "a", "event": "reading", "step": 9}, {"run": "b", "event": "attached", "step": 0}]
    >>> log += [{"run": "b", "event": "resumed", "step": 5, "continues": "a"}]
    >>> [(each["run"], each["step"]) for each in current_history(log)]
    [('a', 0), ('a', 5), ('b', 0), ('b', 5)]
    """
    kept, lineage = list(records), Lineage()
    places = [lineage.note(record) for record in kept]
    if lineage.latest is None:
        return
    last_steps = lineage.last_steps(lineage.latest)
    for place, record in zip(places, kept, strict=True):
        if place in last_steps and counts(record, last_steps[place]):
            yield record
