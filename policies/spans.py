"""How much of a span is left."""

from __future__ import annotations

from .duration import Duration
from .states import RuleState
from .turn import Turn

__all__ = ["left_of"]


def left_of(span: Duration, turn: Turn, state: RuleState) -> int:
    """Return how much of a span is left since the intervention, or the cooling, began; 0 or less when it is over."""
    if span.unit == "steps":
        return span.count - (turn.step - state.since_step)
    if span.unit == "readings":
        return span.count - state.readings
    if turn.reading.epoch is None or state.since_epoch is None:
        return span.count
    return span.count - (turn.reading.epoch - state.since_epoch)
