"""Observing, reporting and ending as pure functions: an old state in, a new one and the decisions out.

Time is the step of the readings. What is decided about several levels of a group at once is one decision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter

from .coordination import coordinated
from .decisions import Decision, DecisionKind, Outcome, Skip
from .group import Group
from .plan import Plan, RulePlan
from .reading import Reading
from .states import CodebookState, EngineState, Phase, RuleState, Verdict, changed
from .transitions import advance
from .turn import ARMED, Turn, action_of
from .verdicts import end
from .verification import conclude, judge, starve

__all__ = ["AT_WORK", "Decisions", "concerned", "finish", "has_phase", "observe", "report"]

Decisions = tuple[Decision, ...]

AT_WORK = frozenset({Phase.PENDING, Phase.FIRING, Phase.VERIFYING})
TROUBLED = AT_WORK | {Phase.EXHAUSTED}
_PHASE_OF, _STAGE_OF = attrgetter("phase"), attrgetter("stage")


def observe(plan: Plan, state: EngineState, readings: Sequence[Reading]) -> tuple[EngineState, Decisions]:
    """Take the readings of one codebook, or of several levels of one group at one step, into account.

    Raises:
        ValueError: if the readings do not belong together.
    """
    if not plan.stages.issuperset(map(_STAGE_OF, readings)):
        readings = [reading for reading in readings if reading.stage in plan.stages]
    if not readings:
        return state, ()
    if len(readings) > 1:
        _check(readings)
    first = readings[0]
    group = Group(plan, state, step=first.step, name=first.group, codebook=first.codebook, readings=readings)
    for turn in group.turns.values():
        if turn.is_read:
            _judge(turn)
        else:
            starve(turn)
    if group.name is not None:
        conclude(group)
    return _refilled(plan, group.after(), group), coordinated(group.decisions)


def report(
    plan: Plan,
    state: EngineState,
    decision: Decision,
    *,
    refused: Mapping[str, str],
    postponed: Mapping[str, str],
) -> tuple[EngineState, Decisions]:
    """Say what became of an ACT decision.

    Args:
        refused: codebooks where it was not carried out, each with the reason; the rung has failed there.
        postponed: codebooks where it has to wait for the coarser levels, each with the reason; nothing has failed.
    """
    rule = plan.rule(decision.rule)
    step, name, codebook = decision.step, decision.group, decision.codebook
    group = Group(plan, state, step=step, name=name, codebook=codebook, stage=rule.stage)
    asked = [(group.turns.get(part.codebook), part.codebook) for part in decision.parts]
    for turn, codebook in asked:
        waiting = turn.rules.get(rule.name, ARMED) if turn is not None else ARMED
        if waiting.phase is not Phase.FIRING or waiting.attempt is None or waiting.attempt != decision.attempt:
            raise ValueError(
                f"expected an ACT decision that waits for its report, got {decision.kind.value} of rule "
                f"{decision.rule!r} on {codebook!r}, attempt {decision.attempt}. "
                "Report each ACT once, before the next reading."
            )
    applied = [turn for turn, codebook in asked if turn is not None and codebook not in {*refused, *postponed}]
    for turn in applied:
        turn.put(rule, changed(turn.rules[rule.name], phase=Phase.VERIFYING))
        turn.unsettle(decision.action or "")
    if applied:
        group.disturb_below(applied[0].level, decision.action or "")
    for turn, codebook in asked:
        if turn is not None and codebook in postponed:
            turn.put(rule, _withdrawn(turn, rule, turn.rules[rule.name], postponed[codebook]))
        elif turn is not None and codebook in refused:
            turn.put(rule, _refused(turn, rule, turn.rules[rule.name], decision.action or "", refused[codebook]))
    if group.name is not None:
        conclude(group)
    return group.after(), coordinated(group.decisions)


def finish(plan: Plan, state: EngineState, step: int) -> tuple[EngineState, Decisions]:
    """End the run: every open intervention is inconclusive wherever it has no verdict yet."""
    decisions: list[Decision] = []
    done: set[str] = set()
    for codebook, book in state.codebooks.items():
        if codebook in done:
            continue
        group = Group(plan, state, step=step, name=book.group, codebook=codebook)
        done.update(group.codebooks)
        for turn in group.turns.values():
            occupant = turn.occupant()
            assert occupant is not None, "without readings, only codebooks with an open intervention have a turn"
            rule, still_open = occupant
            reason = f"the run ended before {action_of(still_open)} was verified"
            verdict = still_open.verdict or Verdict(outcome=Outcome.INCONCLUSIVE, reason=reason)
            turn.put(rule, end(turn, rule, still_open, verdict))
        state = group.after()
        decisions += coordinated(group.decisions)
    return state, tuple(decisions)


def has_phase(book: CodebookState, phases: frozenset[Phase], besides: Collection[str] = ()) -> bool:
    """Whether a rule, none of those `besides`, stands at one of these phases on a codebook."""
    if not besides:
        return not phases.isdisjoint(map(_PHASE_OF, book.rules.values()))
    return any(state.phase in phases for name, state in book.rules.items() if name not in besides)


def concerned(plan: Plan, book: CodebookState) -> list[RulePlan]:
    """Return the rules that hold on a codebook now, or are not done there yet."""
    found = []
    for rule in plan.rules:
        state = book.rules.get(rule.name, ARMED)
        if state.phase in TROUBLED or (state.holds and state.phase is not Phase.WITHDRAWN):
            found.append(rule)
    return found


def _check(readings: Sequence[Reading]) -> None:
    first = readings[0]
    places = {(reading.step, reading.group, reading.stage) for reading in readings}
    if len(places) > 1 or first.group is None or len({reading.codebook for reading in readings}) < len(readings):
        what = ", ".join(f"{reading.codebook} of {reading.group} at step {reading.step}" for reading in readings)
        raise ValueError(
            f"expected one reading of each of several levels of one group at one step, got {what}. "
            "Bundle the readings of a run with taken_together."
        )


def _judge(turn: Turn) -> None:
    """Take the reading of a turn into account, rule by rule."""
    if (no_verdict := _no_verdict(turn)) is not None:
        _pass_over(turn, *no_verdict)
        return
    turn.remember()
    book = turn.book
    if turn.stage == "eval":
        turn.book = book if book.eval_skipped is None else changed(book, eval_skipped=None)
    elif not book.judged or book.skipped or book.settling_after:
        turn.book = changed(book, judged=True, skipped=None, settling_after=None, settled=0)
    reading, derived = turn.reading, turn.derived
    for rule in turn.plan.rules_on(turn.codebook):
        if rule.stage != turn.stage:
            continue
        old = turn.rules.get(rule.name, ARMED)
        is_absent = rule.lead is not None and rule.lead(reading) is None  # saves most rules a call at most readings
        if is_absent and old.phase is Phase.ARMED and old.skipped is None and not old.holds:
            continue
        holds = rule.holds(reading, derived)
        if not holds and old.phase is Phase.ARMED and old.skipped is None and not old.holds:
            continue  # at most readings this is so for every rule
        new = advance(turn, rule, old, holds)
        if new is not old:
            turn.put(rule, new)


def _no_verdict(turn: Turn) -> tuple[Skip, str] | None:
    """Return why a reading is no evidence at all, or `None` if it is."""
    plan, book, reading = turn.plan, turn.book, turn.reading
    if reading.step < plan.warmup:
        return Skip.WARMING_UP, f"warming up: step {reading.step} of {plan.warmup}"
    if reading.tokens < plan.min_tokens:
        return Skip.FEW_TOKENS, f"{reading.tokens} tokens are too few for a verdict: min_tokens is {plan.min_tokens}"
    if turn.stage == "train" and book.settling_after is not None and book.settled < plan.settle:
        return Skip.SETTLING, f"settling: {book.settled + 1} of {plan.settle} readings after {book.settling_after}"
    return None


def _pass_over(turn: Turn, why: Skip, reason: str) -> None:
    """Record a reading without a verdict, once a streak, and let it count against an open verification."""
    is_eval = turn.stage == "eval"
    if (turn.book.eval_skipped if is_eval else turn.book.skipped) is not why:
        told = f"in evaluation: {reason}" if is_eval else reason
        turn.record(DecisionKind.SKIP, None, told, skip=why)
        turn.book = changed(turn.book, eval_skipped=why) if is_eval else changed(turn.book, skipped=why)
    if why is Skip.SETTLING:
        turn.book = changed(turn.book, settled=turn.book.settled + 1)
    else:
        starve(turn)


def _refused(turn: Turn, rule: RulePlan, state: RuleState, action: str, reason: str) -> RuleState:
    because = f": {reason}" if reason else ""
    reason = f"{action} was not applied{because}"
    verdict = Verdict(outcome=Outcome.FAILED, reason=reason, again=False, applied=False)
    return judge(turn, rule, changed(state, phase=Phase.VERIFYING), verdict)


def _withdrawn(turn: Turn, rule: RulePlan, state: RuleState, reason: str) -> RuleState:
    """Return an armed state that has neither tried nor spent what it had asked for."""
    spent = dict(state.spent)
    tried = state.tried or ""
    spent[tried] = spent.get(tried, 1) - 1
    fresh = RuleState(
        holds=state.holds,
        failed=state.failed,
        tried=state.tried,
        tries=state.tries - 1,
        origin=state.origin,
        spent={name: count for name, count in spent.items() if count},
        pauses=state.pauses,
    )
    return turn.skip(rule, fresh, Skip.COARSER_LEVEL, reason)


def _refilled(plan: Plan, state: EngineState, group: Group) -> EngineState:
    """Make the budget whole again once every codebook has been healthy for long enough."""
    if not state.spent or plan.refill_after is None:
        return state
    # while all have been calm, only the codebooks just read can have changed that
    names = state.codebooks if state.calm_since is None else group.codebooks
    for name in names:
        for rule in concerned(plan, state.codebooks[name]):
            if rule.rungs or rule.severity != "info":
                return state if state.calm_since is None else changed(state, calm_since=None)
    if state.calm_since is None:
        return changed(state, calm_since=group.step)
    if group.step - state.calm_since < plan.refill_after:
        return state
    fresh = {name: _unspent(book) for name, book in state.codebooks.items()}
    return changed(state, spent=0, calm_since=None, codebooks=fresh)


def _unspent(book: CodebookState) -> CodebookState:
    """Return a codebook whose rules and rungs have their budgets whole, and their first cooldown before them, again."""
    return changed(book, rules={name: changed(rule, spent={}, pauses=0) for name, rule in book.rules.items()})
