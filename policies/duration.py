"""Durations: a count and its unit, never a bare number.

`cooldown: 100` could mean optimizer steps, readings or epochs, and the three differ by orders of magnitude. A policy
therefore always says which: `100 steps`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from .errors import MismatchError, quote

__all__ = [
    "DURATION_SCHEMA",
    "Duration",
    "DurationField",
    "PositiveDuration",
    "PositiveSteps",
    "Steps",
    "StepsOrNever",
    "Unit",
]

Unit = Literal["steps", "readings", "epochs"]

_UNITS: tuple[Unit, ...] = get_args(Unit)
_TEXT = re.compile(r"\s*(\d{1,18})\s*([a-z]+)\s*")


@dataclass(frozen=True, slots=True)
class Duration:
    """A span of training.

    Attributes:
        count: how many units, 0 or more.
        unit: `steps` are optimizer steps; `readings` are readings of the codebook in question; `epochs` are changes
            of `Reading.epoch`, which never come in a loop that does not say its epoch.
    """

    count: int
    unit: Unit

    @classmethod
    def parse(cls, value: object, units: tuple[Unit, ...] = _UNITS) -> Duration:
        """Read a duration from its text; a `Duration` is returned as it is.

        Args:
            value: what is written.
            units: those that may be meant, for the next move only.

        >>> Duration.parse("50 steps"), Duration.parse("1 epoch")
        (Duration(count=50, unit='steps'), Duration(count=1, unit='epochs'))

        Raises:
            MismatchError: for anything else, above all for a number without a unit.
        """
        if isinstance(value, Duration):
            return value
        expected = "a duration with its unit, such as `50 steps`"
        if isinstance(value, int) and not isinstance(value, bool):
            others = f", or {' or '.join(f'`{unit}`' for unit in units[1:])}" if units[1:] else ""
            raise MismatchError(expected, quote(value), f"Write `{value} step{'' if value == 1 else 's'}`{others}.")
        match = _TEXT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            named = "steps, readings or epochs" if len(units) > 1 else "steps"
            raise MismatchError(expected, quote(value), f"Write a whole number, then {named}.")
        for unit in _UNITS:
            if match[2] in (unit, unit[:-1]):
                return cls(int(match[1]), unit)
        raise MismatchError("the unit steps, readings or epochs", quote(value), "A policy reads no clock.")

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count != 1 else self.unit[:-1]}"


def _parser(units: tuple[Unit, ...], least: int) -> Callable[[object], Duration]:
    """Return a validator of durations of at least `least` units, in one of `units`."""

    def parse(value: object) -> Duration:
        duration = Duration.parse(value, units)
        if duration.unit not in units:
            raise MismatchError("a duration in steps", quote(str(duration)), "This one counts optimizer steps only.")
        if duration.count < least:
            raise MismatchError(f"a duration of at least {least} {duration.unit[:-1]}", quote(str(duration)))
        return duration

    return parse


def _or_never(value: object) -> Duration | None:
    """Validate a positive duration in steps, or nothing for never."""
    try:
        return None if value is None else _parser(("steps",), 1)(value)
    except MismatchError as wrong:
        raise MismatchError(wrong.expected, wrong.got, f"{wrong.hint} For never write `null`.".lstrip()) from None


_TO_TEXT = PlainSerializer(str, return_type=str)
DURATION_SCHEMA = {"type": "string", "pattern": r"^\d+ *(steps?|readings?|epochs?)$"}
"""JSON schema of a duration in any unit."""
_ANY_UNIT = WithJsonSchema(dict(DURATION_SCHEMA))
_STEPS_SCHEMA = {"type": "string", "pattern": r"^\d+ *steps?$"}
_STEPS_ONLY = WithJsonSchema(dict(_STEPS_SCHEMA))

DurationField: TypeAlias = Annotated[Duration, PlainValidator(_parser(_UNITS, 0)), _TO_TEXT, _ANY_UNIT]
"""Pydantic field type: any duration, also none at all."""
PositiveDuration: TypeAlias = Annotated[Duration, PlainValidator(_parser(_UNITS, 1)), _TO_TEXT, _ANY_UNIT]
"""Pydantic field type: a duration of 1 or more."""
Steps: TypeAlias = Annotated[Duration, PlainValidator(_parser(("steps",), 0)), _TO_TEXT, _STEPS_ONLY]
"""Pydantic field type: a duration in optimizer steps, 0 or more."""
PositiveSteps: TypeAlias = Annotated[Duration, PlainValidator(_parser(("steps",), 1)), _TO_TEXT, _STEPS_ONLY]
"""Pydantic field type: a duration in optimizer steps, 1 or more."""
StepsOrNever: TypeAlias = Annotated[
    "Duration | None",
    PlainValidator(_or_never),
    PlainSerializer(lambda value: None if value is None else str(value)),
    WithJsonSchema({"anyOf": [_STEPS_SCHEMA, {"type": "null"}]}),
]
"""Pydantic field type: a duration in optimizer steps, 1 or more, or `None` for never."""
