"""A real terminal for tests: tmux runs a shell in it, keys are sent, and what stands on the screen is read."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.checkout import prelude
from tests.programs import needs

__all__ = ["Terminal", "needs_tmux"]

needs_tmux = needs("tmux", hint="apt-get install tmux, macOS: brew install tmux")
_PATIENCE_SECONDS = 30.0  # until a screen that does not come is taken for a failure


class Terminal:
    """A terminal of its own, in a tmux server of its own."""

    def __init__(self, folder: Path, width: int = 80, height: int = 24) -> None:
        """Start a shell."""
        self._server = f"cg-{uuid.uuid4().hex[:8]}"
        size = ("-x", str(width), "-y", str(height))
        shell = "env -u COLUMNS -u LINES LC_ALL=C.UTF-8 PS1='ready$ ' TERM=screen-256color bash --norc --noprofile"
        self.tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(folder), shell)
        self.until(lambda text: "ready$" in text)

    def tmux(self, *arguments: str) -> str:
        """Run a command of tmux on this terminal's server, and return what it prints."""
        command = ["tmux", "-u", "-L", self._server, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def watch(self, *arguments: str) -> None:
        """Type what starts `collapse-guard watch` in the checkout."""
        typed = ["collapse-guard", "watch", *arguments]
        self.python("watch.py", f"import sys\nsys.argv = {typed!r}\nimport collapse_guard.cli as c\nc.main()")

    def python(self, name: str, code: str, *, then: str = "") -> None:
        """Write a program into the folder of the shell, and type what runs it with the checkout importable."""
        folder = Path(self.tmux("display", "-p", "#{pane_current_path}").strip())
        (folder / name).write_text(prelude() + code)
        self.type(f"{shlex.quote(sys.executable)} -W ignore {name}{then}; echo left with $?", "Enter")

    def type(self, *keys: str) -> None:
        """Send keys, or text."""
        self.tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        """Change the size."""
        self.tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self, *, whole: bool = False) -> str:
        """Return what stands on the screen, if wanted with all that has scrolled out of it."""
        return self.tmux("capture-pane", "-p", *(("-S", "-") if whole else ()))

    def is_taken(self) -> bool:
        """Whether a program has the alternate screen."""
        return self.tmux("display", "-p", "#{alternate_on}").strip() == "1"

    def until(self, holds: Callable[[str], bool], *, patience: float = _PATIENCE_SECONDS) -> str:
        """Return the screen as soon as something holds of it."""
        end = time.monotonic() + patience
        while not holds(text := self.screen()):
            assert time.monotonic() < end, f"what was waited for did not come; the screen:\n{text}"
            time.sleep(0.05)
        return text

    def close(self) -> None:
        """End the shell and what runs in it."""
        self.tmux("kill-server")
