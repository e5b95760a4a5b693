"""Whether a failed intervention left a codebook better than it found it: then undoing it would do harm.

Nothing here says that a repair held. A codebook that went from 3 codes in use to 60 of 64 may still miss what its rule
asks for, and to put the 3 codes back is no remedy.
"""

from __future__ import annotations

import math

from .condition import Comparison, Condition
from .reading import Reading

__all__ = ["is_better"]


def is_better(when: Condition, before: Reading | None, after: Reading | None, loss_increase: float | None) -> bool:
    """Whether a codebook came nearer to what a rule wants, at no cost.

    Every field that the rule compares moved away from firing, or stayed; at least one moved; neither the relative error
    nor, beyond the bound of the guard, the loss has grown. What is missing or not finite is no improvement. `rel` and
    `trend` are not compared: they depend on more than two readings.

    Args:
        when: of the rule.
        before: the last reading before the first try.
        after: the reading that decided.
        loss_increase: bound of the rule's guard, as a share of the loss before; `None` for none.
    """
    if before is None or after is None:
        return False
    gains = [_gain(each, before, after) for each in when.comparisons() if each.function == "value"]
    if not gains or min(gains) < 0 or max(gains) <= 0:
        return False
    return _not_grown(before.relative_error, after.relative_error) and (
        loss_increase is None or _not_grown(before.loss, after.loss, loss_increase)
    )


def _gain(comparison: Comparison, before: Reading, after: Reading) -> float:
    """Return how far a field moved away from firing, below zero if towards it; minus infinity where that is unknown."""
    first, last = getattr(before, comparison.field), getattr(after, comparison.field)
    if first is None or last is None or not math.isfinite(last) or math.isnan(first):
        return -math.inf
    return float(last - first if comparison.sign in ("<", "<=") else first - last)


def _not_grown(before: float | None, after: float | None, share: float = 0.0) -> bool:
    """Whether a number that may be unknown on both sides is at most so much larger than before."""
    if before is None and after is None:
        return True
    if before is None or after is None or math.isnan(after):
        return False
    return after <= before + share * abs(before) or not math.isfinite(before)
