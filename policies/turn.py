"""One turn: the scratch sheet on which one reading of one codebook is worked out.

It lives for one call and is thrown away, which lets the transitions read like prose while the engine stays pure from
outside: old state and reading in, new state and decisions out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .decisions import Decision, DecisionKind, Outcome, Skip
from .plan import Plan, RulePlan
from .reading import Reading
from .states import CodebookState, EngineState, Phase, RuleState

__all__ = ["ARMED", "Turn"]

ARMED = RuleState()
"""The state of a rule that has seen nothing yet."""


class Turn:
    """The codebook's rules as they change, the run's counters, and the decisions so far.

    Args:
        plan: the compiled policy.
        state: of the run, before this turn. book: of the codebook, before this turn.
        codebook: its name.
        step: optimizer step of the turn. reading: the reading to judge, or else the last one before the intervention.
    """

    __slots__ = (
        "_rules",
        "attempts",
        "codebook",
        "decisions",
        "derived",
        "plan",
        "reading",
        "resigned",
        "rules",
        "spent",
        "step",
    )

    def __init__(
        self, plan: Plan, state: EngineState, book: CodebookState, codebook: str, *, step: int, reading: Reading
    ) -> None:
        self.plan, self.codebook, self.step, self.reading = plan, codebook, step, reading
        self.rules: Mapping[str, RuleState] = book.rules
        self._rules: dict[str, RuleState] | None = None
        self.attempts, self.spent = state.attempts, state.spent
        self.resigned = book.resigned
        self.derived = plan.derive(book.past, reading)
        self.decisions: list[Decision] = []

    def put(self, rule: RulePlan, state: RuleState) -> None:
        """Write down the new state of a rule; the first write copies, so that the old state stays as it was."""
        if self._rules is None:
            self.rules = self._rules = dict(self.rules)
        self._rules[rule.name] = state

    def record(self, kind: DecisionKind, rule: RulePlan | None, reason: str, **facts: Any) -> None:
        """Add a decision."""
        name, severity = (rule.name, rule.severity) if rule else ("", "info")
        self.decisions.append(
            Decision(
                kind=kind, step=self.step, codebook=self.codebook, rule=name, severity=severity, reason=reason, **facts
            )
        )

    def skip(self, rule: RulePlan, state: RuleState, why: Skip, reason: str, **facts: Any) -> RuleState:
        """Record that something was left undone, unless the streak has its record already."""
        if state.skipped is why:
            return state
        self.record(DecisionKind.SKIP, rule, reason, skip=why, **facts)
        return replace(state, skipped=why)

    def record_outcome(
        self,
        rule: RulePlan,
        state: RuleState,
        outcome: Outcome,
        reason: str,
        *,
        after: Reading | None,
        rollback: bool = False,
    ) -> None:
        """Add the decision that ends the open intervention of a rule; `after` is the reading that decided, if any."""
        rung = rule.open_rung(state)
        self.record(
            DecisionKind.OUTCOME,
            rule,
            reason,
            action=rung.action if rung else action_of(state),
            params=rung.params if rung else None,
            rung=rung.index if rung else state.rung,
            attempt=state.attempt,
            outcome=outcome,
            rollback=rollback,
            before=state.before,
            after=after,
        )

    def inhibitor(self, rule: RulePlan) -> str | None:
        """Return a rule that keeps this one quiet here and now; one that is only pending where no other does."""
        at_work = [name for name in rule.inhibited_by if self.rules.get(name, ARMED).phase is not Phase.ARMED]
        return min(at_work, key=self.is_pending, default=None)

    def is_pending(self, name: str) -> bool:
        """Whether a rule counts readings and has not fired yet."""
        return self.rules.get(name, ARMED).phase is Phase.PENDING

    def occupant(self, *, besides: RulePlan | None = None) -> tuple[RulePlan, RuleState] | None:
        """Return the rule, other than `besides`, that has an open intervention on this codebook, with its state."""
        for rule in self.plan.rules:
            state = self.rules.get(rule.name)
            if state is not None and state.attempt is not None and rule is not besides:
                return rule, state
        return None


def action_of(state: RuleState) -> str:
    """Return the name of the action that a rule tried last."""
    return (state.tried or "").partition("(")[0]
