"""Words: enumerations whose members carry their own explanation. Nothing here knows what the words are about."""

from __future__ import annotations

from enum import Enum

__all__ = ["Word"]


class Word(Enum):
    """An enumeration whose members carry their own explanation: `value` for machines, `message` for people."""

    message: str
    __hash__ = object.__hash__  # a member is one object; Enum would hash its name, in Python, at every look-up

    def __new__(cls, value: str, message: str = "") -> Word:
        """Make a member of its value and its message; a look-up, `Outcome("failed")`, gives the value alone."""
        member = object.__new__(cls)
        member._value_ = value
        member.message = message
        return member
