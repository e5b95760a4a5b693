"""Whether a failed intervention left a codebook better than it found it: then undoing it would do harm.

Nothing here says that a repair held. A codebook that went from 3 codes in use to 60 of 64 may still miss what its rule
asks for, and to put the 3 codes back is no remedy.
"""

from __future__ import annotations

import math

from .condition import Comparison, Condition
from .past import HIGHEST_IS_BEST, LOWEST_IS_BEST
from .reading import Reading

__all__ = ["is_better"]

_NO_EFFECTS = frozenset({"step", "epoch", "K", "D", "tokens", "rewrites", "frozen"})


def is_better(when: Condition, before: Reading | None, after: Reading | None, loss_increase: float | None) -> bool:
    """Whether a codebook came nearer to what a rule wants, at no cost.

    No field that the rule compares is deeper beyond its threshold than before, and at least one is less so, of those
    that the rule asks for by themselves: what `any:` asks for beside them says when they count, and an error that went
    from ten thousand times the spread to half of that is none. Neither the relative error nor, beyond the bound of the
    guard, the loss has grown. What is missing or not finite is no improvement. Only symptoms are compared: not `rel`
    and `trend`, which depend on more than two readings, nor what no codebook has a share in, such as the step, or what
    counts interventions, nor what bounds a field from its good side, as `perplexity >= 10` does where a rule is for
    codebooks in use.

    Args:
        when: of the rule.
        before: the last reading before the first try.
        after: the reading that decided.
        loss_increase: bound of the rule's guard, as a share of the loss before; `None` for none.
    """
    if before is None or after is None:
        return False
    gains = {each: _gain(each, before, after) for each in when.comparisons() if _is_symptom(each)}
    alone = [gain for each, gain in gains.items() if each in when.parts] or list(gains.values())
    if not alone or min(gains.values()) < 0 or max(alone) <= 0:
        return False
    return _not_grown(before.relative_error, after.relative_error) and (
        loss_increase is None or _not_grown(before.loss, after.loss, loss_increase)
    )


def _is_symptom(comparison: Comparison) -> bool:
    field, asks_for_more = comparison.field, comparison.sign in (">", ">=")
    if comparison.function != "value" or field in _NO_EFFECTS:
        return False
    if field in HIGHEST_IS_BEST:
        return not asks_for_more
    return field not in LOWEST_IS_BEST or comparison.sign not in ("<", "<=")


def _gain(comparison: Comparison, before: Reading, after: Reading) -> float:
    """Return how much less deep a field lies beyond its threshold, below zero if deeper.

    Minus infinity where that is unknown.
    """
    first, last = getattr(before, comparison.field), getattr(after, comparison.field)
    if first is None or last is None or not math.isfinite(last) or math.isnan(first):
        return -math.inf
    return _depth(comparison, first) - _depth(comparison, last)


def _depth(comparison: Comparison, value: float) -> float:
    """Return how far a value lies beyond the threshold from which a comparison holds, 0 where it does not."""
    beyond = value - comparison.threshold
    match comparison.sign:
        case "<" | "<=":
            return max(-beyond, 0.0)
        case ">" | ">=":
            return max(beyond, 0.0)
        case _:
            return float((beyond == 0) == (comparison.sign == "=="))


def _not_grown(before: float | None, after: float | None, share: float = 0.0) -> bool:
    """Whether a number that may be unknown on both sides is at most so much larger than before."""
    if before is None and after is None:
        return True
    if before is None or after is None or math.isnan(after):
        return False
    return after <= before + share * abs(before) or not math.isfinite(before)
