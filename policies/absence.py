"""What becomes of a rule on a recording, or in a run, that lacks fields or codebooks which the rule looks at.

A comparison with a missing field is decided by the rule's `missing`: `keep` leaves it open, `fire` and `clear` settle
it. Three-valued logic then says whether the whole can still hold, or must. Nothing here looks at values: a field that
is there is taken to allow either answer. A span in epochs never ends where no epoch is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from .condition import Comparison, Condition
from .plan import unknown_answers
from .schema import Policy, Rule

__all__ = ["Absence", "absences_in", "idle_rules"]

_MISSING = {
    "keep": "such comparisons stay open",
    "fire": "such comparisons count for the rule, and against its end",
    "clear": "such comparisons count against the rule, and for its end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """What one rule cannot see.

    Attributes:
        rule: its name. fields: what it looks at and the recording does not have, sorted. missing: its `missing`.
        consequences: what follows, each a short sentence without its subject: `it can never fire`.
        compares: whether a comparison is among what looks at them, so that `missing` decides.
    """

    rule: str
    fields: tuple[str, ...]
    missing: str
    consequences: tuple[str, ...]
    compares: bool = True

    def __str__(self) -> str:
        then = ", ".join(self.consequences) or "it can still fire and be over by the rest"
        why = f" (`missing: {self.missing}`: {_MISSING[self.missing]})" if self.compares else ""
        return f"{self.rule}, without {', '.join(self.fields)}: {then}{why}"


def absences_in(policy: Policy, knows: Callable[[str], bool]) -> tuple[Absence, ...]:
    """Return what the rules of a policy lack, for each that lacks something.

    Args:
        policy: that is to decide.
        knows: whether a field is there.
    """
    return tuple(found for rule in policy.rules if (found := _absence_of(rule, knows)))


def idle_rules(policy: Policy, codebooks: Iterable[str]) -> tuple[Rule, ...]:
    """Return the rules whose `codebooks` match none of these names: they exist nowhere."""
    names = list(codebooks)
    return tuple(rule for rule in policy.rules if names and not any(map(rule.applies_to, names)))


def _absence_of(rule: Rule, knows: Callable[[str], bool]) -> Absence | None:
    """Return what a rule lacks on a recording, or `None` where it lacks nothing.

    Args:
        rule: of the policy that is replayed.
        knows: whether the recording has a field.
    """
    success = rule.verify.success
    conditions = [rule.when, rule.clear_when, *([success] if success else [])]
    used = {part.field for condition in conditions for part in condition.comparisons()}
    compares = not all(map(knows, used))
    used |= {"loss"} if rule.verify.guard and rule.ladder else set()
    used |= {"epoch"} if any(_endless(rule)) else set()
    absent = {name for name in used if not knows(name)}
    if not absent:
        return None
    return Absence(
        rule=rule.name,
        fields=tuple(sorted(absent)),
        missing=rule.missing,
        consequences=tuple(_consequences(rule, absent)),
        compares=compares,
    )


def _endless(rule: Rule) -> tuple[bool, bool]:
    """Return whether the time to judge an intervention in, and the cooldown, are counted in epochs."""
    spans = [rung.within or rule.verify.within for rung in rule.ladder]
    return any(span.unit == "epochs" for span in spans), bool(spans) and rule.cooldown.for_.unit == "epochs"


def _consequences(rule: Rule, absent: Collection[str]) -> list[str]:
    """Return what the rule can no longer do, or can no longer help doing."""
    (when, _), (clear, _) = unknown_answers(rule)
    fires = _answers(rule.when, absent, when)
    if True not in fires:
        return ["it can never fire"]
    told = ["it fires at every reading"] if fires == {True} else []
    ends = _answers(rule.clear_when, absent, clear)
    if True not in ends or fires == {True}:
        told.append("it can never be over")
    succeeds = _answers(rule.verify.success, absent, clear) if rule.verify.success else ends
    if rule.ladder and True not in succeeds:
        told.append("no intervention of it can be found to hold")
    if rule.ladder and rule.verify.guard and "loss" in absent:
        told.append("what an intervention costs is not looked at")
    judging, cooling = _endless(rule) if "epoch" in absent else (False, False)
    told += ["an intervention of it that does not help is judged for ever"] if judging else []
    return [*told, "its cooldown never ends"] if cooling else told


def _answers(part: Condition | Comparison, absent: Collection[str], missing: bool | None) -> set[bool | None]:
    """Return the answers that a condition can give where some fields are always missing."""
    if isinstance(part, Comparison):
        return {missing} if part.field in absent else {True, False}
    answers = [_answers(each, absent, missing) for each in part.parts]
    decisive = part.any  # the one answer of a part that settles the whole
    found: set[bool | None] = {decisive} if any(decisive in each for each in answers) else set()
    if all((not decisive) in each for each in answers):
        found.add(not decisive)
    if any(None in each for each in answers) and all(each - {decisive} for each in answers):
        found.add(None)
    return found
