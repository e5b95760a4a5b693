"""A sink that keeps everything; apart from the loops, which load their data."""

from __future__ import annotations

from collapse_guard import Event


class Recorder:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def write(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.event in kinds]
