"""The durable event log: one JSON object a line, flushed line by line."""

from __future__ import annotations

import json
import logging
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from collapse_guard.events import SCHEMA, Event

__all__ = ["JsonLinesSink", "find_log", "locate_log", "log_folder", "read_events"]

_logger = logging.getLogger("collapse_guard")


_FOLDER = "collapse_guard"
_FILE = "events.jsonl"


class JsonLinesSink:
    """Appends events to `<log dir>/collapse_guard/events.jsonl`; the file is opened at the first event.

    Where the log directory is one that Python imports from, such as a script's own, the folder is `collapse_guard_log`
    instead: a folder `collapse_guard` there would stand in the way of the package of that name. Every line carries
    `run`, a name of its own for each run, since runs may share a log directory.

    Args:
        log_dir: directory of the run.
    """

    def __init__(self, log_dir: str | Path) -> None:
        """Store the path; nothing is created yet."""
        self.path = log_folder(log_dir) / _FILE
        self.run = uuid.uuid4().hex[:8]
        self._file: TextIO | None = None

    def write(self, event: Event) -> None:
        """Append one line and flush it."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and self.path.stat().st_size > 0 and not _ends_with_newline(self.path)
            self._file = self.path.open("a", encoding="utf-8")
            if torn:  # a run that was killed in the middle of a line must not swallow the first line of the next
                self._file.write("\n")
        record = event.as_record() | {"run": self.run}
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def log_folder(log_dir: str | Path) -> Path:
    """Return the folder below a run's log directory that holds what the guard writes; nothing is created.

    Args:
        log_dir: directory of the run.
    """
    imported_from = {Path(entry or ".").resolve() for entry in sys.path}
    name = f"{_FOLDER}_log" if Path(log_dir).resolve() in imported_from else _FOLDER
    return Path(log_dir) / name


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def find_log(path: Path) -> Path | None:
    """Return the event log that a path means: itself, or the one in a run's directory; `None` where there is none."""
    if path.is_file():
        return path
    places = (path / folder / _FILE for folder in (_FOLDER, f"{_FOLDER}_log", "."))
    return next((place for place in places if place.is_file()), None)


def locate_log(path: Path) -> Path:
    """Return the event log that a path means, or where it would be; see `find_log`."""
    return find_log(path) or (path / _FOLDER / _FILE if path.is_dir() else path)


def read_events(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of an event log; a torn or foreign line is skipped with a warning.

    Args:
        path: an `events.jsonl`, the folder that holds it, or the log directory of a run.

    Raises:
        FileNotFoundError: there is no event log there.
        ValueError: a record has a newer schema than this version reads.
    """
    path = locate_log(Path(path))
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                _logger.warning("%s:%d is not a whole JSON line (a torn write?); skipped", path, number)
                continue
            if not isinstance(record, dict):
                _logger.warning("%s:%d is not an event; skipped", path, number)
                continue
            if record.get("schema", 0) > SCHEMA:
                raise ValueError(
                    f"{path}:{number}: expected schema {SCHEMA} or older, got {record['schema']}; "
                    "upgrade collapse_guard"
                )
            yield record
