"""Asking for an action: the rung to try, the reasons against it, and room for it.

An ACT decision only asks; nothing here acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .causes import LEADING, Diagnosis
from .decisions import DecisionKind, Outcome, Skip
from .plan import RulePlan, RungPlan
from .quiet import hush, silence, yield_to
from .states import Phase, RuleState, Verdict, changed
from .turn import Turn
from .verdicts import end

__all__ = ["act", "quieted"]


def quieted(turn: Turn, rule: RulePlan, state: RuleState, *, fires: bool) -> RuleState | None:
    """Return the state of a rule that has to keep quiet now and to count anew, or `None` if it may speak.

    Args:
        fires: whether it would fire or act now, and not only count on.
    """
    if turn.step < rule.silence_until:
        return silence(turn, rule, state)
    inhibitor = turn.inhibitor(rule)
    if inhibitor is not None and turn.rules[inhibitor].phase is not Phase.PENDING:
        return hush(turn, rule, state, inhibitor)
    coarser = turn.group.coarser(turn, rule, state, fires=fires)
    return None if coarser is None else yield_to(turn, rule, state, coarser)


def act(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Ask for the first action that has not failed here, or record why there is none.

    The reasons against are weighed from the lasting to the passing: nothing left to try, a policy that only observes,
    a spent budget (the rule is exhausted, too), another open intervention.
    """
    if not rule.rungs:
        return state
    causes = turn.reading.causes
    state = turn.taught(rule, state)
    rung = rule.next_rung(state, causes)
    if rung is None:
        turn.record(DecisionKind.EXHAUSTED, rule, _nothing_left(rule, state, causes), then=rule.on_exhausted)
        return _exhausted(turn, rule, changed(state, skipped=None))
    facts: dict[str, Any] = {"action": rung.action, "params": rung.params, "rung": rung.index}
    if turn.plan.observes:
        return turn.skip(rule, state, Skip.OBSERVING, f"observe mode: would {rung.description}", **facts)
    if turn.resigned is not None:
        reason = f"nothing more is done here since {turn.resigned} was exhausted: would {rung.description}"
        return turn.skip(rule, state, Skip.OBSERVING, reason, **facts)
    if (spent_budget := _spent_budget(turn, rule, rung, state)) is not None:
        state = turn.skip(rule, state, Skip.BUDGET_SPENT, spent_budget, **facts, then=rule.on_exhausted)
        return _exhausted(turn, rule, state)
    if not _make_room(turn, rule, rung, state):
        return turn.skip(rule, state, Skip.OCCUPIED, "another intervention is being verified", **facts)
    return _ask(turn, rule, state, rung)


def _nothing_left(rule: RulePlan, state: RuleState, causes: Sequence[Diagnosis]) -> str:
    """Say why no rung can be tried: it has failed, has spent its budget, or is meant for another cause."""
    done = [each for each in rule.rungs if each.description in state.failed or each.is_spent(state)]
    waiting = [each for each in rule.rungs if each not in done]
    told = []
    if done:
        spent = " or spent its budget" if any(each.description not in state.failed for each in done) else ""
        which = "every rung has failed" if not waiting else "these rungs have failed"
        told.append(f"{which}{spent}: {', '.join(dict.fromkeys(each.description for each in done))}")
    if waiting:
        found = ", ".join(each.cause.value for each in causes if each.confidence >= LEADING) or "none"
        meant = ", ".join(f"{each.description} for {each.on}" for each in waiting)
        told.append(f"no rung is for the cause that was found ({found}): {meant}")
    return "; ".join(told)


def _spent_budget(turn: Turn, rule: RulePlan, rung: RungPlan, state: RuleState) -> str | None:
    """Return which budget allows no further intervention, if one does not; levels that act together are one."""
    if turn.has_spent_all and (rule.name, rung.description) not in turn.group.asked:
        return f"budget of {turn.plan.interventions} interventions is spent"
    if rule.is_spent(state):
        return f"budget of {rule.budget} interventions by {rule.name} on {turn.codebook} is spent"
    return None


def _exhausted(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Give up until the rule clears; on the whole codebook and for good if the rule says so."""
    if rule.on_exhausted == "observe":
        turn.resigned = rule.name
    return changed(state, phase=Phase.EXHAUSTED)


def _make_room(turn: Turn, rule: RulePlan, rung: RungPlan, state: RuleState) -> bool:
    """End what gives way to a rung: on the codebook, and on finer levels, whose ground it takes unless it is gradual.

    Returns:
        Whether there is room: nothing else is open on the codebook.
    """
    occupant = turn.occupant(besides=rule)
    if occupant is not None and not _gives_way(rule, *occupant):
        return False
    turn.put(rule, state)  # the other rule must see itself inhibited, or it would climb its own ladder
    if occupant is not None:
        _end_other(turn, rule, *occupant)
    if not rung.params.is_gradual:
        _end_finer(turn)
    return True


def _end_other(turn: Turn, rule: RulePlan, other: RulePlan, open_state: RuleState) -> None:
    """End the verification of a rule on the same codebook, which keeps still from then on if it is inhibited."""
    outcome = Outcome.FAILED if other.name in rule.inhibits else Outcome.INCONCLUSIVE
    verdict = Verdict(outcome=outcome, reason=f"{rule.name} fired meanwhile", after=turn.reading, again=False)
    ended = end(turn, other, open_state, open_state.verdict or verdict)
    if ended.phase is Phase.FIRING:
        inhibitor = turn.inhibitor(other)
        assert inhibitor is not None, "it is inhibited by the rule that made room"
        is_silent = turn.step < other.silence_until
        ended = silence(turn, other, ended) if is_silent else hush(turn, other, ended, inhibitor)
    turn.put(other, ended)


def _end_finer(turn: Turn) -> None:
    """End the verifications on finer levels of the residual."""
    for finer, other, open_state in list(turn.group.open_below(turn)):
        reason = f"{turn.codebook}, a coarser level of the same residual, was acted on meanwhile"
        verdict = Verdict(outcome=Outcome.INCONCLUSIVE, reason=reason)
        finer.put(other, end(finer, other, open_state, open_state.verdict or verdict))


def _gives_way(rule: RulePlan, other: RulePlan, state: RuleState) -> bool:
    """Whether another rule's open intervention ends where a rule wants to act.

    It does if `other` is inhibited by `rule`; or less severe and gradual, which may take a thousand steps.
    """
    if state.phase is not Phase.VERIFYING:
        return False
    return other.name in rule.inhibits or (rule.is_graver_than(other) and other.is_gradual(state))


def _ask(turn: Turn, rule: RulePlan, state: RuleState, rung: RungPlan) -> RuleState:
    """Issue the ACT decision, charge it to the budget, and open the intervention."""
    attempt = turn.group.number_of(rule, rung)
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
        attempt=attempt,
        before=turn.reading,
    )
    return changed(
        state,
        skipped=None,
        cleared=0,
        tried=rung.description,
        tries=tries,
        rung=rung.index,
        attempt=attempt,
        before=turn.reading,
        origin=turn.reading if tries == 1 else state.origin or turn.reading,
        since_step=turn.step,
        since_epoch=turn.reading.epoch,
        spent={**state.spent, rung.description: state.spent.get(rung.description, 0) + 1},
    )
