"""The engine's bench, as far as it can be tested without a clock: what it times happens, and nothing piles up."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from collapse_guard.demos import DERIVED_POLICY, engine_readings
from collapse_guard.policies import DecisionKind, Outcome, PolicyEngine, load_policy


@pytest.mark.parametrize("source", ["default", DERIVED_POLICY], ids=["default", "derived"])
@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_the_state_does_not_grow_with_the_run(source: str | dict[str, object], count: int) -> None:
    """Also not with interventions: one codebook or another collapses all the time, and budgets are refilled."""
    engine, coming = PolicyEngine(load_policy(source)), engine_readings(count)
    outcomes: Counter[Outcome | None] = Counter()
    sizes = []
    for among in (itertools.islice(coming, count // 4), coming):
        for each in among:
            for decision in engine.observe(each):
                outcomes[decision.outcome] += decision.kind is DecisionKind.OUTCOME
                if decision.kind is DecisionKind.ACT:
                    engine.report(decision, applied=True)
        sizes.append(len(json.dumps(engine.state_dict())))
    assert outcomes[Outcome.RECOVERED] >= count / 1000
    assert max(sizes) < 8 * 2000  # characters a codebook, however long the run
