"""How an intervention ends on one codebook: its outcome is recorded, and the rule cools down or has one try less."""

from __future__ import annotations

from .decisions import Outcome
from .plan import RulePlan
from .states import Phase, RuleState, Verdict
from .turn import Turn, action_of

__all__ = ["end"]


def end(turn: Turn, rule: RulePlan, state: RuleState, verdict: Verdict) -> RuleState:
    """Record the outcome of the open intervention; cool down after it, or fire on if it has failed."""
    if verdict.outcome is Outcome.FAILED:
        return _failed(turn, rule, state, verdict)
    turn.record_outcome(rule, state, verdict.outcome, verdict.reason, after=verdict.after)
    return RuleState(
        phase=Phase.COOLING,
        holds=state.holds,
        failed=state.failed,
        spent=state.spent,
        pauses=state.pauses + 1,
        since_step=turn.step,
        since_epoch=turn.reading.epoch,
    )


def _failed(turn: Turn, rule: RulePlan, state: RuleState, verdict: Verdict) -> RuleState:
    """End a failed try.

    The rung has failed, and all that it has done is to be undone, when it has no try left or may not try again. An
    action that was not applied has done nothing itself, so only earlier tries can be undone.
    """
    rung = rule.open_rung(state)
    last = not verdict.again or rung is None or state.tries >= rung.repeat
    last = last or (rung is not None and rung.is_spent(state)) or rule.is_spent(state)
    rollback = last and (verdict.applied or state.tries > 1)
    after = verdict.after if verdict.applied else None
    turn.record_outcome(rule, state, Outcome.FAILED, verdict.reason, after=after, rollback=rollback)
    if rollback:
        turn.forget()
        turn.group.disturb_below(turn.level, f"undoing {action_of(state)}")
    return RuleState(
        phase=Phase.FIRING,
        holds=state.holds,
        failed=(*state.failed, state.tried) if last and state.tried else state.failed,
        tried=state.tried,
        tries=0 if last else state.tries,
        spent=state.spent,
        pauses=state.pauses,
    )
