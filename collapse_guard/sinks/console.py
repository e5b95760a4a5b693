"""The console alert log: tables at the start and the end, one entry for each thing that happened in between.

Printed through rich's shared console, which Lightning's RichProgressBar uses too, and between the bars of tqdm, so that
live bars survive. On a terminal long texts wrap beside their label; elsewhere (a pipe, nohup, a notebook) every entry
is one plain line with its date, so that a log file can be searched. Names from the model are printed as text, never as
markup or terminal control.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

from rich import get_console
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from collapse_guard.events import Event

from .folding import Folding
from .lines import Entry, Grid, Line, lines_of, local_time
from .summary import Chronicle

__all__ = ["ConsoleSink", "Verbosity", "plain"]

Verbosity = Literal["quiet", "normal", "detailed"]
"""How much is printed: what one must act on and the summary; what happened, too; or every reading and decision."""

_QUIET = {"exhausted", "carried_out", "fault", "summary"}
_DETAILED = {"reading", "pending", "tended"}
_LIMITS: dict[str, dict[str, int]] = {
    "quiet": {"alike": 3, "together": 30},
    "normal": {"alike": 3, "together": 30},
    "detailed": {"alike": 60, "together": 600},
}

# A label has a background of its own, so that it can be read whatever the terminal's is.
_ALARM, _CAUTION, _WELL, _NEWS = (
    "bold white on red",
    "bold black on yellow",
    "bold black on green",
    "bold black on cyan",
)
STYLES = {
    "info": _NEWS,
    "warning": _CAUTION,
    "critical": _ALARM,
    "recovered": _WELL,
    "failed": _ALARM,
    "refused": _CAUTION,
    "postponed": _CAUTION,
    "inconclusive": _CAUTION,
    "applied": _NEWS,
    "healthy": _WELL,
    "degraded": _CAUTION,
    "collapsed": _ALARM,
    "fault": "bold reverse",
}
"""How a tone is coloured."""

_STEP_WIDTH, _LABEL_WIDTH, _GAP, _WIDE = 11, 12, 2, 100
_BREAKS = re.compile(r"(?<=[./\\_\-,;:=()\[\]])")


class ConsoleSink:
    """Prints events as a log that a person reads.

    Args:
        console: where to print; rich's shared console where not given.
        verbosity: `quiet`: critical alerts, what was given up, faults and the summary; `normal`: every alert,
            intervention and outcome, too; `detailed`: every reading and decision. When much happens within a minute,
            entries of a kind are counted instead of printed, and the count is.

    Raises:
        ValueError: an unknown verbosity.
    """

    def __init__(self, console: Console | None = None, *, verbosity: Verbosity = "normal") -> None:
        """Store the console."""
        if verbosity not in get_args(Verbosity):
            raise ValueError(f"expected a verbosity of {', '.join(get_args(Verbosity))}, got {verbosity!r}")
        self._given = console
        self._verbosity = verbosity
        self._folding = Folding(**_LIMITS[verbosity])
        self._chronicle = Chronicle()

    def write(self, event: Event) -> None:
        """Print one event, if it is one that people read."""
        self._chronicle.note(event)
        folded: list[Line] = [*self._folding.told(event)]
        if lines := folded + (self._lines(event) if self._wants(event) else []):
            console = self._given or get_console()
            parts = [
                _entry_lines(console, line) if isinstance(line, Entry) else _grid_lines(console, line) for line in lines
            ]
            with _between_bars():  # at once: a live bar is drawn anew once, and a notebook counts one output
                console.print(Text("\n").join(each for part in parts for each in part), soft_wrap=True)

    def close(self) -> None:
        """Nothing is held."""

    def _wants(self, event: Event) -> bool:
        if self._verbosity == "detailed":
            return True
        if self._verbosity == "quiet":
            return event.event in _QUIET or (event.fields.get("severity") == "critical" and event.event == "alert")
        # A skipped candidate is for the log; an action that was not taken is for people.
        is_detail = event.event in _DETAILED and not event.fields.get("is_over")
        return not is_detail and (event.event != "skip" or "action" in event.fields)

    def _lines(self, event: Event) -> list[Line]:
        if event.event == "summary":
            return self._chronicle.summary(event)
        lines = lines_of(event)
        label = lines[0].label if lines and isinstance(lines[0], Entry) else ""
        instead = self._folding.take(event, label) if lines else None
        return lines if instead is None else [*instead]


def plain(value: object) -> str:
    """Return text that cannot steer a terminal: control characters become a replacement character."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


@contextmanager
def _between_bars() -> Iterator[None]:
    """Take tqdm's bars off the screen while printing, if tqdm is in use at all."""
    module = sys.modules.get("tqdm")
    if module is None:
        yield
        return
    with module.tqdm.external_write_mode(file=sys.stdout):
        yield


def _entry_lines(console: Console, entry: Entry) -> Iterator[Text]:
    """Yield the lines of one entry; on a terminal a narrow one has the time below the step."""
    label = _padded(plain(entry.label), _LABEL_WIDTH, STYLES.get(entry.tone, "bold" if entry.step is not None else ""))
    step, date = ("" if entry.step is None else f"step {entry.step:>6}"), local_time(entry.time)
    time = date[11:]
    if not console.is_terminal:
        head = Text((f"{date}  " if date else "") + step.ljust(_STEP_WIDTH))
        yield Text("  ").join([head, label, Text(plain(entry.text))])
        return
    beside = console.width >= _WIDE
    margins = [f"{time:<8}  {step:<{_STEP_WIDTH}}"] if beside else [step, time] if time else [step]
    width = 8 + _GAP + _STEP_WIDTH if beside else _STEP_WIDTH
    room = max(16, console.width - width - _LABEL_WIDTH - 2 * _GAP)
    texts = wrapped(plain(entry.text), room)
    for at in range(max(len(texts), len(margins))):
        margin = (margins[at] if at < len(margins) else "").ljust(width + _GAP)
        mark = label if at == 0 else Text(" " * _LABEL_WIDTH)
        line = Text.assemble(margin, mark, " " * _GAP, texts[at] if at < len(texts) else "")
        line.rstrip()
        yield line


def _padded(text: str, width: int, style: str = "") -> Text:
    return Text.assemble((text, style), " " * max(0, width - cell_len(text)))


def _grid_lines(console: Console, grid: Grid) -> Iterator[Text]:
    """Yield the lines of a table; where it does not fit without breaking a word, each row is a block of its own."""
    yield Text(plain(grid.title), style="bold")
    yield Text()
    rows = [tuple(plain(cell) for cell in row) for row in grid.rows]
    widths = _widths([grid.heads, *rows], console.width - 2)
    if widths is None:
        yield from _blocks(grid, rows, console.width - 2)
        return
    for index, row in enumerate([grid.heads, *rows]):
        cells = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for at in range(max(map(len, cells))):
            line = Text("  ")
            for column, (lines, width) in enumerate(zip(cells, widths, strict=True)):
                text = lines[at] if at < len(lines) else ""
                line.append_text(_toned(text, index > 0 and column == grid.toned))
                line.append(" " * (width - cell_len(text) + _GAP))
            line.rstrip()
            yield line
        if index == 0:
            yield Text("  " + "─" * (sum(widths) + _GAP * (len(widths) - 1)))
    yield Text()


def _blocks(grid: Grid, rows: Sequence[Sequence[str]], room: int) -> Iterator[Text]:
    """Yield the rows of a table as blocks: a line for each cell, with its head before it."""
    margin = max(map(len, grid.heads)) + _GAP
    for row in rows:
        for head, cell in zip(grid.heads, row, strict=True):
            for index, line in enumerate(wrapped(cell, max(16, room - margin))):
                start = f"  {'' if index else head:<{margin}}"
                yield Text.assemble(start, _toned(line, head == _head(grid)))
        yield Text()


def _head(grid: Grid) -> str:
    return grid.heads[grid.toned] if grid.toned is not None else ""


def _toned(text: str, is_toned: bool) -> Text:
    """Return a cell; the first word of one that says a health has its colour."""
    first, blank, rest = text.partition(" ")
    style = STYLES.get(first) if is_toned else None
    return Text.assemble((first, style), blank, rest) if style else Text(text)


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return how wide each column is, from its longest word to its longest text; `None` where words would break."""
    columns = list(zip(*rows, strict=True))
    least = [max((cell_len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    wish = [max(cell_len(cell) for cell in column) for column in columns]
    free = room - sum(least) - _GAP * (len(columns) - 1)
    if free < 0:
        return None
    widths = list(least)
    while free > 0 and (short := [at for at in range(len(widths)) if widths[at] < wish[at]]):
        for at in short[:free]:
            widths[at] += 1
        free -= len(short[:free])
    return widths


def wrapped(text: str, room: int) -> list[str]:
    """Return lines of at most so many columns; a word that is longer is broken after a dot, a slash or the like."""
    lines, line = [], ""
    for word in text.split():
        parts = [word] if cell_len(word) <= room else _pieces(word, room)
        for at, part in enumerate(parts):
            joined = f"{line} {part}" if line and at == 0 else line + part
            if cell_len(joined) <= room:
                line = joined
            else:
                lines += [line] if line else []
                line = part
    return [*lines, line]


def _pieces(word: str, room: int) -> list[str]:
    """Return a long word in pieces that end where a name may be broken, and that fit."""
    pieces = []
    for piece in _BREAKS.split(word):
        while cell_len(piece) > room:
            pieces.append(piece[: max(1, room // 2)] if cell_len(piece[:room]) > room else piece[:room])
            piece = piece[len(pieces[-1]) :]
        pieces.append(piece)
    return pieces
