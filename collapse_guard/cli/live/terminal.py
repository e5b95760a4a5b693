"""The terminal: keys one by one, a screen of its own, and everything as it was afterwards, however it ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from types import FrameType

from rich.console import Console, Group
from rich.live import Live

from .frame import Screen, draw

__all__ = ["can_watch", "show"]

_KEYS = {
    b"[A": "up",
    b"[B": "down",
    b"[C": "right",
    b"[D": "left",
    b"OA": "up",
    b"OB": "down",
    b"OC": "right",
    b"OD": "left",
    b"[H": "home",
    b"[F": "end",
    b"[1~": "home",
    b"[4~": "end",
    b"[5~": "page up",
    b"[6~": "page down",
    b"[Z": "back tab",
}
_TURN = 0.1  # seconds that are spent reading a log before keys are looked at again
_PAUSE = 0.25  # seconds that are waited for a key while nothing comes
_REDRAW = 1.0  # seconds after which ages are out of date


def can_watch(console: Console) -> bool:
    """Whether keys and a screen of one's own are to be had."""
    try:
        import termios  # noqa: F401 - not there on Windows
    except ImportError:
        return False
    return console.is_terminal and not console.is_dumb_terminal and sys.stdin.isatty() and sys.stdout.isatty()


def show(screen: Screen, console: Console) -> None:
    """Follow the logs until a key, an interrupt or a signal ends it; the terminal is restored in every case."""
    with _ended_by_signal(), _suspendable() as suspended:
        while True:
            with _keys_unbuffered() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
                if not _follow(screen, console, live, keyboard, suspended):
                    return
            suspended.clear()
            os.kill(os.getpid(), signal.SIGSTOP)  # the terminal is as it was; SIGCONT goes on here


def _follow(screen: Screen, console: Console, live: Live, keyboard: int, suspended: list[int]) -> bool:
    """Read, draw and take keys; return whether to come back after a suspension."""
    drawn, size = 0.0, console.size
    is_stale, has_more = True, True
    while not suspended:
        if not screen.is_paused:
            each = _TURN / len(screen.views)
            came = [view.advance(each) for view in screen.views]  # every one of them, whatever the first says
            has_more = any(came)
            is_stale = is_stale or has_more
        now = time.monotonic()
        if is_stale or now - drawn > _REDRAW or console.size != size:
            size = console.size
            lines = draw(screen, size.width, size.height, datetime.now(timezone.utc))
            live.update(Group(*lines), refresh=True)
            is_stale, drawn = False, now
        for key in _keys(keyboard, 0.0 if has_more and not screen.is_paused else _PAUSE):
            is_stale = True
            if not screen.press(key):
                return False
    return True


def _keys(keyboard: int, seconds: float) -> Iterator[str]:
    """Yield the keys that come within a time, waiting for the first of them only."""
    try:
        ready, _, _ = select.select([keyboard], [], [], seconds)
    except InterruptedError:
        return
    if not ready:
        return
    data = os.read(keyboard, 1024)
    if not data:  # the terminal is gone
        yield "q"
    while data:
        if data[:1] == b"\x1b":
            found = next((code for code in _KEYS if data[1:].startswith(code)), None)
            if found is None:
                yield from ["escape"] if len(data) == 1 else []
                return  # a sequence that means nothing here
            yield _KEYS[found]
            data = data[1 + len(found) :]
        else:
            yield "tab" if data[:1] == b"\t" else data[:1].decode("ascii", "ignore")
            data = data[1:]


@contextmanager
def _keys_unbuffered() -> Iterator[int]:
    """Have keys come one by one and unseen; interrupts keep working."""
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Let a signal that ends the program do so through the ordinary way out."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {each: signal.signal(each, leave) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _suspendable() -> Iterator[list[int]]:
    """Note Ctrl-Z instead of stopping with the screen taken."""
    noted: list[int] = []
    before = signal.signal(signal.SIGTSTP, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTSTP, before)
