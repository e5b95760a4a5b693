"""The whole screen: one run, or several beside or above one another, and a line that names the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.text import Text

from collapse_guard.history.view import LogView

from .pane import Pane, natural_height
from .words import STYLES, UNICODE, Glyphs, fit, row

__all__ = ["Screen", "draw"]

_BESIDE = 90  # columns that a run takes beside another
_LEAST = 5  # lines that a run takes above another; fewer, and it is its title alone
_LEGEND = {"alert": "alert", "applied": "act", "recovered": "recovered", "failed": "failed", "exhausted": "gave up"}


@dataclass(slots=True)
class Screen:
    """What is looked at, and what the keys have chosen.

    Attributes:
        views: the logs. titles: of them. active: index of the one that keys go to.
        chosen: index of the selected codebook in each. is_paused: whether nothing is read and drawn anew.
        glyphs: what the terminal can show.
    """

    views: Sequence[LogView]
    titles: Sequence[str]
    active: int = 0
    chosen: list[int] = field(default_factory=list)
    is_paused: bool = False
    glyphs: Glyphs = UNICODE

    def __post_init__(self) -> None:
        """Select the first codebook everywhere."""
        self.chosen = self.chosen or [0] * len(self.views)

    def press(self, key: str) -> bool:
        """Take a key; return whether to go on."""
        if key in ("q", "Q", "escape"):
            return False
        if key in ("up", "k"):
            self._choose(self.chosen[self.active] - 1)
        elif key in ("down", "j"):
            self._choose(self.chosen[self.active] + 1)
        elif key in ("home", "g", "end", "G", "page up", "page down"):
            there = self.chosen[self.active]
            jumps = {"home": 0, "g": 0, "end": 1 << 30, "G": 1 << 30, "page up": there - 10, "page down": there + 10}
            self._choose(jumps[key])
        elif key in ("tab", "right", "l", "left", "h", "back tab"):
            by = 1 if key in ("tab", "right", "l") else -1
            self.active = (self.active + by) % len(self.views)
        elif key in (" ", "p"):
            self.is_paused = not self.is_paused
        return True

    def _choose(self, index: int) -> None:
        run = self.views[self.active].run
        self.chosen[self.active] = max(0, min(index, len(run.books) - 1 if run else 0))


def draw(screen: Screen, width: int, height: int | None, now: datetime) -> list[Text]:
    """Return the lines of a screen.

    Args:
        screen: what to draw. width: columns. now: the time.
        height: lines, the last of which names the keys; `None`: as many as there is to say, and no keys.
    """
    panes = [
        Pane(
            view=view,
            title=title,
            chosen=chosen,
            is_active=len(screen.views) > 1 and index == screen.active and height is not None,
            now=now,
            glyphs=screen.glyphs,
        )
        for index, (view, title, chosen) in enumerate(zip(screen.views, screen.titles, screen.chosen, strict=True))
    ]
    if height is None:
        return _whole(panes, width)
    room = height - 1
    beside = len(panes) > 1 and width // len(panes) >= _BESIDE
    lines = _beside(panes, width, room) if beside else _stacked(panes, screen.active, width, room)
    return [*lines, _footer(screen, width)][:height]


def _whole(panes: Sequence[Pane], width: int) -> list[Text]:
    lines: list[Text] = []
    for pane in panes:
        those = pane.lines(width, natural_height(pane.view))
        while those and not those[-1].plain.strip():
            those.pop()
        lines += [*([Text()] if lines else []), *those]
    return lines


def _beside(panes: Sequence[Pane], width: int, height: int) -> list[Text]:
    glyphs = panes[0].glyphs
    each = (width - 3 * (len(panes) - 1)) // len(panes)
    between = Text(f" {glyphs.between} ", "dim")
    columns = [pane.lines(each, height) for pane in panes]
    return [fit(between.join(parts), width, glyphs) for parts in zip(*columns, strict=True)]


def _stacked(panes: Sequence[Pane], active: int, width: int, height: int) -> list[Text]:
    """Give the active run what the others leave: each of those takes a few lines, or only its title."""
    others = len(panes) - 1
    share = height // len(panes)
    lines: list[Text] = []
    sizes = []
    for pane in panes:
        run = pane.view.run
        wanted = 6 + (len(run.books) if run else 0)
        sizes.append(min(wanted, share, max(_LEAST, height // (2 * max(1, others)))) if share >= _LEAST else 1)
    sizes[active] = max(1, height - sum(size for index, size in enumerate(sizes) if index != active))
    for pane, size in zip(panes, sizes, strict=True):
        lines += pane.lines(width, size)
    return [*lines, *[Text()] * height][:height]


def _footer(screen: Screen, width: int) -> Text:
    glyphs = screen.glyphs
    keys = [f"{glyphs.keys} codebook", *(["tab run"] if len(screen.views) > 1 else []), "space pause", "q quit"]
    left = Text("  ".join(keys), "dim")
    if screen.is_paused:
        waiting = sum(view.unread for view in screen.views)
        unread = f", {waiting / 1000:.0f} kB unread" if waiting else ""
        left = Text.assemble((f" PAUSED{unread} ", "reverse"), "  ", left)
    legend = Text(" ").join(
        Text.assemble((glyphs.marks[kind], STYLES[kind]), (f" {word}", "dim")) for kind, word in _LEGEND.items()
    )
    return row(left, legend, width, glyphs) if left.cell_len + legend.cell_len < width else fit(left, width, glyphs)
