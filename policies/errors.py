"""What can be wrong with a policy, said so that its author can put it right at once.

A validator that meets a wrong value raises a `MismatchError`, which knows nothing of files. The loader places it in the
YAML text as a `Problem`, and raises one `PolicyError` that carries every problem of the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "MismatchError",
    "MismatchesError",
    "Place",
    "PolicyError",
    "Problem",
    "dotted",
    "no_text_key",
    "quote",
    "suggest",
]

Place = tuple[str | int, ...]
"""Where a value lies inside nested mappings and lists: keys and indices from the top."""
_MOST_BITS = 250  # Python writes out no integer beyond a few thousand digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake in one policy.

    Attributes:
        file: path of the file, name of the preset, or `<mapping>`.
        line: line of the offending text, from 1; `None` for a mapping. column: likewise.
        rule: name of the rule (`#2` for a second one without a name), or `None` outside the rules.
        message: what the mistake is about, usually where it lies inside the rule: `ladder[0].reset_codes.scope`.
        expected: what would have been right. got: what is there.
        hint: the next move, in whole sentences; may be empty.
    """

    file: str
    line: int | None
    column: int | None
    rule: str | None
    message: str
    expected: str
    got: str
    hint: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"
        rule = f"rule '{self.rule}': " if self.rule else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{place}: {rule}{self.message}: expected {self.expected}, got {self.got}.{hint}"


class PolicyError(ValueError):
    """A policy that cannot be used, with all its problems, in the order of the file.

    A `ValueError`, so that a caller who only knows the standard library still catches it.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class MismatchError(ValueError):
    """One wrong value, seen by a validator that knows neither file nor line.

    Args:
        expected: what would have been right.
        got: what is there, as `quote` writes it.
        hint: the next move, in whole sentences.
        place: where the value lies below the one being validated.
        at_key: whether the key at that place is wrong, rather than its value.
    """

    def __init__(self, expected: str, got: str, hint: str = "", *, place: Place = (), at_key: bool = False) -> None:
        super().__init__(f"expected {expected}, got {got}.{' ' if hint else ''}{hint}")
        self.expected, self.got, self.hint, self.place, self.at_key = expected, got, hint, place, at_key

    def below(self, place: Place) -> MismatchError:
        """Return the same mismatch as seen from further up, where what was validated lies at `place`."""
        return MismatchError(self.expected, self.got, self.hint, place=(*place, *self.place), at_key=self.at_key)


class MismatchesError(ValueError):
    """Several wrong values found by one validator; never empty."""

    def __init__(self, mismatches: Iterable[MismatchError]) -> None:
        self.mismatches = tuple(mismatches)
        super().__init__("; ".join(str(mismatch) for mismatch in self.mismatches))


def no_text_key(key: object, place: Place = ()) -> MismatchError:
    """Return what is wrong with a mapping that has a key other than text, as mappings read elsewhere may.

    Args:
        key: that is none. place: of the mapping.
    """
    words = {True: "on, yes or true", False: "off, no or false"}.get(key) if isinstance(key, bool) else None
    hint = "Put the key in quotes, or give `load_policy` the path of the file."
    if words is not None:
        hint = f"YAML 1.1, which PyYAML reads, takes a bare {words} for a truth value. {hint}"
    return MismatchError("keys of text", f"the key {quote(key)}", hint, place=place)


def quote(value: object) -> str:
    """Write a value for the `got` of a message, as YAML would: short, on one line.

    >>> quote(None), quote(True), quote("act"), quote({"all": 1}), quote([1, 2])
    ('nothing', 'true', "'act'", 'a mapping (all)', 'a list of 2')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a mapping ({_shorten(', '.join(map(str, value)))})" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return "a number of more than 75 digits"
    return _shorten(repr(value))


def dotted(place: Place) -> str:
    r"""Write a place for people.

    >>> dotted(("ladder", 0, "reset_codes", "scope")), dotted(("a\nb",))
    ('ladder[0].reset_codes.scope', "'a\\nb'")
    """
    parts = (
        f"[{part}]" if isinstance(part, int) else f".{_shorten(part if part.isprintable() else repr(part))}"
        for part in place
    )
    return "".join(parts).lstrip(".")


def suggest(word: str, known: Iterable[str]) -> str:
    """Name the known word nearest to a misspelt one, then all of them.

    >>> suggest("perplexty", ["perplexity", "usage"])
    'Did you mean `perplexity`? Known: perplexity, usage.'
    """
    names = list(known)
    lowered = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(word.lower(), lowered, n=1)
    return (f"Did you mean `{lowered[near[0]]}`? " if near else "") + f"Known: {', '.join(names)}."


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
