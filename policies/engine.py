"""The engine: readings in, decisions out.

`PolicyEngine` only holds a policy and the state between calls; the functions of `judging`, which it calls, are pure.
Time is `reading.step`.

Rules are judged in the order of the file, except that a rule goes before those it inhibits. Each has its own state on
each codebook; the levels of one residual are judged together, coarse first. Only the budget and the numbering of
interventions are common to the run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .decisions import Decision, DecisionKind, Health, Skip
from .group import UNSEEN
from .judging import AT_WORK, Decisions, concerned, finish, has_phase, observe, report
from .plan import Plan
from .reading import Reading
from .schema import Policy
from .states import CodebookState, EngineState, Phase, changed
from .turn import ARMED

__all__ = ["PolicyEngine"]


class PolicyEngine:
    """A policy at work on one run.

    Args:
        policy: what to decide by; it is compiled here and never part of the state.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._plan = Plan.of(policy)
        self._state = EngineState()
        # What was last worked out, of which state: a step asks the same several times.
        self._foreseen: tuple[EngineState, tuple[Reading, ...], tuple[EngineState, Decisions]] | None = None
        self._suspicion: tuple[EngineState, bool] | None = None

    def observe(self, reading: Reading) -> Decisions:
        """Take one reading into account.

        Readings of a codebook come in the order of their steps. An ACT among the decisions is to be carried out and
        then reported; until then its rule waits. A rule looks at the readings of its own stage; those of a stage that
        no rule looks at leave no trace.
        """
        self._state, decisions = self._foresee((reading,))
        return decisions

    def observe_together(self, readings: Iterable[Reading]) -> Decisions:
        """Take the readings of several levels of one group at one step into account, coarse first.

        Levels for which the same rule fires make one ALERT, and those that ask for the same action one ACT, whose
        `members` are the decisions about each. It ends in one OUTCOME when the last level has a verdict; the levels
        that failed go on together. A finer level waits while an intervention on a coarser one is open.

        Args:
            readings: as `taken_together` bundles them.

        Raises:
            ValueError: if the readings do not belong together.
        """
        self._state, decisions = self._foresee(tuple(readings))
        return decisions

    def _foresee(self, readings: tuple[Reading, ...]) -> tuple[EngineState, Decisions]:
        """Return the state that readings lead to, and what is decided on the way."""
        if self._foreseen is None or self._foreseen[0] is not self._state or self._foreseen[1] != readings:
            self._foreseen = self._state, readings, observe(self._plan, self._state, readings)
        return self._foreseen[2]

    def wants_causes(self, readings: Iterable[Reading]) -> frozenset[str]:
        """Return the codebooks about which something would be told or done at these readings; nothing is changed.

        Whoever can find out why does so for them, and hands the readings in with their `causes`. Those of which the
        causes are known already are left out.
        """
        readings = tuple(readings)
        _, decisions = self._foresee(readings)
        known = {reading.codebook for reading in readings if reading.causes}
        telling = (part for decision in decisions if _tells(decision) for part in decision.parts)
        return frozenset(part.codebook for part in telling) - known

    def report(self, decision: Decision, applied: bool, reason: str = "") -> Decisions:
        """Say what became of an ACT decision, on all its codebooks alike.

        Args:
            decision: the ACT.
            applied: whether the action was carried out; if not, the rung has failed, and what follows (its OUTCOME,
                then the next ACT or EXHAUSTED) is returned at once.
            reason: why it was not applied.

        Raises:
            ValueError: if the decision is not an ACT that still waits for its report.
        """
        return self.report_together(decision, refused={} if applied else dict.fromkeys(decision.codebooks, reason))

    def report_together(
        self, decision: Decision, *, refused: Mapping[str, str], postponed: Mapping[str, str] | None = None
    ) -> Decisions:
        """Say what became of an ACT decision on each of its codebooks; on those not named it was carried out.

        Args:
            decision: the ACT.
            refused: by codebook, why it was not carried out; the rung has failed there.
            postponed: by codebook of a finer level, why it has to wait for the coarser ones; nothing has failed there,
                and its rule begins anew when they are done.

        Raises:
            ValueError: if the decision is not an ACT that still waits for its report.
        """
        self._state, decisions = report(self._plan, self._state, decision, refused=refused, postponed=postponed or {})
        return decisions

    def finish(self, step: int) -> Decisions:
        """End the run at this step: every open intervention becomes an inconclusive OUTCOME."""
        self._state, decisions = finish(self._plan, self._state, step)
        return decisions

    @property
    def is_suspect(self) -> bool:
        """Whether readings should be dense.

        True before the first reading, and while a codebook that was seen is without a verdict or has a rule that is
        pending, firing, verifying or waiting for a coarser level. Rules on evaluation do not count: what they wait for
        comes with the next validation.
        """
        if self._suspicion is None or self._suspicion[0] is not self._state:
            books, apart = self._state.codebooks.values(), self._plan.of_eval
            is_suspect = not books or any(
                not book.judged or has_phase(book, AT_WORK, besides=apart) or _waits(book, apart) for book in books
            )
            self._suspicion = self._state, is_suspect
        return self._suspicion[1]

    def health(self, codebook: str) -> Health:
        """Return the state of a codebook: the worst severity among rules that hold now or are not done yet."""
        book = self._state.codebooks.get(codebook, UNSEEN)
        if not book.judged:
            return Health.UNKNOWN
        severities = {rule.severity for rule in concerned(self._plan, book)}
        if "critical" in severities:
            return Health.COLLAPSED
        return Health.DEGRADED if "warning" in severities else Health.HEALTHY

    def phase(self, codebook: str, rule: str) -> Phase:
        """Return where a rule stands on a codebook; armed where the codebook has not been seen.

        Raises:
            LookupError: if the policy has no such rule.
        """
        name = self._plan.rule(rule).name
        return self._state.codebooks.get(codebook, UNSEEN).rules.get(name, ARMED).phase

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data (dict, list, str, numbers, `None`): state only, never the policy."""
        return self._state.to_dict()

    def load_state_dict(self, plain: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        The policy of this engine stays in force: rules it does not have, or not on a codebook, are forgotten there;
        rules new to it start armed.

        Raises:
            ValueError: if the state was written in another form.
        """
        state = EngineState.from_dict(plain)
        names = {name: {rule.name for rule in self._plan.rules_on(name)} for name in state.codebooks}
        self._state = changed(
            state,
            codebooks={
                name: changed(book, rules={rule: kept for rule, kept in book.rules.items() if rule in names[name]})
                for name, book in state.codebooks.items()
            },
        )


def _tells(decision: Decision) -> bool:
    """Whether a decision is an alert, asks for an action, or says that it would if its cause were found."""
    is_skipped = decision.kind is DecisionKind.SKIP
    would_tell = is_skipped and (decision.action is not None or decision.skip is Skip.OTHER_CAUSE)
    return would_tell or decision.kind in (DecisionKind.ALERT, DecisionKind.ACT, DecisionKind.EXHAUSTED)


def _waits(book: CodebookState, besides: Collection[str]) -> bool:
    """Whether a rule would count or fire on a codebook if no coarser level were at work."""
    return any(state.skipped is Skip.COARSER_LEVEL for name, state in book.rules.items() if name not in besides)
