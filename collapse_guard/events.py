"""What the guard tells: frozen records, handed to sinks.

An event is one thing that happened at one step. Sinks (console, JSON lines, a Trainer's loggers) render it. A sink
that raises is dropped and the run goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from time import time_ns
from typing import Any, Protocol

__all__ = ["SCHEMA", "DelayedError", "Event", "EventLog", "Fault", "Sink"]

SCHEMA = 1
"""Version of the event record; a reader refuses what is newer than it knows."""

Fault = Callable[[str, str], None]
"""(where, reason): told once of each thing that went wrong."""

_logger = logging.getLogger("collapse_guard")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        event: `attached`, `reading`, `pending`, `alert`, `withdrawn`, `intervention`, `tended`, `outcome`, `skip`,
            `cleared`, `exhausted`, `carried_out`, `fault`, `resumed` or `summary`.
        step: optimizer steps completed.
        fields: what else there is to say, as plain data. What concerns several levels of a residual has `group`,
            `codebooks`, `levels` and `members`, one record for each level, coarse first.
        time: when, in UTC, ISO 8601.
    """

    event: str
    step: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=lambda: _in_words(time_ns() // 1_000_000))

    def as_record(self) -> dict[str, Any]:
        """Return the event as one flat dict that JSON can hold; non-finite numbers become `None`."""
        head = {"schema": SCHEMA, "time": self.time, "step": self.step, "event": self.event}
        return head | {key: _plain(value) for key, value in self.fields.items()}


class DelayedError(OSError):
    """A sink could not write, keeps what it was given, and tries again with the next event. It is not switched off."""


class Sink(Protocol):
    """Where events go."""

    def write(self, event: Event) -> None:
        """Render or store one event."""

    def close(self) -> None:
        """Release what is held; called once, also after an exception in the run."""


class EventLog:
    """Hands each event to every sink; drops a sink that raises, and says so once. One that is only late is kept.

    Args:
        sinks: where events go, in order.

    Attributes:
        closing: whether the run is being closed. What is told then is marked with `closing`: a run that goes on from
            the state before it has not settled it, and says something else about it later.
    """

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        """Store the sinks."""
        self.sinks: list[Sink] = list(sinks)
        self.closing = False

    def emit(self, event: str, step: int, **fields: Any) -> None:
        """Record that something happened."""
        record = Event(event, step, fields | {"closing": True} if self.closing else fields)
        for sink in list(self.sinks):
            try:
                sink.write(record)
            except DelayedError as error:
                reason = f"{type(sink).__name__}: {error}; training goes on"
                _logger.warning("%s", reason)
                self.emit("fault", step, where=type(sink).__name__, reason=reason)
            except Exception as error:  # a full disk or a foreign logger must not stop a training run
                self.sinks.remove(sink)
                _logger.warning("%s", _dropped(sink, error))
                self.emit("fault", step, where=type(sink).__name__, reason=_dropped(sink, error))

    def close(self) -> None:
        """Close every sink, whatever some of them raise."""
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as error:
                _logger.warning("%s", _dropped(sink, error))


def _dropped(sink: Sink, error: Exception) -> str:
    return f"{type(sink).__name__} raised {type(error).__name__}: {error}; it is switched off, training goes on"


def _in_words(milliseconds: int) -> str:
    """Return a time since 1970 in UTC, ISO 8601.

    >>> _in_words(1_700_000_000_005)
    '2023-11-14T22:13:20.005+00:00'
    """
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}+00:00"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").removesuffix("+00:00")


def _plain(value: Any) -> Any:
    """Return JSON data for what events carry."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)
