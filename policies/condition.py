"""Conditions: what `when`, `clear` and `success` may say about a reading, and how it is decided.

The language is deliberately small: a comparison with one number, a list (all must hold), or `any:` with a list of which
one is enough; an entry of a list may be such a condition itself. On the left of a comparison stands a field, or one
relative to its past: `rel(field)` or `trend(field, over: 5 readings)`, see `past`. How the text of a comparison is read
stands in `grammar`.

Logic has three values (Kleene, Introduction to Metamathematics, 1952, section 64): a field that is missing or NaN makes
its comparison unknown, `None`, which neither fires nor clears a rule; the whole is unknown only where the known
comparisons do not decide it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Protocol, TypeAlias

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from .errors import MismatchError, Place, quote
from .grammar import CONDITION_SCHEMA, Function, parts_of_comparison
from .past import NOTHING, Derived
from .reading import Reading

__all__ = ["Comparison", "Condition", "ConditionField", "Explainer", "Test"]


class Test(Protocol):
    """A compiled condition: whether a reading satisfies it, or `None` where that cannot be known."""

    def __call__(self, reading: Reading, derived: Derived = NOTHING, /) -> bool | None:
        """Judge a reading, given the values of `rel` and `trend`."""


class Explainer(Protocol):
    """Why a condition holds, in words."""

    def __call__(self, reading: Reading, derived: Derived = NOTHING, /) -> str:
        """Name what holds of a reading, given the values of `rel` and `trend`."""
        raise NotImplementedError


_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_FORMS = tuple(f".{places}f" for places in range(2, 9))
_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


@dataclass(frozen=True)  # without slots, for what is cached
class Comparison:
    """One field of a reading, or what it is relative to its past, against one number.

    Attributes:
        field: a name in `NUMERIC_FIELDS`.
        sign: `<`, `<=`, `>`, `>=`, `==` or `!=`.
        threshold: a finite number.
        function: `rel` or `trend`, or `value` for the field as it is. over: readings of a trend, 2 to 100; or else 0.
    """

    field: str
    sign: str
    threshold: float
    function: Function = "value"
    over: int = 0

    @classmethod
    def parse(cls, text: object) -> Comparison:
        """Read `field sign number`, or the same with `rel(field)` or `trend(field, over: 5 readings)` on the left.

        >>> str(Comparison.parse("perplexity<1.50")), str(Comparison.parse("trend(loss over 5 readings) > .1"))
        ('perplexity < 1.5', 'trend(loss, over: 5 readings) > 0.1')

        Raises:
            MismatchError: with the likely correction.
        """
        return cls(*parts_of_comparison(text))

    @cached_property
    def subject(self) -> str:
        """What stands on the left."""
        if self.function == "trend":
            return f"trend({self.field}, over: {self.over} readings)"
        return f"rel({self.field})" if self.function == "rel" else self.field

    @cached_property
    def claim(self) -> str:
        """What is said of it: `< 1.5`."""
        return f"{self.sign} {_short(self.threshold)}"

    def negated(self) -> Comparison:
        """Return the comparison that holds exactly where this one is known not to."""
        return replace(self, sign=_OPPOSITE[self.sign])

    def compile(self, missing: bool | None = None, nan: bool | None = None) -> Test:
        """Return a fast test of a reading.

        Args:
            missing: the answer where the field is missing. nan: where it is NaN. `None`: unknown.
        """
        return _compiled((self,), False, missing, nan)

    def measure(self, reading: Reading, derived: Derived = NOTHING) -> str:
        """Write the left side with its value, precisely enough to tell it from the threshold: `perplexity 1.00`."""
        value = getattr(reading, self.field) if self.function == "value" else derived[self.subject]
        if value is None or isinstance(value, int):
            return f"{self.subject} {'unknown' if value is None else value}"
        compare, threshold = _OPERATORS[self.sign], self.threshold
        holds, is_zero = compare(value, threshold), value == 0
        for form in _FORMS:
            text = format(value, form)
            shown = float(text)
            if compare(shown, threshold) is holds and (shown == 0) is is_zero:
                return f"{self.subject} {text}"
        return f"{self.subject} {value!r}"

    def __str__(self) -> str:
        return f"{self.subject} {self.claim}"


@dataclass(frozen=True, slots=True)
class Condition:
    """Parts of which all must hold, or any one.

    Attributes:
        parts: one or more comparisons or conditions.
        any: whether one of them is enough.
    """

    parts: tuple[Comparison | Condition, ...]
    any: bool = False

    def __post_init__(self) -> None:
        """Write what all spellings of a single part mean in one way, so that equal conditions are equal."""
        if len(self.parts) == 1:
            inner = self.parts[0] if isinstance(self.parts[0], Condition) else None
            object.__setattr__(self, "any", inner is not None and inner.any)
            object.__setattr__(self, "parts", inner.parts if inner else self.parts)

    @classmethod
    def parse(cls, value: object) -> Condition:
        """Read a condition as YAML gives it; a `Condition` is returned as it is.

        >>> str(Condition.parse([{"any": ["perplexity >= 10", "usage > 0.5"]}, "relative_error < 1"]))
        '(perplexity >= 10 or usage > 0.5) and relative_error < 1'

        Raises:
            MismatchError: whose `place` is the comparison that is wrong.
        """
        if isinstance(value, Condition):
            return value
        if isinstance(value, Mapping):
            if set(value) != {"any"}:
                hint = "Write `any: [...]`, or a plain list of comparisons that must all hold."
                raise MismatchError("a comparison, a list, or a mapping with the one key `any`", quote(value), hint)
            return cls(_parts(value["any"], ("any",)), any=True)
        if isinstance(value, (list, tuple)):
            return cls(_parts(value, ()))
        return cls((Comparison.parse(value),))

    def negated(self) -> Condition:
        """Return the condition that holds exactly where this one is known not to (De Morgan)."""
        return Condition(tuple(part.negated() for part in self.parts), any=not self.any)

    def compile(self, missing: bool | None = None, nan: bool | None = None) -> Test:
        """Return a fast test of a reading: true, false, or `None` for unknown.

        Args:
            missing: what a comparison says of a field that is missing. nan: of one that is NaN.
        """
        return _compiled(self.parts, self.any, missing, nan, cheap_first=True)

    def measure(self, reading: Reading, derived: Derived = NOTHING) -> str:
        """Write the compared fields with their values: `perplexity 1.00, perplexity_ratio 0.01`."""
        return ", ".join(dict.fromkeys(part.measure(reading, derived) for part in self.comparisons()))

    def explainer(self, missing: bool | None = None, nan: bool | None = None) -> Explainer:
        """Return what writes the comparisons that hold, with values: `perplexity 1.00 < 1.5 and usage 0.01 < 0.5`.

        Those of an inner condition are only written where it holds as a whole.

        Args:
            missing, nan: as for `compile`.
        """
        ask = _compiled(self.parts, self.any, missing, nan)

        def explain(reading: Reading, derived: Derived = NOTHING, /) -> str:
            told: list[_Told] = []
            ask(reading, derived, told)
            texts: dict[str, None] = {}
            while told:
                part, holds, inner = told.pop(0)
                if holds and isinstance(part, Condition):
                    told[:0] = inner
                elif holds and isinstance(part, Comparison):
                    value = getattr(reading, part.field)
                    link = " counts as" if value is None or value != value else ""
                    texts[f"{part.measure(reading, derived)}{link} {part.claim}"] = None
            return " and ".join(texts)

        return explain

    def plain(self) -> Any:
        """Return the condition as YAML would hold it, in its canonical spelling."""
        texts = [part.plain() if isinstance(part, Condition) else str(part) for part in self.parts]
        return texts[0] if len(texts) == 1 else {"any": texts} if self.any else texts

    def comparisons(self) -> Iterator[Comparison]:
        """Yield every comparison, from left to right."""
        for part in self.parts:
            if isinstance(part, Condition):
                yield from part.comparisons()
            else:
                yield part

    def __str__(self) -> str:
        texts = (f"({part})" if isinstance(part, Condition) else str(part) for part in self.parts)
        return (" or " if self.any else " and ").join(texts)


_Told: TypeAlias = "tuple[Comparison | Condition, bool | None, list[_Told]]"
"""A part, what it says of a reading, and what its own parts say."""


class _Ask(Protocol):
    """Several parts made ready: a test, and what else each of them says."""

    def __call__(self, reading: Reading, derived: Derived = NOTHING, told: list[_Told] | None = None, /) -> bool | None:
        """Judge a reading, as far as it takes; or ask every part, and add what it says to those told."""


def _compiled(
    parts: Sequence[Comparison | Condition],
    decisive: bool,
    missing: bool | None,
    nan: bool | None,
    *,
    cheap_first: bool = False,
) -> _Ask:
    """Return one test of several parts, which calls nothing written in Python for a comparison: most rules have some.

    Args:
        decisive: the one answer of a part that settles the whole. missing, nan: as for `Condition.compile`.
        cheap_first: whether what is dear is asked last; the answer is the same.
    """
    checks = [
        (part, None, None, None, 0.0, _compiled(part.parts, part.any, missing, nan, cheap_first=cheap_first))
        if isinstance(part, Condition)
        else (
            part,
            operator.attrgetter(part.field),
            None if part.function == "value" else part.subject,
            _OPERATORS[part.sign],
            part.threshold,
            None,
        )
        for part in (sorted(parts, key=_cost) if cheap_first else parts)
    ]

    def ask(reading: Reading, derived: Derived = NOTHING, told: list[_Told] | None = None, /) -> bool | None:
        verdict: bool | None = not decisive
        is_settled = False
        below: list[_Told] | None = None
        for part, field_of, subject, compare, threshold, inner in checks:
            if told is not None:
                below = []
            if field_of is None or compare is None:
                answer = None if inner is None else inner(reading, derived, below)
            elif (value := field_of(reading)) is None:
                answer = missing
            elif value != value:
                answer = nan
            else:
                if subject is not None:
                    value = derived[subject]
                answer = None if value is None or value != value else compare(value, threshold)
            if told is not None:
                told.append((part, answer, below or []))
                is_settled = is_settled or answer is decisive
            elif answer is decisive:
                return decisive
            if answer is None:
                verdict = None
        return decisive if is_settled else verdict

    return ask


def _cost(part: Comparison | Condition) -> int:
    """Return how dear it is to ask a part: a field, what it is relative to its past, or several parts."""
    return 2 if isinstance(part, Condition) else int(part.function != "value")


def _parts(values: object, place: Place) -> tuple[Comparison | Condition, ...]:
    """Parse the entries of a list; a mismatch is placed at the entry that is wrong."""
    if not isinstance(values, (list, tuple)) or not values:
        raise MismatchError("a list of comparisons", quote(values), "Write at least one comparison.", place=place)
    return tuple(_part(value, (*place, index)) for index, value in enumerate(values))


def _part(value: object, place: Place) -> Comparison | Condition:
    try:
        condition = Condition.parse(value)
    except MismatchError as wrong:
        raise wrong.below(place) from None
    return condition.parts[0] if len(condition.parts) == 1 else condition


def _plain(condition: Condition) -> Any:
    return condition.plain()


ConditionField: TypeAlias = Annotated[
    Condition,
    PlainValidator(Condition.parse),
    PlainSerializer(_plain),
    WithJsonSchema(CONDITION_SCHEMA),
]
"""Pydantic field type of a condition."""


def _short(number: float) -> str:
    """Write a number as people do, with no more digits than it takes to read the same one again."""
    rounded = f"{number:.15g}"
    return rounded if float(rounded) == number else repr(number)
