"""Sinks: where events go. Each renders frozen records and knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from collapse_guard.events import Sink

from .console import ConsoleSink, Verbosity
from .jsonl import JsonLinesSink, new_run, read_events
from .places import find_log, locate_log, log_folder, older_parts

__all__ = [
    "ConsoleSink",
    "JsonLinesSink",
    "Verbosity",
    "find_log",
    "locate_log",
    "log_folder",
    "new_run",
    "older_parts",
    "open_sinks",
    "read_events",
]


def open_sinks(
    log_dir: str | Path | None, *, run: str, max_bytes: int | None, console: ConsoleSink | None, further: Sequence[Sink]
) -> tuple[list[Sink], JsonLinesSink | None]:
    """Open the sinks of a run; return them all, the console first, and the one that writes the event log."""
    log = JsonLinesSink(log_dir, run=run, max_bytes=max_bytes) if log_dir is not None else None
    own: list[Sink | None] = [console, log]
    return [sink for sink in (*own, *further) if sink is not None], log
