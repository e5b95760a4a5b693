"""Recordings of tables: rows of numbers, as a logger writes them, become readings.

A table knows less than an event log. What it lacks stays unknown, and is said; what has to be given from outside (the
number of codes, the tokens of a reading) is asked for. Opening files is left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from .columns import ALONE, OF_THE_RUN, Columns, columns_of
from .errors import MismatchError, quote
from .reading import Reading
from .recording import Recording

__all__ = ["recording_of_rows"]

Row: TypeAlias = Mapping[str, "str | float | None"]
Values: TypeAlias = "dict[str, float | None]"

_MANY_TOKENS = 10**9
_RUN = ""
_NEVER_LEFT_OUT = ("perplexity", "perplexity_ratio", "usage", "dead_fraction", "top_share")
_COUNTED = ("rewrites", "frozen", "unmoved", "reshaped")
_CARRIED = ("loss", "epoch")


def recording_of_rows(
    rows: Iterable[Row],
    columns: Mapping[str, str],
    *,
    K: int,
    D: int = 0,
    tokens: int | None = None,
    ceiling_of: Callable[[int, int], float] | None = None,
) -> Recording:
    """Return a run from a table, such as one exported from a logger.

    A reading is what is known of a codebook at a step, from as many rows as there are of it. The loss and the epoch
    are the last ones known at or before that step: loggers write them in rows and at steps of their own.

    Args:
        rows: each a mapping of column to number or text; all have the columns of the first. Empty cells are unknown.
        columns: field of a reading -> column, as `columns_of` takes it; `step` among them.
        K: number of codes. D: dimension of a code, 0 if that does not matter.
        tokens: tokens of each reading, where no column holds them; `None` takes them for as many as any policy asks.
        ceiling_of: the perplexity of uniform codes for so many tokens and codes; without tokens it is K.

    Raises:
        MismatchError: for a field or a column that does not exist, or text that is no number.
    """
    by_step = _gathered(rows, columns)
    ceiling = _ceilings(K, ceiling_of)
    carried: Values = dict.fromkeys(_CARRIED)
    readings = []
    for step in sorted(by_step):
        books = by_step[step]
        carried |= books.pop(_RUN, {})
        for book, values in books.items():
            count, epoch = values.pop("tokens", None), carried["epoch"]
            seen = int(count) if count is not None else _MANY_TOKENS if tokens is None else tokens
            known: dict[str, Any] = _completed(values, ceiling(seen))
            known |= {"loss": carried["loss"], "epoch": _whole(epoch)}
            known |= {name: _whole(known.get(name)) for name in _COUNTED}
            readings.append(Reading(step=step, codebook=book, K=K, D=D, tokens=seen, **known))
    return Recording(readings=readings)


def _gathered(rows: Iterable[Row], columns: Mapping[str, str]) -> dict[int, dict[str, Values]]:
    """Return what is known of each codebook at each step, and of the run under `_RUN`; what was written last counts."""
    table: Columns | None = None
    by_step: dict[int, dict[str, Values]] = {}
    for row in rows:
        table = table or columns_of([str(name) for name in row], columns)
        step = _number(row[columns["step"]], columns["step"])
        if step is None or not math.isfinite(step):
            continue
        at = by_step.setdefault(int(step), {})
        for book, names in table.books.items():
            found = {name: _number(row.get(column), column) for name, column in names.items() if name != "step"}
            known = {name: _finite(value) for name, value in found.items() if value is not None}
            own = {name: known.pop(name) for name in _CARRIED if name in known}
            if own:
                at.setdefault(_RUN, {}).update(own)
            if any(name not in OF_THE_RUN for name in known):
                named = str(row[table.named_by] or "") if table.named_by else book
                at.setdefault(named or ALONE, {}).update(known)
    return by_step


def _completed(values: Values, ceiling: float) -> Values:
    """Return the values of a reading with those that follow from others, and `None` for what is not known."""
    whole: Values = dict.fromkeys(_NEVER_LEFT_OUT) | values
    perplexity, ratio = whole["perplexity"], whole["perplexity_ratio"]
    if whole.get("ceiling") is None:
        whole["ceiling"] = perplexity / ratio if perplexity and ratio else ceiling
    if ratio is None and perplexity is not None and whole["ceiling"]:
        whole["perplexity_ratio"] = perplexity / whole["ceiling"]
    return whole


def _ceilings(K: int, ceiling_of: Callable[[int, int], float] | None) -> Callable[[int], float]:
    """Return the ceiling for a number of tokens; K where that number is not known."""

    def ceiling(tokens: int) -> float:
        return ceiling_of(tokens, K) if ceiling_of and 0 < tokens < _MANY_TOKENS else float(K)

    return ceiling


def _number(cell: str | float | None, column: str) -> float | None:
    """Return a cell as a number, NaN and the infinities too; `None` for an empty one."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise MismatchError(f"a number in column {quote(column)}", quote(cell)) from None


def _whole(value: float | None) -> int | None:
    """Return a number that counts something as a whole one."""
    return None if value is None else int(value)


def _finite(value: float) -> float | None:
    """Return a number, or `None` for NaN and the infinities, as an event log would have it."""
    return value if math.isfinite(value) else None
