"""Sinks: where events go. Each renders frozen records and knows nothing of models."""

from __future__ import annotations

from .console import ConsoleSink, Verbosity
from .journal import Journal
from .jsonl import JsonLinesSink, read_events
from .places import find_log, locate_log, log_folder, older_parts

__all__ = [
    "ConsoleSink",
    "Journal",
    "JsonLinesSink",
    "Verbosity",
    "find_log",
    "locate_log",
    "log_folder",
    "older_parts",
    "read_events",
]
