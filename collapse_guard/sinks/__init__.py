"""Sinks: where events go. Each renders frozen records and knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from collapse_guard.events import Sink

from .console import ConsoleSink, Verbosity
from .jsonl import JsonLinesSink, find_log, locate_log, log_folder, read_events

__all__ = [
    "ConsoleSink",
    "JsonLinesSink",
    "Verbosity",
    "find_log",
    "locate_log",
    "log_folder",
    "open_sinks",
    "read_events",
]


def open_sinks(
    log_dir: str | Path | None, *, console: ConsoleSink | None, further: Sequence[Sink]
) -> tuple[list[Sink], JsonLinesSink | None]:
    """Open the sinks of a run; return them all, the console first, and the one that writes the event log."""
    log = JsonLinesSink(log_dir) if log_dir is not None else None
    own: list[Sink | None] = [console, log]
    return [sink for sink in (*own, *further) if sink is not None], log
