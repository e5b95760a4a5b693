"""`collapse-guard watch`: how a run is doing, seen from another shell while it trains, or afterwards."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from collapse_guard.history.view import LogView
from collapse_guard.sinks import find_log, locate_log

from .console import complain
from .live.frame import Screen, draw
from .live.terminal import can_watch, show
from .live.words import ASCII, UNICODE

__all__ = ["watch"]

_MOST_NAMED = 8
_FIRST_SCREEN = 0.5
"""Seconds of reading before the one frame of `--once`: the end of a log comes first."""


def watch(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Log directories of runs, or their events.jsonl.")
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and exit; of a long log what its end says.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Print one frame of the whole log, however long it is.")
    ] = False,
) -> None:
    """Watch runs live: perplexity of each codebook, rules, interventions, events. Keys: arrows, space, q."""
    console = Console(highlight=False, emoji=False, markup=False)
    is_live = not (once or whole) and can_watch(console)
    paths = [_log_of(run, must_exist=not is_live) for run in runs]
    views = [LogView(path) for path in paths]
    titles = [str(run) for run in runs]
    glyphs = UNICODE if "utf" in console.encoding.lower() else ASCII
    screen = Screen(views, titles, glyphs=glyphs)
    try:
        if is_live:
            with suppress(KeyboardInterrupt):
                show(screen, console)
            return
        for view in views:
            if whole or view.is_whole:  # one that is not long is read to its end, however busy the machine is
                view.read_all()
            else:
                view.advance(_FIRST_SCREEN)
        for line in draw(screen, console.width, None, datetime.now(timezone.utc)):
            line.rstrip()
            console.print(line, soft_wrap=True)
    finally:
        for view in views:
            view.close()


def _log_of(run: Path, *, must_exist: bool) -> Path:
    """Return the event log of a run, which may yet come where its directory is there.

    A directory with a single run somewhere below it stands for that run.
    """
    if not run.exists():
        complain(f"{run}: expected the log directory of a run or its event log, got no such file or directory.")
    if (log := find_log(run)) is not None:
        return log
    below = sorted(each for each in run.rglob("events.jsonl") if each.is_file())
    if len(below) == 1:
        return below[0]
    if below:
        names = ", ".join(str(each.parent) for each in below[:_MOST_NAMED])
        complain(f"{run}: expected one run, got a directory with {len(below)}. Name those to watch: {names}.")
    if must_exist:
        inside = ", ".join(sorted(each.name for each in run.iterdir())[:_MOST_NAMED]) or "an empty one"
        complain(f"{run}: expected a directory with an event log, got {inside}. It comes with the run's first event.")
    return locate_log(run)
