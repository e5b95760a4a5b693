"""Coordination: decisions about several levels of one group, at one step, that say the same are made one decision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from .decisions import Decision, DecisionKind, Outcome

__all__ = ["coordinated", "levels_text"]

_ORDER = (Outcome.RECOVERED, Outcome.FAILED, Outcome.INCONCLUSIVE)
_ALONE = {DecisionKind.PENDING}


def coordinated(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Return decisions of one turn of a group with those that concern several of its levels as one, coarse first.

    Each stands where its first part stood. What is only pending, and readings without a verdict, stay apart.
    """
    if len(decisions) < 2:
        return tuple(decisions)
    alike: dict[object, list[Decision]] = {}
    for index, decision in enumerate(decisions):
        is_alone = decision.group is None or not decision.rule or decision.kind in _ALONE
        said = (decision.kind, decision.rule, decision.skip, decision.action, decision.rung, decision.attempt)
        alike.setdefault(index if is_alone else said, []).append(decision)
    return tuple([parts[0] if len(parts) == 1 else _as_one(parts) for parts in alike.values()])


def levels_text(levels: Iterable[int]) -> str:
    """Write level numbers shortly.

    >>> levels_text([0, 1, 2, 5])
    'levels 0-2, 5'
    >>> levels_text([3])
    'level 3'
    """
    ordered = sorted(set(levels))
    runs = [[level for _, level in run] for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"level{'s' if len(ordered) > 1 else ''} {', '.join(texts)}"


def _as_one(parts: Sequence[Decision]) -> Decision:
    members = tuple(sorted(parts, key=lambda part: (part.level or 0, part.codebook)))
    outcomes = {part.outcome for part in members}
    outcome = next((each for each in (Outcome.FAILED, Outcome.INCONCLUSIVE) if each in outcomes), members[0].outcome)
    return replace(
        members[0],
        reason=_outcomes(members) if outcome is not None else _reason(members),
        outcome=outcome,
        rollback=any(part.rollback for part in members),
        kept=any(part.kept for part in members),
        members=members,
    )


def _reason(members: Sequence[Decision]) -> str:
    """Say what the coarsest level says, and whether the others say it with other numbers."""
    first, *others = members
    if all(other.reason == first.reason for other in others):
        return first.reason
    likewise = levels_text(other.level or 0 for other in others)
    return f"{first.reason} ({levels_text([first.level or 0])}; likewise {likewise})"


def _outcomes(members: Sequence[Decision]) -> str:
    """Say which levels ended how, each with the numbers of the coarsest of them."""
    clauses = []
    for outcome in _ORDER:
        those = [member for member in members if member.outcome is outcome]
        if those:
            levels = levels_text(member.level or 0 for member in those)
            clauses.append(f"{levels} {outcome.value}: {_reason(those)}")
    return "; ".join(clauses)
