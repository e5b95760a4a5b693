"""Rules that keep quiet: silenced, inhibited, or waiting for something else to be over.

Each function records why, once a streak, and returns the state in which the rule waits.
"""

from __future__ import annotations

from .decisions import Skip
from .plan import RulePlan
from .states import Phase, RuleState, changed
from .turn import Turn

__all__ = ["hush", "silence", "wait_for", "yield_to"]


def silence(turn: Turn, rule: RulePlan, state: RuleState) -> RuleState:
    """Return an armed state that counts from the beginning once the rule may speak."""
    return turn.skip(rule, _afresh(state), Skip.SILENCED, f"silent until step {rule.silence_until}")


def hush(turn: Turn, rule: RulePlan, state: RuleState, inhibitor: str) -> RuleState:
    """Return an armed state that counts from the beginning once the inhibiting rule is done."""
    return turn.skip(rule, _afresh(state), Skip.INHIBITED, f"inhibited by {inhibitor}")


def wait_for(turn: Turn, rule: RulePlan, state: RuleState, inhibitor: str) -> RuleState:
    """Return the state as it is while a pending rule may yet fire; what was counted stays if it does not."""
    return turn.skip(rule, state, Skip.INHIBITED, f"inhibited by {inhibitor}, which is pending")


def yield_to(turn: Turn, rule: RulePlan, state: RuleState, coarser: str) -> RuleState:
    """Return an armed state that counts from the beginning once the coarser level has changed what this one codes."""
    reason = f"{coarser}, a coarser level of the same residual, is being verified"
    return turn.skip(rule, _afresh(state), Skip.COARSER_LEVEL, reason)


def _afresh(state: RuleState) -> RuleState:
    if state.phase is Phase.ARMED and not state.held:
        return state
    return changed(state, phase=Phase.ARMED, held=0, cleared=0)
