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

__all__ = ["DURATION_SCHEMA", "Duration", "DurationField", "PositiveDuration", "PositiveSteps", "Steps", "Unit"]

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
    def parse(cls, value: object) -> Duration:
        """Read a duration from its text; a `Duration` is returned as it is.

        >>> Duration.parse("50 steps"), Duration.parse("1 epoch")
        (Duration(count=50, unit='steps'), Duration(count=1, unit='epochs'))

        Raises:
            MismatchError: for anything else, above all for a number without a unit.
        """
        if isinstance(value, Duration):
            return value
        expected = "a duration with its unit, such as `50 steps`"
        if isinstance(value, int) and not isinstance(value, bool):
            raise MismatchError(expected, quote(value), f"Write `{value} steps`, or `readings` or `epochs`.")
        match = _TEXT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise MismatchError(expected, quote(value), "Write a whole number, then steps, readings or epochs.")
        for unit in _UNITS:
            if match[2] in (unit, unit[:-1]):
                return cls(int(match[1]), unit)
        raise MismatchError("the unit steps, readings or epochs", quote(value), "A policy reads no clock.")

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count != 1 else self.unit[:-1]}"


def _parser(units: tuple[Unit, ...], least: int) -> Callable[[object], Duration]:
    """Return a validator of durations of at least `least` units, in one of `units`."""

    def parse(value: object) -> Duration:
        duration = Duration.parse(value)
        if duration.unit not in units:
            raise MismatchError("a duration in steps", quote(str(duration)), "This one counts optimizer steps only.")
        if duration.count < least:
            raise MismatchError(f"a duration of at least {least} {duration.unit[:-1]}", quote(str(duration)))
        return duration

    return parse


_TO_TEXT = PlainSerializer(str, return_type=str)
DURATION_SCHEMA = {"type": "string", "pattern": r"^\d+ *(steps?|readings?|epochs?)$"}
"""JSON schema of a duration in any unit."""
_ANY_UNIT = WithJsonSchema(dict(DURATION_SCHEMA))
_STEPS_ONLY = WithJsonSchema({"type": "string", "pattern": r"^\d+ *steps?$"})

DurationField: TypeAlias = Annotated[Duration, PlainValidator(_parser(_UNITS, 0)), _TO_TEXT, _ANY_UNIT]
"""Pydantic field type: any duration, also none at all."""
PositiveDuration: TypeAlias = Annotated[Duration, PlainValidator(_parser(_UNITS, 1)), _TO_TEXT, _ANY_UNIT]
"""Pydantic field type: a duration of 1 or more."""
Steps: TypeAlias = Annotated[Duration, PlainValidator(_parser(("steps",), 0)), _TO_TEXT, _STEPS_ONLY]
"""Pydantic field type: a duration in optimizer steps, 0 or more."""
PositiveSteps: TypeAlias = Annotated[Duration, PlainValidator(_parser(("steps",), 1)), _TO_TEXT, _STEPS_ONLY]
"""Pydantic field type: a duration in optimizer steps, 1 or more."""
