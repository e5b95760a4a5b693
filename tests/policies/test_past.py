"""`rel` and `trend`: what a codebook was, against what it is."""

from __future__ import annotations

import json
import math
import statistics
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import Comparison, Condition, PolicyEngine
from tests.policies.series import Run, policy, reading, rule, series
from tests.policies.test_resume import resumed

DERIVED: Any = import_module("collapse_guard.policies.past").Derived

DWINDLING = rule("dwindling", "trend(perplexity over 3 readings) < -0.1", clear={"when": "perplexity > 90"})
FALLEN = rule("fallen", "rel(perplexity) < 0.3")


def test_relative_to_its_own_best() -> None:
    run = Run(policy(FALLEN)).feed(series([40.0, 20.0, 100.0, 100.0, 31.0, 29.0, 31.0]))
    assert run.told == ["60 fallen alert", "70 fallen cleared"]
    assert [each.reason for each in run.decisions] == [
        "rel(perplexity) 0.29 < 0.3 for 1 reading",
        "rel(perplexity) 0.31 >= 0.3 for 1 reading",
    ]


def test_what_one_reading_alone_shows_is_no_best() -> None:
    """Codes that were fitted to the very latents of the first window serve no later one as well."""
    run = Run(policy(FALLEN)).feed(series([100.0, 20.0, 25.0, 100.0, 21.0]))
    assert run.decisions == []
    assert run.engine.state_dict()["codebooks"]["vq"]["past"]["best"] == {"perplexity": 25.0}


def test_what_an_older_version_calls_best_has_yet_to_be_held() -> None:
    engine = Run(policy(FALLEN)).feed(series([100.0, 100.0])).engine
    state = engine.state_dict()
    del state["codebooks"]["vq"]["past"]["last"]
    older = PolicyEngine(policy(FALLEN))
    older.load_state_dict(state)
    assert [each.rule for each in older.observe(reading(30, 20.0))] == []
    assert older.state_dict()["codebooks"]["vq"]["past"]["best"] == {"perplexity": 20.0}


def test_no_best_is_held_across_an_intervention() -> None:
    low = rule("low", "perplexity < 5", ladder=["reset_codes"], verify={"within": "20 steps"})
    run = Run(policy(low, FALLEN)).feed(series([4.0, 90.0]))
    assert run.told[-1] == "20 low outcome #1 reset_codes recovered"
    assert run.engine.state_dict()["codebooks"]["vq"]["past"]["best"] == {}


def test_of_a_loss_the_lowest_is_the_best() -> None:
    run = Run(policy(rule("worse", "rel(loss) > 1.5")))
    run.feed(reading(step, loss=loss) for step, loss in enumerate([3.0, 2.0, 2.0, 2.9, None, math.nan, math.inf, 3.1]))
    assert run.told == ["6 worse alert"]
    past = run.engine.state_dict()["codebooks"]["vq"]["past"]
    assert past == {"best": {"loss": 2.0}, "last": {"loss": 3.1}, "recent": {}}


def test_nothing_is_relative_to_a_best_that_is_not_above_zero() -> None:
    run = Run(policy(rule("worse", "rel(loss) > 1"))).feed(
        reading(step, loss=loss) for step, loss in enumerate([-1, -1, 5])
    )
    assert run.decisions == []


def test_a_codebook_has_a_best_of_its_own() -> None:
    run = Run(policy(FALLEN)).feed(
        [reading(step, 100.0, "a") for step in (10, 20)] + [reading(step, 20.0, "b") for step in (10, 20)]
    )
    assert run.decisions == []


def test_a_trend_is_known_once_there_are_readings_enough() -> None:
    run = Run(policy(DWINDLING)).feed(series([100.0, 60.0, 50.0, 95.0]))
    assert run.told == ["30 dwindling alert", "40 dwindling cleared"]
    assert run.decisions[0].reason == "trend(perplexity, over: 3 readings) -0.36 < -0.1 for 1 reading"


def test_a_reading_without_verdict_leaves_no_trace() -> None:
    run = Run(policy(DWINDLING, FALLEN, warmup="15 steps"))
    run.feed(
        [reading(10, 300.0), reading(20, 50.0), reading(30, 900.0, tokens=3), reading(40, 51.0), reading(50, 50.0)]
    )
    assert {each.rule for each in run.decisions} == {""}


def test_a_trend_begins_anew_with_an_intervention_and_with_its_rollback() -> None:
    changing = rule("rising", "trend(perplexity over 2 readings) > 1.9", ladder=["alert"])
    low = rule("low", "perplexity < 5", ladder=["reset_codes"], verify={"within": "20 steps"})
    run = Run(policy(low, changing)).feed(series([4.0, 400.0, 4.0]))
    assert run.told[:3] == ["10 low alert", "10 low act #1 reset_codes", "20 low outcome #1 reset_codes recovered"]
    assert "rising" not in "".join(run.told)
    failing = Run(policy(low, changing)).feed(series([4.0, 4.0, 4.0, 9999.0]))
    assert failing.told[-2:] == ["30 low exhausted", "40 low cleared"]


def test_what_a_rollback_forgets_is_still_seen_by_the_rung_that_follows_it() -> None:
    """A second try that is refused undoes the first, which empties the past; the next rung says why it is asked for."""
    ladder = [{"decay_commitment": {}, "repeat": 2}, "reset_codes"]
    sinking = rule("sinking", "trend(perplexity over 2 readings) < -0.1", ladder=ladder, verify={"within": "20 steps"})
    run = Run(policy(sinking), lambda act: act.attempt != 2).feed(series([100.0, 50.0, 25.0, 12.5]))
    assert run.told[-3:] == [
        "40 sinking act #2 decay_commitment",
        "40 sinking outcome #2 decay_commitment failed, rolled back",
        "40 sinking act #3 reset_codes",
    ]
    assert run.decisions[-1].reason.endswith("at trend(perplexity, over: 2 readings) -0.67")


def test_the_past_is_saved() -> None:
    before = Run(policy(DWINDLING, FALLEN)).feed(series([100.0, 60.0]))
    after = resumed(before.engine).feed(series([15.0], start=30))
    assert after.told == ["30 dwindling alert", "30 fallen alert"]
    assert json.loads(json.dumps(after.engine.state_dict())) == after.engine.state_dict()


def test_a_past_with_one_more_reading_in_it_is_another() -> None:
    """So that a state that was kept stays what it was."""
    engine, kept = Run(policy(DWINDLING, FALLEN)).feed(series([100.0, 60.0])).engine, []
    for step, perplexity in [(30, 200.0), (40, 50.0), (50, 400.0)]:
        state = engine._state
        kept.append((state, state.to_dict()))
        engine.observe(reading(step, perplexity))
    assert len({json.dumps(written) for _, written in kept}) == 3
    assert [state.to_dict() for state, _ in kept] == [written for _, written in kept]


def test_the_past_is_no_longer_than_asked_for() -> None:
    engine = (
        Run(policy(DWINDLING, rule("slow", "trend(perplexity over 7 readings) < -1"))).feed(series([9.0] * 99)).engine
    )
    assert engine.state_dict()["codebooks"]["vq"]["past"] == {
        "best": {},
        "last": {},
        "recent": {"perplexity": [9.0] * 7},
    }


def test_success_may_look_at_the_past_too() -> None:
    verify = {"success": "rel(perplexity) > 0.9", "within": "50 steps"}
    run = Run(policy(rule(ladder=["reset_codes"], verify=verify))).feed(series([100.0, 100.0, 1.0, 80.0, 95.0]))
    assert run.told[-1] == "50 collapsed outcome #1 reset_codes recovered"
    assert run.decisions[-1].reason == "rel(perplexity) 0.95 > 0.9 for 1 reading after reset_codes"


values = st.lists(st.floats(0.5, 100), min_size=2, max_size=12)


@given(values, st.integers(2, 6))
def test_a_trend_is_the_least_squares_slope_over_the_mean(numbers: list[float], over: int) -> None:
    engine = PolicyEngine(policy(rule(when=f"trend(perplexity over {over} readings) > 1000")))
    for each in series(numbers):
        engine.observe(each)
    past = engine._state.codebooks["vq"].past
    found = past.trend("perplexity", over)
    if len(numbers) < over:
        assert found is None
    else:
        last = np.array(numbers[-over:])
        expected = np.polyfit(np.arange(over), last, 1)[0] / statistics.fmean(last)
        assert found == pytest.approx(expected, abs=1e-9)


@given(values)
def test_relative_values_are_shares_of_the_best_that_two_readings_in_a_row_came_up_to(numbers: list[float]) -> None:
    engine = PolicyEngine(policy(FALLEN))
    for index, each in enumerate(series(numbers)):
        engine.observe(each)
        past = engine._state.codebooks["vq"].past
        found = DERIVED(engine._plan.derived, past, each)["rel(perplexity)"]
        held = [min(pair) for pair in pairwise(numbers[: index + 1])]
        assert found == (min(each.perplexity / max(held), 1) if held else None)


@pytest.mark.parametrize(
    "written",
    ["trend(loss, over: 5 readings) > 0.1", "trend( loss over 5 readings )>.1", "trend(loss,over 5 reading)>1e-1"],
)
def test_a_trend_may_be_spelt_with_or_without_colon(written: str) -> None:
    assert Comparison.parse(written) == Comparison("loss", ">", 0.1, "trend", 5)
    assert Condition.parse(written).plain() == "trend(loss, over: 5 readings) > 0.1"


def test_what_is_not_known_yet_is_said_to_be_unknown() -> None:
    condition = Condition.parse(["rel(loss) > 1", "trend(loss over 5 readings) > 1"])
    assert condition.measure(reading(1)) == "rel(loss) unknown, trend(loss, over: 5 readings) unknown"
    assert condition.negated().compile()(reading(1, loss=3.0)) is None


@pytest.mark.parametrize("written", ["rel(loss) > 1", "trend(loss over 5 readings) > 1"])
def test_a_rule_says_what_a_field_without_value_does_to_its_past(written: str) -> None:
    condition = Condition.parse(written)
    for missing, nan in [(True, False), (False, True), (None, True)]:
        test = condition.compile(missing, nan)
        assert (test(reading(1)), test(reading(1, loss=math.nan))) == (missing, nan)
