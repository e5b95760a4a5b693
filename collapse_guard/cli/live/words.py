"""Signs, numbers and names as they stand in the live view: short, and never able to steer the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from collapse_guard.sinks.console import plain

__all__ = ["ASCII", "STYLES", "UNICODE", "Glyphs", "ago", "compact", "ended", "fit", "folded", "row"]

STYLES = {
    "healthy": "green",
    "degraded": "yellow",
    "collapsed": "bold red",
    "unknown": "dim",
    "not watched": "dim",
    "info": "cyan",
    "warning": "bold yellow",
    "critical": "bold red",
    "alert": "bold yellow",
    "withdrawn": "cyan",
    "applied": "bold cyan",
    "refused": "yellow",
    "postponed": "yellow",
    "recovered": "bold green",
    "cleared": "green",
    "failed": "bold red",
    "inconclusive": "yellow",
    "exhausted": "bold red",
    "fault": "bold magenta",
    "resumed": "bold cyan",
    "carried_out": "bold cyan",
    "tended": "cyan",
    "skip": "dim",
}
"""Colours that are legible on light and on dark terminals; whoever sees none of them still has the words."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What a terminal can show.

    Attributes:
        levels: of a sparkline, low to high. span: what lies between the lowest and the highest of a column.
        bound: line of a threshold. axis: beside the chart. chosen: before the selected codebook. cut: for what is left
            out. between: two runs side by side. marks: by kind of mark.
    """

    levels: str
    span: str
    bound: str
    axis: str
    chosen: str
    cut: str
    between: str
    line: str
    dot: str
    keys: str
    marks: dict[str, str]


UNICODE = Glyphs(
    levels="▁▂▃▄▅▆▇█",
    span="░",
    bound="┄",
    axis="│",
    chosen="▸",
    cut="…",
    between="│",
    line="─",
    dot="·",
    keys="↑↓",
    marks={
        "alert": "!",
        "applied": "▲",
        "refused": "△",
        "postponed": "△",
        "recovered": "✓",
        "cleared": "○",
        "failed": "✗",
        "inconclusive": "?",
        "exhausted": "■",
    },
)
ASCII = Glyphs(
    levels="_.:-=+*#",
    span=":",
    bound="-",
    axis="|",
    chosen=">",
    cut="~",
    between="|",
    line="-",
    dot="-",
    keys="up/down",
    marks={
        "alert": "!",
        "applied": "^",
        "refused": "r",
        "postponed": "r",
        "recovered": "v",
        "cleared": "o",
        "failed": "x",
        "inconclusive": "?",
        "exhausted": "E",
    },
)


def compact(value: float | str | None) -> str:
    """Write a number in at most six characters.

    >>> [compact(value) for value in (0.0042, 1.0, 64.98, 254.4, 12345.0, 123456.0, None, "nan")]
    ['0.004', '1.00', '65.0', '254', '12345', '1e+05', '-', 'nan']
    """
    if value is None or isinstance(value, str):
        return "-" if value is None else plain(value)[:6]
    size = abs(value)
    if 0 < size < 0.001 or size >= 99999.5:
        return f"{value:.0e}"
    places = 3 if 0 < size < 0.1 else 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{value:.{places}f}"


def ended(text: str, width: int, glyphs: Glyphs) -> str:
    """Shorten a name from its beginning, since what tells names apart mostly stands at the end; as plain text.

    >>> ended("encoder.rvq.layers.0", 12, UNICODE)
    '…vq.layers.0'
    """
    shown = plain(text)
    if cell_len(shown) <= width:
        return shown
    while shown and cell_len(shown) > width - 1:
        shown = shown[max(1, cell_len(shown) - width) // 2 or 1 :]
    return set_cell_size(glyphs.cut + shown, width) if width > 0 else ""


def fit(text: Text, width: int, glyphs: Glyphs) -> Text:
    """Return a line of exactly so many columns."""
    line = text.copy()
    if line.cell_len > width > 0:
        line.truncate(width - 1)
        line.append(glyphs.cut)
    line.truncate(width, overflow="crop", pad=True)
    return line


def folded(text: Text, width: int, most: int) -> list[Text]:
    """Return a text in at most so many lines; the last takes all that is left, for `fit` to cut with a sign."""
    lines = [*text.wrap(Console(width=width), width)]
    if len(lines) <= most:
        return lines
    for line in lines:
        line.rstrip()
    return [*lines[: most - 1], Text(" ").join(lines[most - 1 :])]


def row(left: Text, right: Text, width: int, glyphs: Glyphs) -> Text:
    """Return a line with something at each end; the right end is kept whole."""
    room = width - right.cell_len - 1
    if room < 8:
        return fit(left, width, glyphs)
    return fit(Text.assemble(fit(left, room, glyphs), " ", right), width, glyphs)


def ago(time: str, now: datetime) -> str:
    """Say how long ago something was; empty where the time is unreadable.

    >>> ago("2026-01-01T00:00:00+00:00", datetime.fromisoformat("2026-01-01T00:02:05+00:00"))
    '2 min ago'
    """
    try:
        seconds = (now - datetime.fromisoformat(time.replace("Z", "+00:00"))).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return ""
    spans: Iterable[tuple[float, str]] = ((172800, "d"), (7200, "h"), (120, "min"), (0, "s"))
    sizes = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    unit = next((unit for least, unit in spans if seconds >= least), "s")
    return f"{max(0, int(seconds // sizes[unit]))} {unit} ago"
