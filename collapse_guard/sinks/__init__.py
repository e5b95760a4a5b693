"""Sinks: where events go. Each renders frozen records and knows nothing of models."""

from __future__ import annotations

from .console import ConsoleSink
from .jsonl import JsonLinesSink, log_folder, read_events

__all__ = ["ConsoleSink", "JsonLinesSink", "log_folder", "read_events"]
