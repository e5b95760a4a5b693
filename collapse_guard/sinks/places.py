"""Where the event log of a run lies: its folder, its file, and the older parts of one that is kept in parts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["FILE", "find_log", "locate_log", "log_folder", "older_parts"]

_FOLDER = "collapse_guard"
FILE = "events.jsonl"


def log_folder(log_dir: str | Path) -> Path:
    """Return the folder below a run's log directory that holds what the guard writes; nothing is created.

    Args:
        log_dir: directory of the run.
    """
    imported_from = {Path(entry or ".").resolve() for entry in sys.path}
    name = f"{_FOLDER}_log" if Path(log_dir).resolve() in imported_from else _FOLDER
    return Path(log_dir) / name


def find_log(path: Path) -> Path | None:
    """Return the event log that a path means: itself, or the one in a run's directory; `None` where there is none."""
    if path.is_file():
        return path
    places = (path / folder / FILE for folder in (_FOLDER, f"{_FOLDER}_log", "."))
    return next((place for place in places if place.is_file()), None)


def locate_log(path: Path) -> Path:
    """Return the event log that a path means, or where it would be; see `find_log`."""
    return find_log(path) or (path / _FOLDER / FILE if path.is_dir() else path)


def older_parts(log: Path) -> list[tuple[int, Path]]:
    """Return the older parts of a log that is kept in parts, `events.1.jsonl` and so on, the oldest first."""
    name = re.compile(rf"{re.escape(log.stem)}\.(\d{{1,9}}){re.escape(log.suffix)}")
    try:
        found = [(int(match[1]), each) for each in log.parent.iterdir() if (match := name.fullmatch(each.name))]
    except OSError:
        return []
    return sorted(found)
