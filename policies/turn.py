"""One turn: the scratch sheet on which one reading of one codebook is worked out.

It lives for one call and is thrown away, which lets the transitions read like prose while the engine stays pure from
outside: old state and reading in, new state and decisions out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from .decisions import Decision, DecisionKind, Outcome, Skip
from .past import NOTHING, Derived
from .plan import RulePlan
from .reading import Reading
from .states import CodebookState, Phase, RuleState, changed

if TYPE_CHECKING:
    from .group import Group

__all__ = ["ARMED", "AT_REST", "Turn", "action_of"]

ARMED = RuleState()
"""The state of a rule that has seen nothing yet."""

AT_REST = frozenset({Phase.ARMED, Phase.WITHDRAWN})
"""Phases in which a rule keeps no other quiet."""

_FIRED = (Phase.FIRING, Phase.VERIFYING)  # told, and not over


class Turn:
    """The codebook as it changes.

    Args:
        group: what its turn has in common with those of the other levels of its residual.
        book: state of the codebook before this turn.
        codebook: its name.
        step: optimizer step of the turn. reading: the reading to judge, or else the last one before the intervention.
        is_read: whether the reading is one of this step.
        derived: what `rel` and `trend` are at the reading, whatever an action makes the codebook forget meanwhile;
            nothing of a reading of this step before it is part of the past.
    """

    __slots__ = (
        "_rules",
        "book",
        "codebook",
        "derived",
        "group",
        "is_read",
        "level",
        "plan",
        "reading",
        "resigned",
        "rules",
        "stage",
        "step",
    )

    def __init__(
        self, group: Group, book: CodebookState, codebook: str, *, step: int, reading: Reading, is_read: bool
    ) -> None:
        self.group, self.plan, self.codebook = group, group.plan, codebook
        self.stage = group.stage  # whose reading it is
        self.step, self.reading, self.is_read = step, reading, is_read
        self.book, self.level = book, book.level or 0
        self.rules: Mapping[str, RuleState] = book.rules
        self._rules: dict[str, RuleState] | None = None
        self.resigned = book.resigned
        self.derived = NOTHING
        if not is_read and self.plan.derived:
            past = book.eval_past if self.stage == "eval" else book.past
            self.derived = Derived(self.plan.derived, past, reading)

    def remember(self) -> None:
        """Make the reading part of the past that `rel` and `trend` compare with."""
        plan, book = self.plan, self.book
        if not plan.derived:
            return
        is_eval = self.stage == "eval"
        past = (book.eval_past if is_eval else book.past).with_reading(self.reading, plan.bests, plan.spans)
        self.book = changed(book, eval_past=past) if is_eval else changed(book, past=past)
        self.derived = Derived(plan.derived, past, self.reading)

    def unsettle(self, action: str) -> None:
        """Let what the codebook shows count as evidence only once an action has settled."""
        self.book = changed(self.book, settling_after=action, settled=0)
        self.forget()

    def forget(self) -> None:
        """Begin the values for `trend` anew, and let no best be held from before to after."""
        past, eval_past = self.book.past.restarted(), self.book.eval_past.restarted()
        if past is not self.book.past or eval_past is not self.book.eval_past:
            self.book = changed(self.book, past=past, eval_past=eval_past)

    def put(self, rule: RulePlan, state: RuleState) -> None:
        """Write down the new state of a rule; the first write copies, so that the old state stays as it was."""
        if self._rules is None:
            self.rules = self._rules = dict(self.rules)
        self._rules[rule.name] = state

    def after(self) -> CodebookState:
        """Return the codebook's state after this turn."""
        if self.rules is self.book.rules and self.resigned is self.book.resigned:
            return self.book
        return changed(self.book, rules=self.rules, resigned=self.resigned)

    def record(self, kind: DecisionKind, rule: RulePlan | None, reason: str, **facts: Any) -> None:
        """Add a decision."""
        name, severity = (rule.name, rule.severity) if rule else ("", "info")
        self.group.decisions.append(
            Decision(
                kind=kind,
                step=self.step,
                codebook=self.codebook,
                rule=name,
                severity=severity,
                reason=reason,
                group=self.book.group,
                level=self.book.level,
                **facts,
            )
        )

    def skip(self, rule: RulePlan, state: RuleState, why: Skip, reason: str, **facts: Any) -> RuleState:
        """Record that something was left undone, unless the streak has its record already."""
        if state.skipped is why:
            return state
        self.record(DecisionKind.SKIP, rule, reason, skip=why, **facts)
        return changed(state, skipped=why)

    def record_outcome(
        self,
        rule: RulePlan,
        state: RuleState,
        outcome: Outcome,
        reason: str,
        *,
        after: Reading | None,
        rollback: bool = False,
        kept: bool = False,
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
            kept=kept,
            before=state.before,
            after=after,
        )

    def inhibitor(self, rule: RulePlan) -> str | None:
        """Return a rule that keeps this one quiet here and now; one that is only pending where no other does.

        An exhausted rule does nothing more: it keeps quiet only what has not fired yet and could do nothing either.
        """
        active, pending, exhausted = list[str](), list[str](), list[str]()
        own = self.rules.get(rule.name, ARMED).phase
        for name in rule.inhibited_by:
            phase = self.rules.get(name, ARMED).phase
            if phase is Phase.EXHAUSTED:
                exhausted.append(name)
            elif phase is Phase.PENDING:
                pending.append(name)
            elif phase not in AT_REST:
                active.append(name)
        if exhausted and own not in _FIRED and not self._may_try(rule):
            active += exhausted
        return next(iter(active + pending), None)

    def taught(self, rule: RulePlan, state: RuleState) -> RuleState:
        """Return the state of a rule for which what exhausted rules that inhibit it tried in vain has failed, too.

        A rung that is being repeated keeps its tries: with the last of them they are undone, or kept.
        """
        in_vain = set[str]()
        for name in rule.inhibited_by:
            other = self.rules.get(name, ARMED)
            if other.phase is Phase.EXHAUSTED:
                in_vain.update(other.failed)
        in_vain -= {*state.failed, state.tried if state.tries else None}
        if not in_vain:
            return state
        more = dict.fromkeys(rung.description for rung in rule.rungs if rung.description in in_vain)
        return changed(state, failed=(*state.failed, *more)) if more else state

    @property
    def has_spent_all(self) -> bool:
        """Whether the run's budget is spent."""
        return self.group.spent >= self.plan.interventions

    def _may_try(self, rule: RulePlan) -> bool:
        """Whether a rule has a rung, and budget for it, that neither it nor a rule above it has tried here in vain."""
        state = self.taught(rule, self.rules.get(rule.name, ARMED))
        is_spent = self.has_spent_all or (rule.budget is not None and rule.is_spent(state))
        return self.resigned is None and not is_spent and any(rule.rungs_left(state))

    def waiting_before(self, rule: RulePlan) -> str | None:
        """Return a rule that is judged before this one, is no milder, and only waits for an intervention to end."""
        for other in takewhile(lambda each: each is not rule, self.plan.rules):
            state = self.rules.get(other.name, ARMED)
            if state.phase is not Phase.FIRING or state.skipped is not Skip.OCCUPIED or other.stage != rule.stage:
                continue
            holds = other.holds(self.reading, self.derived) if self.is_read else state.holds
            if holds and not rule.is_graver_than(other):
                return other.name
        return None

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
