"""The engine: readings in, decisions out.

`observe`, `report` and `finish` are pure: they take a state and return a new one, with the decisions in the order in
which they were taken. Time is `reading.step`. `PolicyEngine` only holds the state between calls.

Rules are judged in the order of the file, except that a rule goes before those it inhibits. Each has its own state on
each codebook; only the budget and the numbering of interventions are common to the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .decisions import Decision, DecisionKind, Health, Outcome, Skip
from .plan import Plan
from .reading import Reading
from .schema import Policy
from .states import CodebookState, EngineState, Phase
from .transitions import advance, close, fail, starve
from .turn import ARMED, Turn, action_of

__all__ = ["PolicyEngine", "finish", "observe", "report"]

Decisions = tuple[Decision, ...]

_UNSEEN = CodebookState()
_AT_WORK = frozenset({Phase.PENDING, Phase.FIRING, Phase.VERIFYING})
_TROUBLED = _AT_WORK | {Phase.EXHAUSTED}


class PolicyEngine:
    """A policy at work on one run.

    Args:
        policy: what to decide by; it is compiled here and never part of the state.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._plan = Plan.of(policy)
        self._state = EngineState()

    def observe(self, reading: Reading) -> Decisions:
        """Take one reading into account.

        Readings of a codebook come in the order of their steps. An ACT among the decisions is to be carried out and
        then reported; until then its rule waits. Readings of stage `eval` are ignored.
        """
        self._state, decisions = observe(self._plan, self._state, reading)
        return decisions

    def report(self, decision: Decision, applied: bool, reason: str = "") -> Decisions:
        """Say what became of an ACT decision.

        Args:
            decision: the ACT.
            applied: whether the action was carried out; if not, the rung has failed, and what follows (its OUTCOME,
                then the next ACT or EXHAUSTED) is returned at once.
            reason: why it was not applied.

        Raises:
            ValueError: if the decision is not an ACT that still waits for its report.
        """
        self._state, decisions = report(self._plan, self._state, decision, applied=applied, reason=reason)
        return decisions

    def finish(self, step: int) -> Decisions:
        """End the run at this step: every open intervention becomes an inconclusive OUTCOME."""
        self._state, decisions = finish(self._plan, self._state, step)
        return decisions

    @property
    def is_suspect(self) -> bool:
        """Whether readings should be dense.

        True before the first reading, and while a codebook that was seen is without a verdict or has a rule that is
        pending, firing or verifying.
        """
        books = self._state.codebooks.values()
        return not books or any(not book.judged or _has_phase(book, _AT_WORK) for book in books)

    def health(self, codebook: str) -> Health:
        """Return the state of a codebook: the worst severity among rules that hold now or are not done yet."""
        book = self._state.codebooks.get(codebook, _UNSEEN)
        if not book.judged:
            return Health.UNKNOWN
        concerned = {
            rule.severity
            for rule in self._plan.rules
            if (state := book.rules.get(rule.name, ARMED)).holds or state.phase in _TROUBLED
        }
        if "critical" in concerned:
            return Health.COLLAPSED
        return Health.DEGRADED if "warning" in concerned else Health.HEALTHY

    def phase(self, codebook: str, rule: str) -> Phase:
        """Return where a rule stands on a codebook; armed where the codebook has not been seen.

        Raises:
            LookupError: if the policy has no such rule.
        """
        name = self._plan.rule(rule).name
        return self._state.codebooks.get(codebook, _UNSEEN).rules.get(name, ARMED).phase

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
        self._state = replace(
            state,
            codebooks={
                name: replace(book, rules={rule: kept for rule, kept in book.rules.items() if rule in names[name]})
                for name, book in state.codebooks.items()
            },
        )


def observe(plan: Plan, state: EngineState, reading: Reading) -> tuple[EngineState, Decisions]:
    """Take one reading into account: `PolicyEngine.observe` as a pure function."""
    if reading.stage != "train":
        return state, ()
    book = state.codebooks.get(reading.codebook, _UNSEEN)
    no_verdict = _no_verdict(plan, book, reading)
    if no_verdict is None and plan.derived:
        book = replace(book, past=plan.past_with(book.past, reading))
    turn = Turn(plan, state, book, reading.codebook, step=reading.step, reading=reading)
    if no_verdict is not None:
        book = _pass_over(turn, book, *no_verdict)
    else:
        for rule in plan.rules_on(reading.codebook):
            old = turn.rules.get(rule.name, ARMED)
            new = advance(turn, rule, old)
            if new is not old:
                turn.put(rule, new)
        if not book.judged or book.skipped or book.settling_after:
            book = replace(book, judged=True, skipped=None, settling_after=None, settled=0)
    return _refilled(plan, _after(state, turn, book), reading), tuple(turn.decisions)


def report(
    plan: Plan, state: EngineState, decision: Decision, *, applied: bool, reason: str = ""
) -> tuple[EngineState, Decisions]:
    """Say what became of an ACT decision: `PolicyEngine.report` as a pure function."""
    book = state.codebooks.get(decision.codebook, _UNSEEN)
    asked = book.rules.get(decision.rule, ARMED)
    if asked.phase is not Phase.FIRING or asked.attempt is None or asked.attempt != decision.attempt:
        raise ValueError(
            f"expected an ACT decision that waits for its report, got {decision.kind.value} of rule {decision.rule!r} "
            f"on {decision.codebook!r}, attempt {decision.attempt}. Report each ACT once, before the next reading."
        )
    assert asked.before is not None, "an open intervention knows the reading before it"
    rule = plan.rule(decision.rule)
    turn = Turn(plan, state, book, decision.codebook, step=decision.step, reading=asked.before)
    if applied:
        turn.put(rule, replace(asked, phase=Phase.VERIFYING))
        book = replace(book, settling_after=decision.action, settled=0, past=book.past.restarted())
    else:
        because = f": {reason}" if reason else ""
        reason = f"{decision.action} was not applied{because}"
        turn.put(rule, fail(turn, rule, asked, reason, again=False, applied=False))
    return _after(state, turn, book), tuple(turn.decisions)


def finish(plan: Plan, state: EngineState, step: int) -> tuple[EngineState, Decisions]:
    """End the run: `PolicyEngine.finish` as a pure function."""
    decisions: list[Decision] = []
    for name, book in state.codebooks.items():
        for rule in plan.rules:
            still_open = book.rules.get(rule.name, ARMED)
            if still_open.before is None:
                continue
            turn = Turn(plan, state, book, name, step=step, reading=still_open.before)
            reason = f"the run ended before {action_of(still_open)} was verified"
            turn.put(rule, close(turn, rule, still_open, Outcome.INCONCLUSIVE, reason, after=None))
            state = _after(state, turn, book)
            decisions += turn.decisions
    return state, tuple(decisions)


def _no_verdict(plan: Plan, book: CodebookState, reading: Reading) -> tuple[Skip, str] | None:
    """Return why a reading is no evidence at all, or `None` if it is."""
    if reading.step < plan.warmup:
        return Skip.WARMING_UP, f"warming up: step {reading.step} of {plan.warmup}"
    if reading.tokens < plan.min_tokens:
        return Skip.FEW_TOKENS, f"{reading.tokens} tokens are too few for a verdict: min_tokens is {plan.min_tokens}"
    if book.settling_after is not None and book.settled < plan.settle:
        return Skip.SETTLING, f"settling: {book.settled + 1} of {plan.settle} readings after {book.settling_after}"
    return None


def _pass_over(turn: Turn, book: CodebookState, why: Skip, reason: str) -> CodebookState:
    """Record a reading without a verdict, once a streak, and let it count against an open verification."""
    if book.skipped is not why:
        turn.record(DecisionKind.SKIP, None, reason, skip=why)
        book = replace(book, skipped=why)
    if why is Skip.SETTLING:
        return replace(book, settled=book.settled + 1)
    starve(turn)
    return book


def _after(state: EngineState, turn: Turn, book: CodebookState) -> EngineState:
    """Return the run's state after a turn, given the codebook's state but for its rules."""
    if turn.rules is not book.rules:
        book = replace(book, rules=turn.rules)
    if book.past.recent and any(decision.rollback for decision in turn.decisions):
        book = replace(book, past=book.past.restarted())
    if turn.resigned is not book.resigned:
        book = replace(book, resigned=turn.resigned)
    if state.codebooks.get(turn.codebook) is book:
        return state
    codebooks = {**state.codebooks, turn.codebook: book}
    return replace(state, codebooks=codebooks, attempts=turn.attempts, spent=turn.spent)


def _refilled(plan: Plan, state: EngineState, reading: Reading) -> EngineState:
    """Make the budget whole again once every codebook has been healthy for long enough."""
    if not state.spent or plan.refill_after is None:
        return state
    # while all have been calm, only the codebook just read can have changed that
    books = state.codebooks.values() if state.calm_since is None else (state.codebooks[reading.codebook],)
    if any(_has_phase(book, _TROUBLED) for book in books):
        return state if state.calm_since is None else replace(state, calm_since=None)
    if state.calm_since is None:
        return replace(state, calm_since=reading.step)
    if reading.step - state.calm_since < plan.refill_after:
        return state
    fresh = {name: _unspent(book) for name, book in state.codebooks.items()}
    return replace(state, spent=0, calm_since=None, codebooks=fresh)


def _unspent(book: CodebookState) -> CodebookState:
    """Return a codebook whose rules and rungs have their budgets whole, and their first cooldown before them, again."""
    return replace(book, rules={name: replace(rule, spent={}, pauses=0) for name, rule in book.rules.items()})


def _has_phase(book: CodebookState, phases: frozenset[Phase]) -> bool:
    return any(state.phase in phases for state in book.rules.values())
