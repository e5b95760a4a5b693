"""A sink that keeps everything that a guard tells, to look at afterwards."""

from __future__ import annotations

from collapse_guard.events import Event

__all__ = ["Recorder"]


class Recorder:
    """A sink for tests: `Guard(policy, sinks=[recorder])`.

    Attributes:
        events: in order.
        closed: how often the sink was closed.
    """

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self.events: list[Event] = []
        self.closed = 0

    def write(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def close(self) -> None:
        """Count it; what was kept stays."""
        self.closed += 1

    def of(self, *kinds: str) -> list[Event]:
        """Return the events of some kinds, in order."""
        return [event for event in self.events if event.event in kinds]
