"""State: what the engine remembers between readings, and nothing that a policy says.

Frozen, and plain data once written out (dict, list, str, numbers, `None`), so that a checkpoint that carries it stays
loadable with `weights_only=True`. Its size depends on the number of codebooks and rules, not on the length of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .decisions import Outcome, Skip, Word
from .past import Past
from .reading import Reading

if TYPE_CHECKING:
    from dataclasses import replace as changed  # so that its keywords are checked against the fields
else:

    def changed(state: Any, /, **changes: Any) -> Any:
        """Return a state that differs in some fields: `dataclasses.replace`, in a tenth of its time.

        A reading changes one or two of twenty fields. The others are copied in one go, and no constructor runs; states
        have no slots for its sake.

        Raises:
            TypeError: for a field that the state does not have.
        """
        values = state.__dict__ | changes
        if len(values) > len(state.__dict__):
            unknown = ", ".join(sorted(values.keys() - state.__dict__.keys()))
            raise TypeError(f"expected fields of {type(state).__name__}, got {unknown}.")
        new = object.__new__(type(state))
        object.__setattr__(new, "__dict__", values)
        return new


__all__ = ["CodebookState", "EngineState", "Phase", "RuleState", "Verdict", "changed"]

SCHEMA = 1
"""Version of the written form."""


class Phase(Word):
    """Where a rule stands on one codebook."""

    ARMED = "armed", "the condition does not hold"
    PENDING = "pending", "the condition holds, not yet for long enough"
    FIRING = "firing", "the rule has fired and is not over"
    VERIFYING = "verifying", "an intervention was applied and is being judged"
    COOLING = "cooling", "an intervention has ended; the rule pauses"
    EXHAUSTED = "exhausted", "nothing more can be tried until the rule clears"
    WITHDRAWN = "withdrawn", "the condition holds, for a cause that is no trouble, or for none of its own"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How an intervention ended on one codebook; its outcome is stated once every level that shares it has one.

    Attributes:
        outcome: how. reason: one plain sentence. after: the reading that decided, if one did.
        again: whether the same rung may be tried again. applied: whether the action was carried out here.
    """

    outcome: Outcome
    reason: str
    after: Reading | None = None
    again: bool = True
    applied: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return plain | {"outcome": self.outcome.value, "after": self.after.as_dict() if self.after else None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Verdict:
        """Rebuild a verdict from `to_dict`."""
        after = Reading.from_dict(plain["after"]) if plain["after"] else None
        return changed(cls(**plain), outcome=Outcome(plain["outcome"]), after=after)


@dataclass(frozen=True, kw_only=True)
class RuleState:
    """One rule on one codebook.

    Attributes:
        phase: where it stands.
        holds: whether the condition held at the last reading that could tell.
        held: consecutive readings that the condition has held.
        cleared: consecutive readings that the rule has been clear, or the intervention a success.
        skipped: reason of the latest recorded skip, while its streak lasts.
        failed: descriptions of the actions that failed here; a changed ladder cannot confuse them.
        tried: description of the action tried last. tries: how often in a row. rung: its index in the ladder.
        attempt: number of the open intervention, reported or not. before: the last reading before it. origin: the last
            reading before the first of the tries in a row.
        verdict: how the open intervention ended here, while other levels that share it are still being judged.
        since_step, since_epoch: where the open intervention, the cooling or the withdrawal began.
        readings: readings since then. evidence: how many of them could tell success from failure.
        spent: interventions asked for, by description, since the budget was last whole. pauses: cooldowns begun since.
    """

    phase: Phase = Phase.ARMED
    holds: bool = False
    held: int = 0
    cleared: int = 0
    skipped: Skip | None = None
    failed: tuple[str, ...] = ()
    tried: str | None = None
    tries: int = 0
    rung: int | None = None
    attempt: int | None = None
    before: Reading | None = None
    origin: Reading | None = None
    verdict: Verdict | None = None
    since_step: int = 0
    since_epoch: int | None = None
    readings: int = 0
    evidence: int = 0
    spent: Mapping[str, int] = field(default_factory=dict)
    pauses: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return plain | {
            "phase": self.phase.value,
            "skipped": self.skipped.value if self.skipped else None,
            "failed": list(self.failed),
            "spent": dict(self.spent),
            "before": self.before.as_dict() if self.before else None,
            "origin": self.origin.as_dict() if self.origin else None,
            "verdict": self.verdict.to_dict() if self.verdict else None,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RuleState:
        """Rebuild a state from `to_dict`."""
        return changed(
            cls(**plain),
            phase=Phase(plain["phase"]),
            skipped=_skip(plain["skipped"]),
            failed=tuple(plain["failed"]),
            spent=dict(plain["spent"]),
            before=Reading.from_dict(plain["before"]) if plain["before"] else None,
            origin=Reading.from_dict(plain["origin"]) if plain.get("origin") else None,
            verdict=Verdict.from_dict(plain["verdict"]) if plain.get("verdict") else None,
        )


@dataclass(frozen=True, kw_only=True)
class CodebookState:
    """One codebook.

    Attributes:
        rules: states by rule name; a rule that is not in it is armed.
        judged: whether a reading has given a verdict yet.
        skipped: why readings give no verdict at present.
        settling_after: action whose effect is still settling. settled: readings that have passed since.
        past: what `rel` and `trend` compare with. eval_past: the same for readings in evaluation.
        eval_skipped: why readings in evaluation give no verdict at present.
        resigned: rule that was exhausted and asked that nothing more be done here.
        group: residual of which it is a level, if it is one. level: which, from 0, the coarsest.
    """

    rules: Mapping[str, RuleState] = field(default_factory=dict)
    judged: bool = False
    skipped: Skip | None = None
    settling_after: str | None = None
    settled: int = 0
    past: Past = field(default_factory=Past)
    eval_past: Past = field(default_factory=Past)
    eval_skipped: Skip | None = None
    resigned: str | None = None
    group: str | None = None
    level: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "rules": {name: rule.to_dict() for name, rule in self.rules.items()},
            "judged": self.judged,
            "skipped": self.skipped.value if self.skipped else None,
            "settling_after": self.settling_after,
            "settled": self.settled,
            "past": self.past.to_dict(),
            "eval_past": self.eval_past.to_dict(),
            "eval_skipped": self.eval_skipped.value if self.eval_skipped else None,
            "resigned": self.resigned,
            "group": self.group,
            "level": self.level,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CodebookState:
        """Rebuild a state from `to_dict`."""
        rules = {name: RuleState.from_dict(rule) for name, rule in plain["rules"].items()}
        past, eval_past = Past.from_dict(plain["past"]), plain.get("eval_past")
        return changed(
            cls(**plain),
            rules=rules,
            skipped=_skip(plain["skipped"]),
            past=past,
            eval_past=Past.from_dict(eval_past) if eval_past else Past(),
            eval_skipped=_skip(plain.get("eval_skipped")),
        )


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """A run.

    Attributes:
        codebooks: states by codebook name, for every codebook seen.
        attempts: interventions asked for in the run; the latest has this number.
        spent: interventions charged to the budget since it was last whole.
        calm_since: step from which every codebook has been healthy, while something of the budget is spent.
    """

    codebooks: Mapping[str, CodebookState] = field(default_factory=dict)
    attempts: int = 0
    spent: int = 0
    calm_since: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain data, with the version of its form."""
        return {
            "schema": SCHEMA,
            "attempts": self.attempts,
            "spent": self.spent,
            "calm_since": self.calm_since,
            "codebooks": {name: book.to_dict() for name, book in self.codebooks.items()},
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> EngineState:
        """Rebuild a state from `to_dict`.

        Raises:
            ValueError: if it was written in another form.
        """
        if plain.get("schema") != SCHEMA:
            found = plain.get("schema")
            raise ValueError(
                f"expected engine state of schema {SCHEMA}, got {found!r}. "
                "Resume with the version of collapse_guard that wrote the checkpoint, or start the guard afresh."
            )
        return cls(
            codebooks={name: CodebookState.from_dict(book) for name, book in plain["codebooks"].items()},
            attempts=plain["attempts"],
            spent=plain["spent"],
            calm_since=plain["calm_since"],
        )


def _skip(value: str | None) -> Skip | None:
    return None if value is None else Skip(value)
