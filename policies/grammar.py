"""The text of a comparison: taken apart by a regular expression, and never evaluated as code.

    field sign number            perplexity < 1.5
    rel(field) sign number       rel(loss) > 1.5
    trend(field, over: N readings) sign number

What a comparison then means, and how comparisons are combined, is the business of `condition`.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, NamedTuple, TypeAlias

from .errors import MismatchError, quote, suggest
from .past import HIGHEST_IS_BEST, LOWEST_IS_BEST
from .reading import NUMERIC_FIELDS

__all__ = ["CONDITION_SCHEMA", "Function", "Parts", "parts_of_comparison"]

Function: TypeAlias = Literal["value", "rel", "trend"]

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_NAME = r"[A-Za-z_]\w*"
_SIGN = r"<=|>=|==|!=|<|>"
_CALL = rf"(?P<function>rel|trend)\s*\(\s*(?P<of>{_NAME})\s*(?:,?\s*over:?\s*(?P<over>\d{{1,6}})\s*readings?\s*)?\)"
_COMPARISON = re.compile(rf"\s*(?:(?P<field>{_NAME})|{_CALL})\s*(?P<sign>{_SIGN})\s*(?P<number>{_NUMBER})\s*")
_REVERSED = re.compile(rf"\s*({_NUMBER})\s*({_SIGN})\s*({_NAME})\s*")
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_LEAST_OVER, _MOST_OVER = 2, 100
_LONGEST = 500  # matching takes time that grows with the square of it


class Parts(NamedTuple):
    """A comparison taken apart; the fields are those of `Comparison`, in its order."""

    field: str
    sign: str
    threshold: float
    function: Function
    over: int


def parts_of_comparison(text: object) -> Parts:
    """Take a comparison apart.

    >>> parts_of_comparison("trend(loss over 5 readings) > .1")
    Parts(field='loss', sign='>', threshold=0.1, function='trend', over=5)

    Raises:
        MismatchError: with the likely correction.
    """
    if isinstance(text, str) and len(text) > _LONGEST:
        raise MismatchError(f"a comparison of at most {_LONGEST} characters", quote(text))
    match = _COMPARISON.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise MismatchError("a comparison such as `perplexity < 1.5`", quote(text), _correction(text))
    field, sign, number = match["field"] or match["of"], match["sign"], match["number"]
    if field not in NUMERIC_FIELDS:
        raise MismatchError("a numeric field of a reading", quote(field), suggest(field, NUMERIC_FIELDS))
    if not math.isfinite(float(number)):
        raise MismatchError("a finite number", _ellipsis(number))
    return Parts(field, sign, float(number), *_function_of(match))


def _function_of(match: re.Match[str]) -> tuple[Function, int]:
    """Return the function on the left side of a comparison whose field is known, and over how many readings."""
    name, over = match["of"], match["over"]
    if match["function"] is None:
        return "value", 0
    if match["function"] == "trend":
        if over is None or not _LEAST_OVER <= int(over) <= _MOST_OVER:
            expected = f"a trend over {_LEAST_OVER} to {_MOST_OVER} readings"
            got = quote("no number of readings" if over is None else f"{int(over)} readings")
            raise MismatchError(expected, got, f"Write `trend({name}, over: 5 readings)`.")
        return "trend", int(over)
    if over is not None:
        raise MismatchError(f"`rel({name})`", quote(f"over {int(over)} readings"), "Only `trend` takes a span.")
    if name not in (*HIGHEST_IS_BEST, *LOWEST_IS_BEST):
        known = f"Highest is best: {', '.join(HIGHEST_IS_BEST)}; lowest: {', '.join(LOWEST_IS_BEST)}."
        raise MismatchError("a field that has a best", quote(name), known)
    return "rel", 0


_LOOKALIKES = {
    "[\u2264\u2265\u2260]": "Write <=, >= or !=.",
    "=<|=>": "Write <= or >=.",
    "[\u2018-\u201f]": "Write straight quotes.",
    r"(?i)[<>=]\s*[-+]?\.?(nan|inf)\b": "What NaN counts for is said by the rule's `nan:`; a threshold is a number.",
    r"over:?\s*\d+\s*(steps?|epochs?|\))": "A trend counts readings: `over: 5 readings`.",
}


def _correction(text: object) -> str:
    """Guess what the author of a text that is no comparison meant to write."""
    if not isinstance(text, str):
        return "Write a field, then < <= > >= == or !=, then a number."
    if reversed_ := _REVERSED.fullmatch(text):
        return f"Put the field on the left: `{reversed_[3]} {_MIRRORED[reversed_[2]]} {reversed_[1]}`."
    for wrong, hint in _LOOKALIKES.items():
        if re.search(wrong, text):
            return hint
    if re.match(r"\s*(trend|rel)\s*\([^)]*$", text):
        return "Put the comparison in quotes: YAML takes its comma and its colon for its own."
    if call := re.match(rf"\s*({_NAME})\s*\(\s*{_NAME}\b", text):
        return (
            f"Known: rel(field), trend(field, over: 5 readings); not {call[1]}."
            if call[1] not in ("rel", "trend")
            else ("Write `rel(field) < number` or `trend(field, over: 5 readings) < number`.")
        )
    if re.search(r"\b(and|or)\b|&|\|", text):
        return "For several comparisons write a list, or `any: [...]` where one is enough."
    if len(re.findall(_SIGN, text)) > 1:
        return "Write one comparison for each side of a range, as a list."
    if "%" in text:
        return "Write a fraction: 0.5, not 50%."
    if re.fullmatch(rf"\s*{_NAME}\s*=\s*{_NUMBER}\s*", text):
        return "Equality is written `==`."
    if re.fullmatch(rf"\s*{_NAME}\s*({_SIGN})\s*{_NAME}\s*", text):
        return "On the right stands a number; no field is compared with another."
    return "Write a field, then < <= > >= == or !=, then a number."


def _ellipsis(number: str) -> str:
    return number if len(number) <= 20 else f"{number[:17]}..."


def _list_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON schemas of the two kinds of list."""
    entries = {"type": "array", "minItems": 1, "items": entry}
    either = {"type": "object", "properties": {"any": entries}, "required": ["any"], "additionalProperties": False}
    return [entries, either]


_PLAIN_CALL = re.sub(r"\?P<\w+>", "", _CALL)
_TEXT_SCHEMA = {"type": "string", "pattern": rf"^\s*({_NAME}|{_PLAIN_CALL})\s*({_SIGN})\s*{_NUMBER}\s*$"}
CONDITION_SCHEMA: dict[str, Any] = _TEXT_SCHEMA
for _ in range(4):  # as deep as anyone should nest
    CONDITION_SCHEMA = {"anyOf": [_TEXT_SCHEMA, *_list_of(CONDITION_SCHEMA)]}
"""JSON schema of a condition."""
