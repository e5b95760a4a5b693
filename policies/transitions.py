"""The life of one rule on one codebook: armed, pending, firing, verifying, cooling, exhausted.

    armed -> pending -> firing -> verifying -> cooling -> armed
                          |  ^       |
                          |  +-------+   failed: the next rung, at the same reading
                          +-> exhausted  every rung failed, or the budget is spent; over when the rule clears

One function per phase, each taking the old state and returning the new one. Time is the step of the turn; nothing here
keeps a clock, and nothing acts: an ACT decision only asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .decisions import DecisionKind, Outcome, Skip
from .duration import Duration
from .plan import RulePlan, RungPlan
from .reading import Reading
from .states import Phase, RuleState
from .turn import Turn, action_of

__all__ = ["advance", "close", "fail", "starve"]


def advance(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Take the reading of the turn into account; the old state itself is returned where nothing changes."""
    holds = rule.holds(turn.reading, turn.derived)
    if holds is not None and holds is not state.holds:
        state = replace(state, holds=holds)
    return _PHASES[state.phase](turn, rule, state, holds)


def starve(turn: Turn) -> None:
    """Let a reading without a verdict count against the time of an open verification, if there is one."""
    occupant = turn.occupant()
    if occupant is not None and occupant[1].phase is Phase.VERIFYING:
        rule, state = occupant
        turn.put(rule, _without_evidence(turn, rule, replace(state, readings=state.readings + 1)))


def close(
    turn: Turn, rule: RulePlan, state: RuleState, outcome: Outcome, reason: str, *, after: Reading | None
) -> RuleState:
    """End the open intervention other than by failure, and begin to cool down."""
    turn.record_outcome(rule, state, outcome, reason, after=after)
    return RuleState(
        phase=Phase.COOLING,
        holds=state.holds,
        failed=state.failed,
        spent=state.spent,
        pauses=state.pauses + 1,
        since_step=turn.step,
        since_epoch=turn.reading.epoch,
    )


def fail(
    turn: Turn, rule: RulePlan, state: RuleState, reason: str, *, again: bool = True, applied: bool = True
) -> RuleState:
    """End the open intervention as failed, and go on to the next try or rung at once.

    The rung has failed, and all that it has done is to be undone, when it has no try left or may not try `again`. An
    action that was not `applied` has done nothing itself, so only earlier tries can be undone.
    """
    rung = rule.open_rung(state)
    last = not again or rung is None or state.tries >= rung.repeat or rung.is_spent(state) or rule.is_spent(state)
    turn.record_outcome(
        rule,
        state,
        Outcome.FAILED,
        reason,
        after=turn.reading if applied else None,
        rollback=last and (applied or state.tries > 1),
    )
    failed = (*state.failed, state.tried) if last and state.tried else state.failed
    state = RuleState(
        phase=Phase.FIRING,
        holds=state.holds,
        failed=failed,
        tried=state.tried,
        tries=0 if last else state.tries,
        spent=state.spent,
        pauses=state.pauses,
    )
    if turn.step < rule.silence_until:
        return _silence(turn, rule, state)
    inhibitor = turn.inhibitor(rule)
    return _act(turn, rule, state) if inhibitor is None else _hush(turn, rule, state, inhibitor)


def _armed(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Armed or pending: count readings until the rule fires."""
    if holds is None:
        return state
    if not holds:
        if state.phase is Phase.ARMED and state.skipped is None:
            return state
        return replace(state, phase=Phase.ARMED, held=0, skipped=None)
    if turn.step < rule.silence_until:
        return _silence(turn, rule, state)
    inhibitor = turn.inhibitor(rule)
    if inhibitor is not None and not turn.is_pending(inhibitor):
        return _hush(turn, rule, state, inhibitor)
    held = state.held + 1
    explanation = rule.when.explain(turn.reading, turn.derived, *rule.when_unknown)
    if held >= rule.hold:
        if inhibitor is not None:
            return _wait_for(turn, rule, replace(state, phase=Phase.PENDING, held=held), inhibitor)
        turn.record(DecisionKind.ALERT, rule, f"{explanation} for {_readings(held)}", before=turn.reading)
        return _act(turn, rule, replace(state, phase=Phase.FIRING, held=held, cleared=0, skipped=None))
    if state.phase is Phase.ARMED:
        turn.record(DecisionKind.PENDING, rule, f"{explanation}: {held} of {rule.hold} readings")
    return replace(state, phase=Phase.PENDING, held=held, skipped=None)


def _firing(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Fired, with nothing being verified: try to act while the condition holds, or else clear."""
    if state.attempt is not None:  # asked for, not reported yet
        return state
    if not holds:
        return _clearing(turn, rule, state, holds)
    if turn.step < rule.silence_until:
        return _silence(turn, rule, state)
    inhibitor = turn.inhibitor(rule)
    if inhibitor is not None:
        quieten = _wait_for if turn.is_pending(inhibitor) else _hush
        return quieten(turn, rule, state, inhibitor)
    return _act(turn, rule, state if state.cleared == 0 else replace(state, cleared=0))


def _clearing(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Fired or exhausted: count clear readings until the rule is over."""
    clear = rule.clears(turn.reading, turn.derived)
    if clear is None:
        return state
    if not clear:
        return state if state.cleared == 0 else replace(state, cleared=0)
    cleared = state.cleared + 1
    if cleared < rule.clear_hold:
        return replace(state, cleared=cleared)
    turn.record(
        DecisionKind.CLEARED,
        rule,
        f"{rule.clear.explain(turn.reading, turn.derived, *rule.clear_unknown)} for {_readings(cleared)}",
    )
    return replace(state, phase=Phase.ARMED, held=0, cleared=0, skipped=None)


def _verifying(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Judge the open intervention: success must last, failure is stated at the deadline.

    A streak of success that has begun in time may end after the deadline. Success that costs more loss than the guard
    allows is none, and the deadline decides.
    """
    state = replace(state, readings=state.readings + 1)
    rung = rule.open_rung(state)
    if rung is None:
        reason = f"the policy has changed and no longer has {state.tried}"
        return close(turn, rule, state, Outcome.INCONCLUSIVE, reason, after=turn.reading)
    success = rule.succeeds(turn.reading, turn.derived)
    if success is None:
        return _without_evidence(turn, rule, state)
    if success:
        state = replace(state, cleared=state.cleared + 1, evidence=state.evidence + 1)
        if state.cleared < rule.clear_hold:
            return state
        explanation = rule.success.explain(turn.reading, turn.derived, *rule.clear_unknown)
        reason = f"{explanation} for {_readings(state.cleared)} after {rung.action}"
        is_within, remark = _loss_of(turn, rule, state)
        if is_within:
            return close(turn, rule, state, Outcome.RECOVERED, reason + remark, after=turn.reading)
        if _left(rung.within, turn, state) > 0:
            return state
        return fail(turn, rule, state, f"{reason}, but {remark}")
    if _left(rung.within, turn, state) > 0:
        return replace(state, cleared=0, evidence=state.evidence + 1)
    wanted = f"{rule.success} for {_readings(rule.clear_hold)}"
    return fail(
        turn, rule, state, f"{rule.success.measure(turn.reading, turn.derived)} after {rung.within}, wanted {wanted}"
    )


def _loss_of(turn: Turn, rule: RulePlan, state: RuleState) -> tuple[bool, str]:
    """Return whether the loss is within the guard's bound, and what to say of it in the outcome."""
    bound, before, now = rule.loss_increase, state.before.loss if state.before else None, turn.reading.loss
    if bound is None:
        return True, ""
    if before is None or now is None or not math.isfinite(before):
        return True, "; the guard was not applied: no loss is known before and after"
    if now <= before + bound * abs(before):
        return True, f"; loss {now:.4g}, {before:.4g} before"
    return False, f"loss {now:.4g} is more than {bound:.15g} above the {before:.4g} before {action_of(state)}"


def _without_evidence(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Verifying, at a reading that cannot tell: give up at the deadline, or at twice the time if others could tell."""
    rung = rule.open_rung(state)
    within = rung.within if rung else rule.within
    grace = within.count if state.evidence else 0
    if _left(within, turn, state) + grace > 0:
        return state
    reason = f"no usable reading to tell within {within} whether {action_of(state)} held"
    return close(turn, rule, state, Outcome.INCONCLUSIVE, reason, after=turn.reading)


def _cooling(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Wait; say so once if the rule would otherwise fire.

    What held during the pause does not count afterwards: the rule begins anew, armed, at the reading that ends it.
    """
    state = replace(state, readings=state.readings + 1)
    pause = rule.pause(state)
    left = _left(pause, turn, state)
    if left <= 0:
        armed = RuleState(holds=state.holds, failed=state.failed, spent=state.spent, pauses=state.pauses)
        return _armed(turn, rule, armed, holds)
    if holds is None:
        return state
    if not holds:
        return replace(state, held=0, skipped=None)
    state = replace(state, held=state.held + 1)
    if state.held < rule.hold:
        return state
    return turn.skip(rule, state, Skip.COOLING_DOWN, f"cooling down: {left} of {pause} left")


def _act(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Ask for the first action that has not failed here, or record why there is none.

    The reasons against are weighed from the lasting to the passing: nothing left to try, a policy that only observes,
    a spent budget (the rule is exhausted, too), another open intervention.
    """
    if not rule.rungs:
        return state
    rung = rule.next_rung(state)
    if rung is None:
        tried = ", ".join(each.description for each in rule.rungs)
        spent = " or spent its budget" if any(each.description not in state.failed for each in rule.rungs) else ""
        turn.record(DecisionKind.EXHAUSTED, rule, f"every rung has failed{spent}: {tried}", then=rule.on_exhausted)
        return _exhausted(turn, rule, replace(state, skipped=None))
    facts: dict[str, Any] = {"action": rung.action, "params": rung.params, "rung": rung.index}
    if turn.plan.observes:
        return turn.skip(rule, state, Skip.OBSERVING, f"observe mode: would {rung.description}", **facts)
    if turn.resigned is not None:
        reason = f"nothing more is done here since {turn.resigned} was exhausted: would {rung.description}"
        return turn.skip(rule, state, Skip.OBSERVING, reason, **facts)
    if (spent_budget := _spent_budget(turn, rule, state)) is not None:
        state = turn.skip(rule, state, Skip.BUDGET_SPENT, spent_budget, **facts, then=rule.on_exhausted)
        return _exhausted(turn, rule, state)
    if not _has_room(turn, rule, state):
        return turn.skip(rule, state, Skip.OCCUPIED, "another intervention is being verified", **facts)
    return _ask(turn, rule, state, rung)


def _spent_budget(turn: Turn, rule: RulePlan, state: RuleState) -> str | None:
    """Return which budget allows no further intervention, if one does not."""
    if turn.spent >= turn.plan.interventions:
        return f"budget of {turn.plan.interventions} interventions is spent"
    if rule.is_spent(state):
        return f"budget of {rule.budget} interventions by {rule.name} on {turn.codebook} is spent"
    return None


def _exhausted(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Give up until the rule clears; on the whole codebook and for good if the rule says so."""
    if rule.on_exhausted == "observe":
        turn.resigned = rule.name
    return replace(state, phase=Phase.EXHAUSTED)


def _has_room(turn: Turn, rule: RulePlan, state: RuleState) -> bool:
    """Whether nothing else is open on the codebook; the verification of an inhibited rule is ended to make it so."""
    occupant = turn.occupant(besides=rule)
    if occupant is None:
        return True
    other, open_state = occupant
    if other.name not in rule.inhibits or open_state.phase is not Phase.VERIFYING:
        return False
    turn.put(rule, state)  # the other rule must see itself inhibited, or it would climb its own ladder
    turn.put(other, fail(turn, other, open_state, f"{rule.name} fired meanwhile", again=False))
    return True


def _ask(turn: Turn, rule: RulePlan, state: RuleState, rung: RungPlan) -> RuleState:
    """Issue the ACT decision, charge it to the budget, and open the intervention."""
    turn.spent += 1
    turn.attempts += 1
    tries = state.tries + 1 if state.tried == rung.description else 1
    nth = f", try {tries} of {rung.repeat}" if rung.repeat > 1 else ""
    place = f"rung {rung.index + 1} of {len(rule.rungs)}{nth}"
    turn.record(
        DecisionKind.ACT,
        rule,
        f"{place}: {rung.description} at {rule.when.measure(turn.reading, turn.derived)}",
        action=rung.action,
        params=rung.params,
        rung=rung.index,
        attempt=turn.attempts,
        before=turn.reading,
    )
    return replace(
        state,
        skipped=None,
        cleared=0,
        tried=rung.description,
        tries=tries,
        rung=rung.index,
        attempt=turn.attempts,
        before=turn.reading,
        since_step=turn.step,
        since_epoch=turn.reading.epoch,
        spent={**state.spent, rung.description: state.spent.get(rung.description, 0) + 1},
    )


def _silence(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Return an armed state that counts from the beginning once the rule may speak."""
    if state.phase is not Phase.ARMED or state.held:
        state = replace(state, phase=Phase.ARMED, held=0, cleared=0)
    return turn.skip(rule, state, Skip.SILENCED, f"silent until step {rule.silence_until}")


def _hush(turn: Turn, rule: RulePlan, state: RuleState, inhibitor: str) -> RuleState:
    """Return an armed state that counts from the beginning once the inhibiting rule is done."""
    if state.phase is not Phase.ARMED or state.held:
        state = replace(state, phase=Phase.ARMED, held=0, cleared=0)
    return turn.skip(rule, state, Skip.INHIBITED, f"inhibited by {inhibitor}")


def _wait_for(turn: Turn, rule: RulePlan, state: RuleState, inhibitor: str) -> RuleState:
    """Return the state as it is while a pending rule may yet fire; what was counted stays if it does not."""
    return turn.skip(rule, state, Skip.INHIBITED, f"inhibited by {inhibitor}, which is pending")


def _left(span: Duration, turn: Turn, state: RuleState) -> int:
    """Return how much of a span is left since the intervention, or the cooling, began; 0 or less when it is over."""
    if span.unit == "steps":
        return span.count - (turn.step - state.since_step)
    if span.unit == "readings":
        return span.count - state.readings
    if turn.reading.epoch is None or state.since_epoch is None:
        return span.count
    return span.count - (turn.reading.epoch - state.since_epoch)


def _readings(count: int) -> str:
    return f"{count} reading" if count == 1 else f"{count} readings"


_PHASES: dict[Phase, Callable[[Turn, RulePlan, RuleState, bool | None], RuleState]] = {
    Phase.ARMED: _armed,
    Phase.PENDING: _armed,
    Phase.FIRING: _firing,
    Phase.VERIFYING: _verifying,
    Phase.COOLING: _cooling,
    Phase.EXHAUSTED: _clearing,
}
