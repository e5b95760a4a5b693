"""Follows an event log as it grows: whole lines only, whatever becomes of the file meanwhile.

It opens, seeks and parses; what the records mean is decided in `runs`. Nothing is raised for what a log may hold: what
cannot be read is counted in `lost`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from collapse_guard.events import SCHEMA

__all__ = ["Follower", "Lost", "parsed"]

_HEAD = 65_536  # bytes by which a file is known again: the first line, with the name of its run
_LONGEST = 1 << 22  # bytes of a line; a longer one is no event


@dataclass(slots=True)
class Lost:
    """Lines that could not be used.

    Attributes:
        malformed: are no JSON objects. newer: have a newer schema than this version reads.
    """

    malformed: int = 0
    newer: int = 0


class Follower:
    """Reads an event log in pieces, from a place on to its end, and again whenever it has grown.

    A file that was truncated or replaced is read from its start; one that was replaced by a copy of itself, as rsync
    does, is read on from where it stood. A last line without an end waits for it.

    Args:
        path: of the log; it need not exist yet.
        start: offset in bytes to begin at; the line that it falls into is left out.

    Attributes:
        offset: bytes read so far. lost: lines that could not be used.
        restarted: how often the same log has been written anew, so that what was read before no longer counts.
    """

    def __init__(self, path: Path, *, start: int = 0) -> None:
        """Store the path; nothing is opened yet."""
        self.path = path
        self.offset = start
        self.lost = Lost()
        self.restarted = 0
        self._file: BinaryIO | None = None
        self._identity: tuple[int, int] | None = None
        self._head = b""
        self._partial = b""
        self._skipping = start > 0

    def size(self) -> int:
        """Return the size of the file in bytes; 0 where there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def unread(self) -> int:
        """Bytes that wait to be read."""
        return max(0, self.size() - self.offset)

    def read(self, limit: int) -> list[dict[str, Any]]:
        """Return the records of at most about `limit` bytes more; none where nothing has come."""
        if self._file is None and not self._open():
            return []
        assert self._file is not None
        data = self._file.read(limit)
        if not data and self._moved_on():
            return self.read(limit)
        self.offset += len(data)
        return list(self._records(data))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        try:
            self._file = self.path.open("rb")
        except OSError:
            return False
        stat = os.fstat(self._file.fileno())
        self._identity, self._head = (stat.st_dev, stat.st_ino), self._file.read(_HEAD)
        self._file.seek(self.offset)
        return True

    def _moved_on(self) -> bool:
        """At the end of what is open: whether there is more, as the path holds something else by now, which is opened.

        What was written to the old file after its end was met, before it was put aside, is read first.
        """
        assert self._file is not None
        try:
            stat = self.path.stat()
            with self.path.open("rb") as file:
                head = file.read(_HEAD)
        except OSError:  # moved away; its successor is yet to come
            return False
        is_same_file = (stat.st_dev, stat.st_ino) == self._identity
        known = min(len(self._head), len(head))
        is_same_text = self._head[:known] == head[:known] and known > 0
        if is_same_file and stat.st_size >= self.offset and (is_same_text or not self._head):
            self._head = max(self._head, head, key=len)
            return False
        if is_same_file and not stat.st_size:  # truncated, and nothing has come since
            return False
        if not is_same_file and os.fstat(self._file.fileno()).st_size > self._file.tell():
            return True
        self.close()
        if not (is_same_text and stat.st_size >= self.offset):
            self.restarted += is_same_text
            self.offset, self._partial, self._skipping = 0, b"", False
        return self._open()

    def _records(self, data: bytes) -> Iterator[dict[str, Any]]:
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        if len(self._partial) > _LONGEST:
            self._partial, self._skipping = b"", True
            self.lost.malformed += 1
        if self._skipping and lines:
            self._skipping = False
            lines = lines[1:]
        yield from parsed(lines, self.lost)


def parsed(lines: Iterable[bytes], lost: Lost) -> Iterator[dict[str, Any]]:
    """Yield the records of lines; what cannot be used is counted."""
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(str(line, "utf-8", "replace"))
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            lost.malformed += 1
            continue
        schema = record.get("schema", 0)
        if isinstance(schema, int) and schema > SCHEMA:
            lost.newer += 1
            continue
        yield record
