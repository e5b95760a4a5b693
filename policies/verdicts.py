"""How an intervention ends on one codebook: its outcome is recorded, and the rule cools down or has one try less."""

from __future__ import annotations

from .decisions import Outcome
from .improvement import is_better
from .plan import RulePlan
from .states import Phase, RuleState, Verdict
from .turn import Turn, action_of

__all__ = ["end"]


def end(turn: Turn, rule: RulePlan, state: RuleState, verdict: Verdict) -> RuleState:
    """Record the outcome of the open intervention; cool down after it, or fire on if it has failed."""
    if verdict.outcome is Outcome.FAILED:
        return _failed(turn, rule, state, verdict)
    turn.record_outcome(rule, state, verdict.outcome, verdict.reason, after=verdict.after)
    return _cooling(turn, state)


def _cooling(turn: Turn, state: RuleState) -> RuleState:
    """Return the state of a rule whose pause begins."""
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

    The rung has failed, and all that it has done is to be undone or kept, as the rule says, when it has no try left or
    may not try again. An action that was not applied has done nothing itself, so only earlier tries can be undone.

    A rung that has tries left makes way for a rule above that waits: it ends as with its last one, and the rule cools
    down. It has not failed: what the tries were for may come back when the other trouble is over.
    """
    rung = rule.open_rung(state)
    last = not verdict.again or rung is None or state.tries >= rung.repeat
    last = last or (rung is not None and rung.is_spent(state)) or rule.is_spent(state)
    last = last or turn.has_spent_all  # the run's budget allows no further try either
    waiting = None if last else turn.waiting_before(rule)
    ends = last or waiting is not None
    has_acted = ends and (verdict.applied or state.tries > 1)
    kept = has_acted and _is_kept(rule, state, verdict)
    rollback = has_acted and not kept
    after = verdict.after if verdict.applied else None
    reason = verdict.reason if waiting is None else f"{verdict.reason}; no further try, since {waiting} waits"
    turn.record_outcome(rule, state, Outcome.FAILED, reason, after=after, rollback=rollback, kept=kept)
    if rollback:
        turn.forget()
        turn.group.disturb_below(turn.level, f"undoing {action_of(state)}")
    if waiting is not None:
        return _cooling(turn, state)
    return RuleState(
        phase=Phase.FIRING,
        holds=state.holds,
        failed=(*state.failed, state.tried) if last and state.tried else state.failed,
        tried=state.tried,
        tries=0 if last else state.tries,
        origin=None if last else state.origin,
        spent=state.spent,
        pauses=state.pauses,
    )


def _is_kept(rule: RulePlan, state: RuleState, verdict: Verdict) -> bool:
    """Whether what failed tries have done is left as it is."""
    if rule.undo != "unless_better":
        return rule.undo == "never"
    return is_better(rule.when, state.origin, verdict.after, rule.loss_increase)
