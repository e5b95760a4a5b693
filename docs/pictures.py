"""Makes the pictures of docs/see.md from one guarded run of the demo: `make pictures`. Needs chromium; takes a minute.

The console becomes SVG, drawn by the very code that prints it; the live view and the report are photographed by a
browser.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI

from collapse_guard import ConsoleSink, Event, read_events
from collapse_guard.cli.live.frame import Screen, draw
from collapse_guard.demos import ARMS, run_arm
from collapse_guard.history.story import read_story
from collapse_guard.history.view import LogView
from collapse_guard.report import html_of

IMAGES = Path(__file__).resolve().parent / "images"
_FOREIGN_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # they would be fetched from elsewhere
_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_SHOTS = {  # name -> width, height, whether dark
    "report.png": (1200, 1500, False),
    "report-dark.png": (1200, 1500, True),
    "report-phone.png": (390, 1500, False),
}


def main() -> None:
    """Train, and draw what is seen of it."""
    if shutil.which("chromium") is None:
        sys.exit("expected a browser `chromium` on the path, to photograph the report; install one")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that no path of this machine is seen
        log_dir = Path("runs/mine")
        torch.set_num_threads(1)
        run_arm(ARMS["guarded"], 0, log_dir=log_dir)
        sink = ConsoleSink(console := recording())
        for record in map(dict, read_events(log_dir)):
            sink.write(Event(record.pop("event"), record.pop("step"), record, record.pop("time")))
        save(console, IMAGES / "console.svg", "what the guard prints while it trains")
        view = LogView(next(log_dir.rglob("events.jsonl")))
        view.read_all()
        console = recording()
        for line in draw(Screen([view], [str(log_dir)]), 100, 30, datetime.now(timezone.utc)):
            console.print(line, soft_wrap=True)
        view.close()
        drawn = Path(folder) / "watch.svg"
        save(console, drawn, "collapse-guard watch runs/mine")
        photograph(drawn, IMAGES / "watch.png", 1000, 650, is_dark=True)  # a tenth of the size of so many small blocks
        page = Path(folder) / "report.html"
        page.write_text(html_of({str(log_dir): read_story(log_dir)}), encoding="utf-8")
        for name, (width, height, is_dark) in _SHOTS.items():
            photograph(page, IMAGES / name, width, height, is_dark=is_dark)


def recording() -> Console:
    """Return a console that keeps what it prints."""
    return Console(file=io.StringIO(), record=True, width=100, force_terminal=True, color_system="truecolor")


def save(console: Console, target: Path, title: str) -> None:
    """Write what a console printed as a picture that fetches nothing."""
    svg = console.export_svg(title=title, theme=MONOKAI)
    svg = _FOREIGN_FONTS.sub("", svg).replace("Fira Code, monospace", _FONT)
    target.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def photograph(page: Path, target: Path, width: int, height: int, *, is_dark: bool) -> None:
    """Open a page in a frame of a given width, as a phone has it, and keep a picture in few colours."""
    frame, raw = page.with_name("frame.html"), page.with_name("raw.png")
    style = f"border:0;width:{width}px;height:{height}px"
    frame.write_text(f'<body style="margin:0"><iframe src="{page.name}" style="{style}"></iframe>', encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={max(width, 500)},{height}"]
    command += [f"--screenshot={raw}", "--virtual-time-budget=10000", "--allow-file-access-from-files"]
    command += [f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", frame.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with Image.open(raw) as picture:
        picture.convert("RGB").crop((0, 0, width, height)).quantize(200).save(target, optimize=True)


if __name__ == "__main__":
    main()
