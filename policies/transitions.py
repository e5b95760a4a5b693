"""The life of one rule on one codebook: armed, pending, firing, verifying, cooling, exhausted.

    armed -> pending -> firing -> verifying -> cooling -> armed
                |         |  ^       |
                |         |  +-------+   failed: the next rung, at the same reading
                |         +-> exhausted  every rung failed, or the budget is spent; over when the rule clears
                +-> withdrawn            the cause is no trouble, or not its own; looked at anew after the cooldown

One function per phase, each taking the old state and returning the new one; `asking` and `verification` hold those of
an intervention. Time is the step of the turn; nothing here keeps a clock, and nothing acts: an ACT decision only asks.
"""

from __future__ import annotations

from collections.abc import Callable

from .asking import act, quieted
from .causes import Diagnosis
from .decisions import DecisionKind, Skip
from .plan import RulePlan
from .quiet import wait_for
from .spans import left_of
from .states import Phase, RuleState, changed
from .turn import ARMED, Turn
from .verification import verify
from .words import counted

__all__ = ["advance"]

_REST = 10  # readings for which a withdrawn rule rests at least: looking for causes is not free


def advance(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Take the reading of the turn into account; the old state itself is returned where nothing changes.

    Args:
        holds: whether the rule's condition holds at the reading; `None` where that is not known.
    """
    if holds is not None and holds is not state.holds:
        state = changed(state, holds=holds)
    return _PHASES[state.phase](turn, rule, state, holds)


def _armed(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Armed or pending: count readings until the rule fires."""
    if holds is None:
        return state
    if not holds:
        if state.phase is Phase.ARMED and state.skipped is None:
            return state
        return changed(state, phase=Phase.ARMED, held=0, skipped=None)
    held = state.held + 1
    if (quiet := quieted(turn, rule, state, fires=held >= rule.hold)) is not None:
        return quiet
    if held >= rule.hold:
        if (inhibitor := turn.inhibitor(rule)) is not None:
            return wait_for(turn, rule, changed(state, phase=Phase.PENDING, held=held), inhibitor)
        if rule.unless is not None and (excuse := rule.unless.among(turn.reading.causes)) is not None:
            return _withdraw(turn, rule, changed(state, held=held), excuse)
        if rule.only is not None and rule.only.among(turn.reading.causes) is None:
            return _wait_for_cause(turn, rule, changed(state, held=held))
        why = f"{rule.why_holds(turn.reading, turn.derived)} for {counted(held, 'reading')}"
        turn.record(DecisionKind.ALERT, rule, why, before=turn.reading)
        return _act_in_turn(turn, rule, changed(state, phase=Phase.FIRING, held=held, cleared=0, skipped=None))
    if state.phase is Phase.ARMED:
        why = f"{rule.why_holds(turn.reading, turn.derived)}: {held} of {rule.hold} readings"
        turn.record(DecisionKind.PENDING, rule, why)
    return changed(state, phase=Phase.PENDING, held=held, skipped=None)


def _withdraw(turn: Turn, rule: RulePlan, state: RuleState, excuse: Diagnosis) -> RuleState:
    """Let the rule rest: it would fire, and what was found is no trouble. Told once, as long as that stays so.

    What another rule of this codebook rests for already, for the same cause, is not told again.
    """
    if not _is_excused(state) and not _is_told(turn, rule, excuse):
        why = f"{rule.why_holds(turn.reading, turn.derived)}, but {excuse.cause.value}: {excuse.says}"
        turn.record(DecisionKind.WITHDRAWN, rule, why, before=turn.reading)
    return _rest(turn, changed(state, skipped=None))


def _wait_for_cause(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Let the rule rest: it would fire if its cause had been found. Recorded at each look, which asks for causes."""
    found = max(turn.reading.causes, key=lambda each: each.confidence, default=None)
    instead = f", but {found.cause.value}" if found is not None else ""
    why = f"{rule.why_holds(turn.reading, turn.derived)}; {rule.only} was not found{instead}"
    turn.record(DecisionKind.SKIP, rule, why, skip=Skip.OTHER_CAUSE)
    return _rest(turn, changed(state, skipped=Skip.OTHER_CAUSE))


def _is_excused(state: RuleState) -> bool:
    """Whether a rule rests for a cause that is no trouble, and not because its own was not found."""
    return state.phase is Phase.WITHDRAWN and state.skipped is not Skip.OTHER_CAUSE


def _rest(turn: Turn, state: RuleState) -> RuleState:
    """Let a rule rest from here on; why it does is told."""
    return changed(
        state,
        phase=Phase.WITHDRAWN,
        cleared=0,
        readings=0,
        since_step=turn.step,
        since_epoch=turn.reading.epoch,
    )


def _is_told(turn: Turn, rule: RulePlan, excuse: Diagnosis) -> bool:
    """Whether another rule is withdrawn on this codebook for this very cause."""
    resting = (
        other.unless.among(turn.reading.causes)
        for other in turn.plan.rules
        if other is not rule and other.unless is not None and _is_excused(turn.rules.get(other.name, ARMED))
    )
    return any(found is not None and found.cause is excuse.cause for found in resting)


def _withdrawn(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Withdrawn: rest as long as a cooldown lasts and the condition holds, then look whether the cause is still so."""
    state = changed(state, readings=state.readings + 1)
    if holds is None:
        return state
    least = _REST if _is_excused(state) else 1
    is_over = left_of(rule.pause(state), turn, state) <= 0 and state.readings >= least
    return _armed(turn, rule, state, holds) if not holds or is_over else state


def _firing(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Fired, with nothing being verified: try to act while the condition holds, or else clear."""
    if state.attempt is not None:  # asked for, not reported yet
        return state
    if not holds:
        return _clearing(turn, rule, state, holds)
    if (quiet := quieted(turn, rule, state, fires=True)) is not None:
        return quiet
    if (inhibitor := turn.inhibitor(rule)) is not None:
        return wait_for(turn, rule, state, inhibitor)
    return _act_in_turn(turn, rule, state if state.cleared == 0 else changed(state, cleared=0))


def _act_in_turn(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Try to act, unless a rule above has waited for what has ended at this very reading, and acts at the next."""
    waiting = turn.waiting_before(rule) if rule.rungs and turn.occupant() is None else None
    if waiting is not None:
        return turn.skip(rule, state, Skip.OCCUPIED, f"{waiting} has waited for its turn")
    return act(turn, rule, state)


def _clearing(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Fired or exhausted: count clear readings until the rule is over."""
    clear = rule.clears(turn.reading, turn.derived)
    if clear is None:
        return state
    if not clear:
        return state if state.cleared == 0 else changed(state, cleared=0)
    cleared = state.cleared + 1
    if cleared < rule.clear_hold:
        return changed(state, cleared=cleared)
    turn.record(
        DecisionKind.CLEARED,
        rule,
        f"{rule.why_clears(turn.reading, turn.derived)} for {counted(cleared, 'reading')}",
    )
    return changed(state, phase=Phase.ARMED, held=0, cleared=0, skipped=None)


def _cooling(turn: Turn, rule: RulePlan, state: RuleState, holds: bool | None) -> RuleState:
    """Wait; say so once if the rule would otherwise fire.

    What held during the pause does not count afterwards: the rule begins anew, armed, at the reading that ends it.
    """
    state = changed(state, readings=state.readings + 1)
    pause = rule.pause(state)
    left = left_of(pause, turn, state)
    if left <= 0:
        armed = RuleState(holds=state.holds, failed=state.failed, spent=state.spent, pauses=state.pauses)
        return _armed(turn, rule, armed, holds)
    if holds is None:
        return state
    if not holds:
        return changed(state, held=0, skipped=None)
    state = changed(state, held=state.held + 1)
    if state.held < rule.hold:
        return state
    return turn.skip(rule, state, Skip.COOLING_DOWN, f"cooling down: {left} of {pause} left")


_PHASES: dict[Phase, Callable[[Turn, RulePlan, RuleState, bool | None], RuleState]] = {
    Phase.ARMED: _armed,
    Phase.PENDING: _armed,
    Phase.FIRING: _firing,
    Phase.VERIFYING: lambda turn, rule, state, _: verify(turn, rule, state),
    Phase.COOLING: _cooling,
    Phase.EXHAUSTED: _clearing,
    Phase.WITHDRAWN: _withdrawn,
}
