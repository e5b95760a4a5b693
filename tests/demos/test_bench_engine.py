"""The engine's bench, as far as it can be tested without a clock: what it times happens, and nothing piles up."""

from __future__ import annotations

import itertools
import json
import sys
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


@pytest.mark.parametrize(
    ("source", "period", "most"),
    [("default", 500, 46), ("default", 6, 76), (DERIVED_POLICY, 500, 66), (DERIVED_POLICY, 6, 108)],
    ids=["default", "default, in trouble", "derived", "derived, in trouble"],
)
def test_a_reading_takes_few_calls(source: str | dict[str, object], period: int, most: int) -> None:
    """Calls of Python functions, into which the time goes; unlike it, they are the same on a busy machine."""
    engine, readings = PolicyEngine(load_policy(source)), list(engine_readings(4000, period))
    events: Counter[str] = Counter()
    before = sys.getprofile()
    for number, each in enumerate(readings):
        if number == 2000:  # by now every codebook has been in trouble
            sys.setprofile(lambda _frame, event, _argument: events.update((event,)))
        for decision in engine.observe(each):
            if decision.kind is DecisionKind.ACT:
                engine.report(decision, applied=True)
    sys.setprofile(before)
    assert 20 < events["call"] / 2000 < most
