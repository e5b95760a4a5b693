"""Entries of the ledger: one intervention on one codebook each, what stands of it, and which tries are one rung's."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from collapse_guard.policies import Decision

from .interventions import Intervention, Part, Transaction, find_intervention

__all__ = ["Entry", "standing", "tries_of"]

_RECORDED = ("attempt", "codebook", "rule", "rung", "action", "params", "step", "result", "undone")


@dataclass(slots=True)
class Entry:
    """One intervention on one codebook, from its application to its outcome.

    Attributes:
        attempt: its number in the run; the levels that act together share one.
        codebook: name of the codebook.
        rule: name of the rule that decided on it.
        rung: its place on the rule's ladder, from 0.
        action: name of the action.
        params: the action's parameters as plain data.
        step: when it was applied.
        result: `refused`, `postponed`, `applied`, `recovered`, `failed` or `inconclusive`.
        undone: whether it was rolled back.
        transaction: the snapshot, while it may still be undone.
        intervention: the acting object, while it is in force.
        parts: what it changed, as long as that stands.
    """

    attempt: int
    codebook: str
    rule: str
    rung: int
    action: str
    params: dict[str, Any]
    step: int
    result: str = "applied"
    undone: bool = False
    transaction: Transaction | None = field(default=None, repr=False)
    intervention: Intervention[Any] | None = field(default=None, repr=False)
    parts: Sequence[Part] = field(default=(), repr=False)

    @classmethod
    def of(cls, decision: Decision) -> Entry:
        """Return the entry of an ACT decision about one codebook."""
        assert decision.action is not None
        assert decision.attempt is not None
        return cls(
            decision.attempt,
            decision.codebook,
            decision.rule,
            decision.rung or 0,
            decision.action,
            decision.params.plain() if decision.params is not None else {},
            decision.step,
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Entry:
        """Rebuild an entry from `as_dict`."""
        return cls(**{name: record[name] for name in _RECORDED})

    def as_dict(self) -> dict[str, Any]:
        """Return what happened as plain data, without what is needed to undo it."""
        return {name: getattr(self, name) for name in _RECORDED}

    def let_go(self) -> None:
        """Forget what was needed to undo it and to keep it in force: it is undone."""
        self.transaction = self.intervention = None
        self.parts = ()

    def is_due(self, step: int, *, after_reading: bool) -> bool:
        """Whether it is to be tended at a step, before or after anything is read."""
        intervention = self.intervention
        if intervention is None or not (intervention.tends if after_reading else intervention.stays):
            return False
        return intervention.is_due(step - self.step)

    def release(self) -> None:
        """Tend it no more, and let nothing that it holds outlive it; what it wrote stays."""
        intervention, self.intervention = self.intervention, None
        if intervention is not None:
            with contextlib.suppress(Exception):
                intervention.release()

    def values(self) -> dict[str, Any]:
        """Return what stands and is in no checkpoint of model or optimizer, by name of the part, as plain data."""
        standing = {part.name: part.standing() for part in self.parts}
        return {name: value for name, value in standing.items() if value is not None}

    @property
    def writes_rows(self) -> bool:
        """Whether its action writes to the codebook itself."""
        return "codebook" in find_intervention(self.action).touches

    @property
    def is_in_force(self) -> bool:
        """Whether it stays in force now."""
        return self.intervention is not None and self.intervention.stays


def tries_of(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """Return all tries of an entry's rung on its codebook, newest first."""
    rung = (entry.codebook, entry.rule, entry.rung)
    return [each for each in reversed(entries) if (each.codebook, each.rule, each.rung) == rung]


def standing(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return what stays in force, as plain data: codebook, action, the step since when, and what it means.

    Settings that an intervention has left changed stay, too, each told of the first that changed it.
    """
    names = ("codebook", "action", "step", "attempt")
    found, told = list[dict[str, Any]](), set[Hashable]()
    for entry in entries:
        left = [(part.place, part.in_words()) for part in entry.parts if part.place not in told]
        told |= {place for place, _ in left}
        if entry.is_in_force and entry.intervention is not None:
            meaning: str | None = entry.intervention.in_words()
        else:
            meaning = "; ".join(words for _, words in left if words) or None
        if meaning is not None:
            found.append({name: getattr(entry, name) for name in names} | {"meaning": meaning})
    return found
