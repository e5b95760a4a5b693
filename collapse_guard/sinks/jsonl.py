"""The durable event log: one JSON object a line, each handed to the system whole as soon as it is told.

What was written stays readable whatever ends the process: a kill tears at most the last line. A disk that is full or
read-only is told once; lines then wait, and are written when there is room again.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collapse_guard.events import SCHEMA, DelayedError, Event

from .places import FILE, locate_log, log_folder, older_parts

__all__ = ["JsonLinesSink", "new_run", "read_events"]

_logger = logging.getLogger("collapse_guard")

_MOST_WAITING = 10_000  # lines that wait for room on the disk: some megabytes
_PARTS = 4
_SMALLEST = 1 << 16
_REPEATED = ("attached", "resumed")


def new_run() -> str:
    """Return a name for a run; nobody's random stream is touched."""
    return uuid.uuid4().hex[:8]


class JsonLinesSink:
    """Appends events to `<log dir>/collapse_guard/events.jsonl`; the file is opened at the first event.

    Where the log directory is one that Python imports from, such as a script's own, the folder is `collapse_guard_log`
    instead: a folder `collapse_guard` there would stand in the way of the package of that name. Every line carries
    `run`, a name of its own for each run, since runs may share a log directory.

    Args:
        log_dir: directory of the run.
        run: its name; made up where not given.
        max_bytes: bound on the log as a whole, at least 64 KiB. The log is then kept in up to four parts,
            `events.1.jsonl` and so on before `events.jsonl`, and the oldest is deleted when a fifth would begin. Each
            begins with what the run was attached with, marked `repeated`. Without a bound nothing is ever deleted.

    Raises:
        ValueError: a bound below 64 KiB.
    """

    def __init__(self, log_dir: str | Path, *, run: str | None = None, max_bytes: int | None = None) -> None:
        """Store the path; nothing is created yet."""
        if max_bytes is not None and max_bytes < _SMALLEST:
            raise ValueError(f"expected max_bytes of at least {_SMALLEST} (64 KiB), got {max_bytes}")
        self.path = log_folder(log_dir) / FILE
        self.run = run if run is not None else new_run()
        self._part_bytes = None if max_bytes is None else max_bytes // _PARTS
        self._descriptor: int | None = None
        self._is_torn = False  # the file ends in the middle of a line
        self._waiting: deque[bytes] = deque()
        self._is_late = False
        self._lost = 0  # lines that waited for too long
        self._heads: dict[str, dict[str, Any]] = {}

    def write(self, event: Event) -> None:
        """Append one line.

        Raises:
            DelayedError: once, when the disk begins to refuse; the line waits, as those after it will.
        """
        record = event.as_record() | {"run": self.run}
        if event.event in _REPEATED:
            self._heads[event.event] = record
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(_line(record))
        try:
            self._write_waiting()
        except OSError as error:
            self._release()
            if not self._is_late:
                self._is_late = True
                raise DelayedError(f"{error}; events wait until {self.path} can be written again") from error
        else:
            self._is_late = False

    def _write_waiting(self) -> None:
        if self._descriptor is None:
            self._open()
        if self._lost:
            reason = f"{self._lost} events were lost while {self.path.name} could not be written"
            told = Event("fault", 0, {"where": type(self).__name__, "reason": reason})
            self._append(_line(told.as_record() | {"run": self.run}))
            self._lost = 0
        while self._waiting:
            if self._part_bytes is not None:
                self._begin_part(self._part_bytes, len(self._waiting[0]))
            self._append(self._waiting[0])
            self._waiting.popleft()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A run that was killed in the middle of a line must not swallow the first line of the next.
        self._is_torn = self.path.is_file() and self.path.stat().st_size > 0 and not _ends_with_newline(self.path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _append(self, line: bytes) -> None:
        """Write a line in one piece; what the disk took of it before it was full is ended by the next one."""
        assert self._descriptor is not None
        rest = b"\n" + line if self._is_torn else line
        while rest:
            written = os.write(self._descriptor, rest)
            rest = rest[written:]
            self._is_torn = bool(rest)

    def _begin_part(self, most: int, coming: int) -> None:
        """Put the file aside where one more line would make it too large, and begin anew."""
        assert self._descriptor is not None
        size = os.fstat(self._descriptor).st_size
        if not size or size + coming <= most:
            return
        parts = older_parts(self.path)
        self.path.rename(self.path.with_suffix(f".{parts[-1][0] + 1 if parts else 1}{self.path.suffix}"))
        for _, part in parts[: max(0, len(parts) - (_PARTS - 2))]:
            part.unlink(missing_ok=True)
        self._release()
        self._open()
        for record in self._heads.values():
            schema, time, step, event, *rest = record.items()
            self._append(_line(dict([schema, time, step, event, ("repeated", True), *rest])))

    def close(self) -> None:
        """Close the file; what still waits is tried once more."""
        try:
            if self._waiting:
                self._write_waiting()
        except OSError as error:
            _logger.warning("%d events could not be written to %s: %s", len(self._waiting), self.path, error)
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _line(record: dict[str, Any]) -> bytes:
    """Return a record as one line; half a surrogate pair, which a file name may hold, is written as a question mark."""
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def read_events(path: str | Path, *, superseded: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the records of an event log, older parts first; a torn or foreign line is skipped with a warning.

    Args:
        path: an `events.jsonl`, the folder that holds it, or the log directory of a run.
        superseded: whether to yield all that was ever written. With `False`: one history, that of the run which began
            last, without what a run that went on from a checkpoint took back; see `collapse_guard.policies.Lineage`.

    Raises:
        FileNotFoundError: there is no event log there.
        ValueError: a record has a newer schema than this version reads.
    """
    if not superseded:
        from collapse_guard.policies import current_history

        yield from (dict(record) for record in current_history(read_events(path)))
        return
    path = locate_log(Path(path))
    seen: set[str] = set()
    for part in [*(part for _, part in older_parts(path)), path]:
        for record in _records(part):
            name = str(record.get("run"))
            if record.get("repeated") and name in seen:  # told again for whoever has only this part
                continue
            seen.add(name)
            yield record


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                _logger.warning("%s:%d is not a whole JSON line (a torn write?); skipped", path, number)
                continue
            if not isinstance(record, dict):
                _logger.warning("%s:%d is not an event; skipped", path, number)
                continue
            schema = record.get("schema", 0)
            if isinstance(schema, int) and schema > SCHEMA:
                raise ValueError(
                    f"{path}:{number}: expected schema {SCHEMA} or older, got {schema}; upgrade collapse_guard"
                )
            yield record
