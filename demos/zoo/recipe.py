"""What the run of a cell depends on, so that cells that would train the very same run are trained once.

SimVQ in the quantizer's place is one and the same run in every scenario whose cause lay in the quantizer, and a twin
that needs no replacement of dead codes is its own `sound`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from .arms import Arm
from .scenario import Scenario

__all__ = ["recipe_of"]


def recipe_of(scenario: Scenario, arm: Arm, seed: int, steps: int) -> Hashable | None:
    """Return what decides a run: two cells of one recipe end alike, bit for bit. `None` where a guard decides, too."""
    if arm.policy is not None or arm.answers is not None:
        return None
    has_cause = arm.has_cause
    disturb = scenario.disturb if has_cause else None
    quantizer = (arm.family or scenario.family, scenario.K, scenario.D, _fixed(arm.options_of(scenario)))
    model = (scenario.tokens, _fixed(scenario.model_of(has_cause=has_cause)))
    data = (scenario.data, scenario.draw, scenario.batch, scenario.is_padded, scenario.is_padded and has_cause)
    training = (scenario.lr, scenario.is_pretrained, scenario.has_adversary, scenario.routine, seed, steps)
    return (quantizer, model, data, training, arm.start_of(scenario), disturb, disturb and scenario.onset)


def _fixed(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in options.items()))
