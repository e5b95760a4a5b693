"""Which column of a foreign table, or which tag of a foreign log, holds what a reading needs.

A mapping goes from the field of a reading to a name: `perplexity` -> `train/codebook_perplexity`. Where a log holds
several codebooks, `{codebook}` stands in the name for what tells them apart: `perplexity` -> `vq/{codebook}/ppl`. The
names that the guard itself writes, `codebook_perplexity/<codebook>`, need no mapping. Nothing here reads a value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .errors import MismatchError, quote, suggest
from .reading import NUMERIC_FIELDS

__all__ = ["OF_THE_RUN", "Columns", "columns_of", "listed"]

OF_THE_RUN = ("step", "epoch", "loss", "tokens")
"""Fields that are of the run rather than of a codebook: by themselves they make no reading."""
ALONE = "codebook"
"""What the codebook is called where the log does not name it."""

_PLACEHOLDER = "{codebook}"
_GIVEN = {"step", "K", "D"}
_MAPPED = tuple(name for name in NUMERIC_FIELDS if name not in _GIVEN)
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table that are read.

    Attributes:
        books: codebook -> field -> column. With `named_by` there is one entry for all of them.
        named_by: column that holds the name of a row's codebook, if one does.
    """

    books: Mapping[str, Mapping[str, str]]
    named_by: str | None = None

    def fields(self) -> set[str]:
        """Return the fields that some codebook has."""
        return {field for columns in self.books.values() for field in columns}

    def used(self) -> set[str]:
        """Return every column that is read."""
        return {column for columns in self.books.values() for column in columns.values()}


def columns_of(names: Collection[str], mapping: Mapping[str, str]) -> Columns:
    """Find what a table holds, by a mapping and by the names that the guard itself writes.

    Args:
        names: the columns, or tags, that there are.
        mapping: field of a reading -> name, with or without `{codebook}`; `codebook` may be among the fields. A name
            without `{codebook}` counts for every codebook.

    >>> columns_of(["vq/0/ppl", "vq/1/ppl", "loss"], {"perplexity": "vq/{codebook}/ppl", "loss": "loss"}).books["1"]
    {'loss': 'loss', 'perplexity': 'vq/1/ppl'}

    Raises:
        MismatchError: for a field or a name that does not exist.
    """
    _check(names, mapping)
    own = {name: f"codebook_{name}/{_PLACEHOLDER}" for name in _MAPPED if name not in mapping}
    common = {name: each for name, each in mapping.items() if name != "codebook" and _PLACEHOLDER not in each}
    own = {} if "codebook" in mapping else own
    books: dict[str, dict[str, str]] = {}
    for field, pattern in ({name: each for name, each in mapping.items() if _PLACEHOLDER in each} | own).items():
        for book, name in sorted(_matches(pattern, names).items()):
            books.setdefault(book, dict(common))[field] = name
    if not books and any(field not in OF_THE_RUN for field in common):
        books[ALONE] = common
    return Columns(books, mapping.get("codebook"))


def listed(names: Collection[str]) -> str:
    """Name what there is, the first twenty of it."""
    shown = ", ".join(list(names)[:_MOST_LISTED])
    return f"{shown} and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else shown or "none"


def _check(names: Collection[str], mapping: Mapping[str, str]) -> None:
    """Refuse fields and names that do not exist."""
    known = ["codebook", *_MAPPED]
    there = f"Known: {listed([name for name in names if name != mapping.get('step')])}."
    for field, name in mapping.items():
        if field not in known and field != "step":
            raise MismatchError("a field of a reading", quote(field), suggest(field, known))
        if _PLACEHOLDER not in name:
            if name not in names:
                near = suggest(name, names).partition("Known:")[0]
                raise MismatchError(f"a column of the log for {field}", quote(name), f"{near}{there}")
        elif "codebook" in mapping or field == "step":
            hint = "Leave one of the two out." if field != "step" else "All codebooks share it."
            raise MismatchError(f"a plain column for {field}", quote(name), hint)
        elif not _matches(name, names):
            raise MismatchError(f"a pattern of columns for {field}", quote(name), there)


def _matches(pattern: str, names: Collection[str]) -> dict[str, str]:
    """Return the names that a pattern fits, by what stands in the place of `{codebook}`."""
    before, *rest = map(re.escape, pattern.split(_PLACEHOLDER))
    expression = re.compile(before + "(?P<book>.+)" + "(?P=book)".join(rest), re.DOTALL)
    return {match["book"]: name for name in names if (match := expression.fullmatch(name))}
