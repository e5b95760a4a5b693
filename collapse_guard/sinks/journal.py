"""The journal of a guard: where its events go, one run after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from collapse_guard.events import EventLog, Sink

from .console import ConsoleSink
from .jsonl import JsonLinesSink, new_run

__all__ = ["Journal"]


class Journal(EventLog):
    """An event log whose places are opened anew for each run.

    Args:
        log_dir: directory below which the file is written; `None` writes none.
        console: what prints, if anything does.
        further: other places, in order.
        max_bytes: bound on the file; see `JsonLinesSink`.

    Attributes:
        run: name of the run that is told, or was last; empty before the first.
        path: of the file of that run; `None` where none is written.
    """

    def __init__(
        self,
        log_dir: str | Path | None = None,
        *,
        console: ConsoleSink | None = None,
        further: Sequence[Sink] = (),
        max_bytes: int | None = None,
    ) -> None:
        """Store the places; nothing is told before `begin`."""
        super().__init__()
        self._log_dir, self._max_bytes = log_dir, max_bytes
        self._console, self._further = console, tuple(further)
        self.run = ""
        self.path: Path | None = None

    def begin(self, *, is_first: bool = True) -> None:
        """Begin to tell of a new run.

        Args:
            is_first: whether this rank writes the file and prints.

        Raises:
            ValueError: the bound on the file is too small.
        """
        console, file = None, None
        run = new_run()
        if is_first:
            console = self._console
            if self._log_dir is not None:
                file = JsonLinesSink(self._log_dir, run=run, max_bytes=self._max_bytes)
        self.run, self.path, self.closing = run, file.path if file is not None else None, False
        self.sinks = [sink for sink in (console, file, *self._further) if sink is not None]
