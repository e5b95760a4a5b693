"""Verification: whether an intervention held, judged reading by reading, and what follows from it.

Each codebook is judged by itself. Where several levels of a group share an intervention, a verdict waits for those of
the other levels; then the one outcome is stated, and the levels that failed go on together.
"""

from __future__ import annotations

import math

from .asking import act
from .decisions import Outcome
from .group import Group
from .plan import RulePlan
from .quiet import hush, silence, yield_to
from .spans import left_of
from .states import Phase, RuleState, Verdict, changed
from .turn import Turn, action_of
from .verdicts import end
from .words import counted

__all__ = ["conclude", "judge", "starve", "verify"]


def judge(turn: Turn, rule: RulePlan, state: RuleState, verdict: Verdict) -> RuleState:
    """End the open intervention of a codebook by itself; keep the verdict of one that is a level of a group."""
    if turn.group.name is not None:
        return changed(state, verdict=verdict)
    return go_on(turn, rule, end(turn, rule, state, verdict))


def conclude(group: Group) -> None:
    """State outcomes on which every level concerned has its verdict, and let those that failed go on, coarse first."""
    ended = group.concluded()
    for turn, rule, state in ended:
        assert state.verdict is not None, "a concluded intervention has a verdict everywhere"
        turn.put(rule, end(turn, rule, state, state.verdict))
    for turn, rule, _ in ended:
        turn.put(rule, go_on(turn, rule, turn.rules[rule.name]))


def go_on(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """After a failed try, ask for the next try or rung at once, unless the rule has to keep quiet."""
    if state.phase is not Phase.FIRING:
        return state
    if turn.step < rule.silence_until:
        return silence(turn, rule, state)
    if (inhibitor := turn.inhibitor(rule)) is not None:
        return hush(turn, rule, state, inhibitor)
    if (coarser := turn.group.coarser(turn, rule, state, fires=True)) is not None:
        return yield_to(turn, rule, state, coarser)
    return act(turn, rule, state)


def starve(turn: Turn) -> None:
    """Let a step without evidence count against the time of an open verification, if there is one."""
    occupant = turn.occupant()
    if occupant is None or occupant[0].stage != turn.stage:  # a reading of the other stage is no chance missed
        return
    if occupant[1].phase is Phase.VERIFYING and occupant[1].verdict is None:
        rule, state = occupant
        turn.put(rule, _without_evidence(turn, rule, changed(state, readings=state.readings + 1)))


def verify(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Judge the open intervention: success must last, failure is stated at the deadline.

    A streak of success that has begun in time may end after the deadline. Success that costs more loss than the guard
    allows is none, and the deadline decides.
    """
    if state.verdict is not None:  # it waits for other levels
        return state
    state = changed(state, readings=state.readings + 1)
    rung = rule.open_rung(state)
    if rung is None:
        reason = f"the policy has changed and no longer has {state.tried}"
        return _judged(turn, rule, state, Outcome.INCONCLUSIVE, reason)
    success = rule.succeeds(turn.reading, turn.derived)
    if success is None:
        return _without_evidence(turn, rule, state)
    if success:
        state = changed(state, cleared=state.cleared + 1, evidence=state.evidence + 1)
        if state.cleared < rule.clear_hold:
            return state
        explanation = rule.why_succeeds(turn.reading, turn.derived)
        reason = f"{explanation} for {counted(state.cleared, 'reading')} after {rung.action}"
        is_within, remark = _loss_of(turn, rule, state)
        if is_within:
            return _judged(turn, rule, state, Outcome.RECOVERED, reason + remark)
        if left_of(rung.within, turn, state) > 0:
            return state
        return _judged(turn, rule, state, Outcome.FAILED, f"{reason}, but {remark}")
    if left_of(rung.within, turn, state) > 0:
        return changed(state, cleared=0, evidence=state.evidence + 1)
    wanted = f"{rule.success} for {counted(rule.clear_hold, 'reading')}"
    measured = rule.success.measure(turn.reading, turn.derived)
    return _judged(turn, rule, state, Outcome.FAILED, f"{measured} after {rung.within}, wanted {wanted}")


def _loss_of(turn: Turn, rule: RulePlan, state: RuleState) -> tuple[bool, str]:
    """Return whether the loss is within the guard's bound, and what to say of it in the outcome."""
    bound, before, now = rule.loss_increase, state.before.loss if state.before else None, turn.reading.loss
    if bound is None:
        return True, ""
    if before is None or now is None or not math.isfinite(before):
        return True, "; its bound on the loss was not applied: no loss is known before and after"
    if now <= before + bound * abs(before):
        return True, f"; loss {now:.4g}, {before:.4g} before"
    return False, f"loss {now:.4g} is more than {bound:.15g} above the {before:.4g} before {action_of(state)}"


def _without_evidence(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Verifying, at a reading that cannot tell: give up at the deadline, or at twice the time if others could tell."""
    rung = rule.open_rung(state)
    within = rung.within if rung else rule.within
    grace = within.count if state.evidence else 0
    if left_of(within, turn, state) + grace > 0:
        return state
    reason = f"no usable reading to tell within {within} whether {action_of(state)} held"
    return _judged(turn, rule, state, Outcome.INCONCLUSIVE, reason)


def _judged(turn: Turn, rule: RulePlan, state: RuleState, outcome: Outcome, reason: str) -> RuleState:
    """Return the state with a verdict by the reading of this turn, if it has one of its own."""
    after = turn.reading if turn.is_read else None
    return judge(turn, rule, state, Verdict(outcome=outcome, reason=reason, after=after))
