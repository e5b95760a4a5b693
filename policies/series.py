"""Series: a field of successive readings in a compact notation, for tests of policies.

120x10 60..2x8 1x20      ten times 120, eight values from 60 down to 2, twenty times 1
0.1                      the same throughout
1x3 _x2 5                unknown at two readings
1x3 nanx2                not a number at two readings
"""

from __future__ import annotations

import math
import re

from .errors import MismatchError, quote

__all__ = ["Series", "parse_series"]

Series = tuple["float | None", ...]
"""Values at successive readings, `None` where unknown; the last one goes on for ever."""

_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_ENTRY = re.compile(rf"(?:(?P<first>{_NUMBER})(?:\.\.(?P<last>{_NUMBER}))?|_|(?P<nan>nan))(?:x(?P<count>\d{{1,6}}))?")
_LONGEST = 100_000


def parse_series(value: object) -> Series:
    """Read a series from its text, or from a bare number.

    >>> parse_series("120x2 60..2x3 _ 1")
    (120.0, 120.0, 60.0, 31.0, 2.0, None, 1.0)

    Raises:
        MismatchError: for anything else.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return (float(value),)
    expected = "a series such as `120x10 60..2x8 1x20`"
    if not isinstance(value, str) or not value.strip():
        raise MismatchError(expected, quote(value), "Write a number, or numbers with how often each comes: `1x20`.")
    values: list[float | None] = []
    for entry in value.split():
        values += _entry(entry, expected)
        if len(values) > _LONGEST:
            raise MismatchError(f"a series of at most {_LONGEST} readings", quote(value))
    return tuple(values)


def _entry(text: str, expected: str) -> Series:
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise MismatchError(expected, quote(text), "An entry is `5`, `5x10`, `5..1x10`, `_x10` or `nanx10`.")
    count = int(match["count"] or 1)
    if count == 0:
        raise MismatchError("a count of at least 1", quote(text))
    if match["nan"] is not None:
        return (math.nan,) * count
    if match["first"] is None:
        return (None,) * count
    first = float(match["first"])
    if match["last"] is None:
        return (first,) * count
    if count == 1:
        raise MismatchError("a range of at least 2 readings", quote(text), f"Write `{text.partition('x')[0]}x8`.")
    last = float(match["last"])
    return tuple(first + (last - first) * index / (count - 1) for index in range(count))
