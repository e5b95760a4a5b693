r"""Takes the many alike lines of a long log apart by a pattern, which is cheaper than to parse each as JSON.

The readings of a run hold the same fields in the same order. The first line of each such shape is parsed as JSON; from
its fields a pattern is made that fits whole lines of this shape and nothing else: every field a number, a word of
JSON, or a text without escapes. What does not fit (nested values, escapes, a torn or foreign line) is left to the
parser, so that the two never disagree about what a line says.

>>> line = b'{"schema": 1, "step": %d, "event": "reading", "codebook": "vq", "usage": 0.5, "loss": null}\n'
>>> shapes = Shapes(texts=("codebook",), numbers=("step", "loss"))
>>> shapes.take(line % 10) is None  # unknown so far
True
>>> shapes.learn({"schema": 1, "step": 10, "event": "reading", "codebook": "vq", "usage": 0.5, "loss": None})
>>> shapes.take(line % 20)
(b'"vq"', b'20', b'null')
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from collapse_guard.events import SCHEMA

__all__ = ["Shapes"]

_MOST = 8  # shapes that are known at a time
_FOREIGN = ("closing", "repeated")  # fields that a reader must look at itself
_TEXT = rb'"[^"\\\x00-\x1f]*"'
_FINITE = rb"(?:-?(?:0|[1-9]\d{0,30})(?:\.\d+)?(?:[eE][+-]?\d\d?)?|null)"
_SCALAR = rb"(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|null|true|false|" + _TEXT + rb")"


class Shapes:
    """Patterns of reading lines, learned from lines that were parsed.

    Args:
        texts, numbers: fields that are wanted of each line.
    """

    def __init__(self, *, texts: Sequence[str], numbers: Sequence[str]) -> None:
        """Begin without any."""
        self._wanted = dict.fromkeys(texts, _TEXT) | dict.fromkeys(numbers, _FINITE)
        self._known: dict[tuple[str, ...], re.Pattern[bytes]] = {}

    def take(self, line: bytes) -> tuple[bytes, ...] | None:
        """Return the wanted fields of a reading of a known shape, texts first, as they stand in the line.

        A text has its quotes; a number is finite, or `null`. `None` for any other line.
        """
        for pattern in self._known.values():
            if found := pattern.fullmatch(line):
                return found.group(*self._wanted)
        return None

    def learn(self, record: Mapping[str, Any]) -> None:
        """Make a pattern of the shape of a parsed line, where it is a plain reading that has all that is wanted."""
        shape = tuple(record)
        if record.get("event") != "reading" or record.get("schema") != SCHEMA or shape in self._known:
            return
        is_flat = not any(isinstance(value, (dict, list)) for value in record.values())
        if not is_flat or any(name in record for name in _FOREIGN) or not all(name in record for name in self._wanted):
            return
        if len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[shape] = re.compile(rb"\{" + b", ".join(map(self._part, shape)) + rb"\}\r?\n?")

    def _part(self, name: str) -> bytes:
        start = re.escape(json.dumps(name, ensure_ascii=False).encode("utf-8", "replace") + b": ")
        if name in self._wanted:
            return start + b"(?P<" + name.encode() + b">" + self._wanted[name] + b")"
        fixed = {"event": b'"reading"', "schema": str(SCHEMA).encode()}
        return start + fixed.get(name, _SCALAR)
