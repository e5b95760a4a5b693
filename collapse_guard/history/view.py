"""A log as a viewer wants it: the end at once, the whole soon, and what comes from then on.

A long log is read twice at the same time: its last megabytes, so that there is something to see, and all of it from
the start, a little at each turn. Once the whole has caught up it takes over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from collapse_guard.sinks import older_parts

from .follow import Follower, Lost
from .runs import Run, Runs

__all__ = ["LogView"]

_TAIL = 2_000_000  # bytes
_START = 262_144  # bytes in which the codebooks and the policy are told
_BITE = 262_144  # bytes that are read at once: some hundredths of a second


class LogView:
    """The runs of one event log.

    Args:
        path: of the log; it need not exist yet.

    Attributes:
        path: of the log.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Store the path; nothing is read yet."""
        self.path = path
        self._clock = clock
        self._whole = _Reader(Follower(path), older=[part for _, part in older_parts(path)])
        self._tail = _tail_of(path) if self._whole.follower.size() > 2 * _TAIL else None

    @property
    def run(self) -> Run | None:
        """The run that began last."""
        return self._shown.runs.latest

    @property
    def begun(self) -> int:
        """Runs that the log holds, as far as it has been read."""
        return self._whole.runs.begun

    @property
    def lost(self) -> Lost:
        """Lines that could not be used, as far as the log has been read."""
        return self._whole.follower.lost

    @property
    def odd(self) -> int:
        """Records that made no sense, as far as the log has been read."""
        return self._whole.runs.odd

    @property
    def exists(self) -> bool:
        """Whether there is a log."""
        return self.path.is_file()

    @property
    def share_read(self) -> float:
        """How much of the log has been read from its start, from 0 to 1."""
        follower = self._whole.follower
        size = follower.size()
        return min(1.0, follower.offset / size) if size else 1.0

    @property
    def is_whole(self) -> bool:
        """Whether what is shown is told by the whole log and not by its end alone."""
        return self._tail is None

    @property
    def unread(self) -> int:
        """Bytes that wait to be read."""
        return self._shown.follower.unread

    def advance(self, seconds: float) -> bool:
        """Read on for about so long, the end of a long log first; return whether anything was read."""
        until, has_read = self._clock() + seconds, False
        for reader in (self._tail, self._whole):
            while reader is not None and reader.bite():
                has_read = True
                if self._clock() >= until and reader is self._whole:
                    return has_read
        if self._tail is not None:  # the whole has caught up
            self._tail.follower.close()
            self._tail = None
            has_read = True
        return has_read

    def read_all(self) -> None:
        """Read to the end, however long that takes."""
        while self.advance(60.0):
            pass

    def close(self) -> None:
        """Close the files."""
        for reader in (self._tail, self._whole):
            if reader is not None:
                reader.follower.close()

    @property
    def _shown(self) -> _Reader:
        return self._tail or self._whole


class _Reader:
    """A follower, and the runs that it has read.

    Args:
        follower: of the log as it grows.
        older: parts of the log that were put aside; they are read before it, the oldest first.
    """

    def __init__(self, follower: Follower, *, older: Sequence[Path] = ()) -> None:
        self.follower = follower
        self.runs = Runs()
        self._older = [Follower(part) for part in older]
        self._restarted = 0

    def bite(self) -> bool:
        """Read a little; return whether there was anything to read."""
        while self._older:
            records = self._older[0].read(_BITE)
            self.runs.fold(records)
            if self._older[0].unread:
                return True
            self._older.pop(0).close()
        before = self.follower.offset
        records = self.follower.read(_BITE)
        restarted = self.follower.restarted != self._restarted
        if restarted:
            self.runs, self._restarted = Runs(), self.follower.restarted
        self.runs.fold(records)
        return self.follower.offset != before or restarted


def _tail_of(path: Path) -> _Reader:
    """Begin near the end of a log, with what its first lines tell of codebooks and policy."""
    follower = Follower(path)
    start = follower.read(_START)
    follower.close()
    reader = _Reader(Follower(path, start=max(0, follower.size() - _TAIL)))
    reader.runs.fold(record for record in start if record.get("event") == "attached")
    return reader
