"""A codebook's perplexity over the steps of its run, drawn in characters.

On a logarithmic scale from 1 to the number of codes, since 1, 5 and 250 all matter. A column shows the lowest reading
that falls into it: a collapse of one reading must not vanish in a wide span. Where nothing was read in a column, the
value before it is drawn dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from collapse_guard.history.rules import Bound
from collapse_guard.history.runs import Book, Mark
from collapse_guard.history.series import Stretch

from .words import STYLES, Glyphs, compact, fit

__all__ = ["chart", "marks_line", "span_of", "sparkline"]

_AXIS = 7
_WEIGHT = ("cleared", "alert", "postponed", "refused", "inconclusive", "applied", "recovered", "failed", "exhausted")
_COLOURS = {"critical": "bold red", "warning": "yellow", "info": "cyan"}


def span_of(book: Book) -> tuple[int, int]:
    """Return the steps that a drawing reaches from and to."""
    stretches = book.series.stretches
    steps = [mark.step for mark in book.marks]
    first = min([stretches[0].first, *steps[:1]]) if stretches else 0
    last = max([stretches[-1].last, *steps[-1:]]) if stretches else 0
    return first, max(first, last)


def sparkline(book: Book, bounds: Sequence[Bound], width: int, glyphs: Glyphs) -> Text:
    """Return the course in one line."""
    line = Text()
    for stretch, is_read in _filled(book, width):
        if stretch is None:
            line.append(" ")
            continue
        level = min(len(glyphs.levels) - 1, int(_height(stretch.low, _top(book)) * len(glyphs.levels)))
        line.append(glyphs.levels[level], _style(stretch.low, bounds, is_read))
    return line


def marks_line(book: Book, width: int, glyphs: Glyphs) -> Text:
    """Return a line with a sign for each thing that happened, below the column of its step, or in the next free one.

    Where there is none, the gravest stands.
    """
    signs: list[Mark | None] = [None] * width
    first, last = span_of(book)
    for mark in sorted(book.marks, key=lambda each: each.step):
        if mark.kind not in glyphs.marks:
            continue
        place = min(width - 1, max(0, (mark.step - first) * width // (last - first + 1)))
        free = next((index for index in range(place, min(width, place + 3)) if signs[index] is None), None)
        there = signs[place]
        if free is not None:
            signs[free] = mark
        elif there is None or _WEIGHT.index(mark.kind) > _WEIGHT.index(there.kind):
            signs[place] = mark
    line = Text()
    for sign in signs:
        line.append(glyphs.marks[sign.kind] if sign else " ", STYLES.get(sign.kind, "") if sign else "")
    return line


def chart(book: Book, bounds: Sequence[Bound], width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Return the course in `height` lines of bars, thresholds drawn across and written at the left.

    A line with the marks and one with the steps follow.
    """
    inner = max(1, width - _AXIS - 1)
    top = _top(book)
    columns = _filled(book, inner)
    lined = {_row(bound.value, top, height): bound for bound in reversed(bounds) if 1 <= bound.value <= top}
    labels = {0: "1", height - 1: compact(top)} | {
        index: f"{each.value:g}"[: _AXIS - 1] for index, each in lined.items()
    }
    lines = []
    for index in range(height - 1, -1, -1):
        bound = lined.get(index)
        label = labels.get(index, "").rjust(_AXIS - 1) + " "
        colour = _COLOURS.get(bound.severity, "") if bound else "dim"
        line = Text.assemble((label, colour), (glyphs.axis, "dim"))  # of the label alone, not of the whole line
        for stretch, is_read in columns:
            line.append(*_cell(stretch, is_read, index, height, top, bounds, bound, glyphs))
        lines.append(fit(line, width, glyphs))
    marks = Text.assemble(" " * (_AXIS + 1), marks_line(book, inner, glyphs))
    first, last = span_of(book)
    begin, end = f"step {first}", str(last) if last > first else ""
    steps = Text(" " * (_AXIS + 1) + begin + end.rjust(max(0, inner - len(begin))), "dim")
    return [*lines, fit(marks, width, glyphs), fit(steps, width, glyphs)]


def _cell(
    stretch: Stretch | None,
    is_read: bool,
    index: int,
    height: int,
    top: float,
    bounds: Sequence[Bound],
    bound: Bound | None,
    glyphs: Glyphs,
) -> tuple[str, str]:
    """Return what stands in one place of a chart, and its style."""
    empty = (glyphs.bound, _COLOURS.get(bound.severity, "")) if bound else (" ", "")
    if stretch is None:
        return empty
    # A reading at the very bottom still shows: nothing at all means that nothing was read.
    level = max(1, round(_height(stretch.low, top) * height * len(glyphs.levels)))
    part = level - index * len(glyphs.levels)
    if part > 0:
        return glyphs.levels[min(part, len(glyphs.levels)) - 1], _style(stretch.low, bounds, is_read)
    if is_read and stretch.high > stretch.low and index <= _row(stretch.high, top, height):
        return glyphs.span, "dim"
    return empty


def _filled(book: Book, width: int) -> list[tuple[Stretch | None, bool]]:
    """Return the columns, gaps filled with what was read last, and whether each was read itself."""
    columns: list[tuple[Stretch | None, bool]] = []
    before: Stretch | None = None
    for found in book.series.columns(width, *span_of(book)):
        columns.append((found or before, found is not None))
        before = Stretch(found.last, found.last, found.end, found.end, found.end) if found else before
    return columns


def _top(book: Book) -> float:
    highest = max((each.high for each in book.series), default=2.0)
    return max(2.0, float(book.K), highest)


def _height(value: float, top: float) -> float:
    """Return where a perplexity stands on the scale, from 0 at 1 to 1 at the top."""
    return min(1.0, max(0.0, math.log(max(value, 1.0)) / math.log(top)))


def _row(value: float, top: float, height: int) -> int:
    return min(height - 1, int(_height(value, top) * height))


def _style(value: float, bounds: Sequence[Bound], is_read: bool) -> str:
    """Colour a perplexity by the gravest rule that looks at it."""
    below = {bound.severity for bound in bounds if value < bound.value}
    colour = next((_COLOURS[each] for each in ("critical", "warning", "info") if each in below), "green")
    return colour if is_read else f"dim {colour}"
