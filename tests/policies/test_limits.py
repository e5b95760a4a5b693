"""What bounds a rule: budgets, growing cooldowns, silence, unknown values, and what follows when it is exhausted."""

from __future__ import annotations

import math

import pytest

from collapse_guard.policies import Cooldown, Duration, Health, Phase, Skip
from tests.policies.series import Run, policy, reading, rule, series
from tests.policies.test_resume import resumed

RESET = "reset_codes"
WITHIN = {"within": "10 steps"}


def flapping(count: int) -> list[float]:
    """Collapsed, then well again, so many times: every intervention recovers."""
    return [1.0, 100.0] * count


def test_a_rule_has_a_budget_of_its_own_on_each_codebook() -> None:
    run = Run(policy(rule(ladder=[RESET], budget=2)))
    run.feed(series(flapping(3), codebook="a")).feed(series(flapping(1), codebook="b", start=100))
    assert [line for line in run.told if "outcome" not in line][2:] == [
        "30 collapsed alert",
        "30 collapsed act #2 reset_codes",
        "50 collapsed alert",
        "50 collapsed skip budget_spent",
        "60 collapsed cleared",
        "100 collapsed alert",
        "100 collapsed act #3 reset_codes",
    ]
    spent = next(each for each in run.decisions if each.skip is Skip.BUDGET_SPENT)
    assert (spent.reason, spent.then) == ("budget of 2 interventions by collapsed on a is spent", "alert")


def test_a_rung_that_has_spent_its_budget_is_passed_over() -> None:
    run = Run(policy(rule(ladder=[{RESET: {}, "budget": 1}, "alert"]))).feed(series(flapping(2)))
    assert [line for line in run.told if " act " in line] == [
        "10 collapsed act #1 reset_codes",
        "30 collapsed act #2 alert",
    ]


def test_when_every_rung_has_spent_its_budget_the_rule_is_exhausted() -> None:
    run = Run(policy(rule(ladder=[{RESET: {}, "budget": 1}]))).feed(series([*flapping(1), 1.0]))
    assert run.told[-1] == "30 collapsed exhausted"
    assert run.decisions[-1].reason.startswith("every rung has failed or spent its budget: reset_codes(")


def test_the_last_try_that_the_budget_allows_undoes_all_of_them() -> None:
    ladder = [{"decay_commitment": {}, "repeat": 3, "budget": 2}, RESET]
    run = Run(policy(rule(ladder=ladder, verify=WITHIN))).feed(series([1.0] * 4))
    assert run.told[2:5] == [
        "20 collapsed outcome #1 decay_commitment failed",
        "20 collapsed act #2 decay_commitment",
        "30 collapsed outcome #2 decay_commitment failed, rolled back",
    ]


def test_a_refill_makes_every_budget_whole() -> None:
    used = policy(rule(ladder=[{RESET: {}, "budget": 1}], budget=1), budget={"refill_after": "30 steps"})
    run = Run(used).feed(series([*flapping(1), *[100.0] * 5, 1.0]))
    assert run.told[-1] == "80 collapsed act #2 reset_codes"


def test_cooldowns_grow() -> None:
    growing = policy(rule(ladder=[RESET], cooldown={"for": "20 steps", "growth": 2}))
    run = Run(growing).feed(series([1.0, 100.0, *[1.0] * 2, 100.0, *[1.0] * 4, 100.0, *[1.0] * 9]))
    assert [line for line in run.told if " act " in line] == [
        "10 collapsed act #1 reset_codes",
        "40 collapsed act #2 reset_codes",
        "90 collapsed act #3 reset_codes",
        "180 collapsed act #4 reset_codes",
    ]


def test_cooldowns_are_short_again_after_a_refill() -> None:
    budget = {"interventions": 9, "refill_after": "50 steps"}
    growing = policy(rule(ladder=[RESET], cooldown={"for": "20 steps", "growth": 100}), budget=budget)
    run = Run(growing).feed(series([*flapping(1), *[100.0] * 6, *flapping(1), 1.0, 1.0, 1.0]))
    assert run.told[-1].endswith("act #3 reset_codes")


def test_a_cooldown_is_never_so_long_that_it_cannot_be_counted() -> None:
    growing = policy(rule(ladder=[RESET], cooldown={"for": "1 reading", "growth": 1e300}))
    run = Run(growing).feed(series([*flapping(4), 1.0]))
    assert run.told[-1] == "90 collapsed skip cooling_down"


def test_a_cooldown_without_growth_is_written_short() -> None:
    short, long = policy(rule(cooldown="9 steps")), policy(rule(cooldown={"for": "9 steps", "growth": 1}))
    assert short.fingerprint() == long.fingerprint()
    assert short.rules[0].cooldown == Cooldown.model_validate("9 steps")
    assert short.model_dump(mode="json")["rules"][0]["cooldown"] == "9 steps"
    assert short.rules[0].cooldown.for_ == Duration(9, "steps")


def test_a_silent_rule_counts_from_the_beginning_when_its_time_has_come() -> None:
    run = Run(policy(rule(silence_until="30 steps", hold=2, ladder=[RESET]))).feed(series([1.0] * 4))
    assert run.told == [
        "10 collapsed skip silenced",
        "30 collapsed pending",
        "40 collapsed alert",
        "40 collapsed act #1 reset_codes",
    ]
    assert run.decisions[0].reason == "silent until step 30"


def test_a_rule_silenced_in_its_middle_finishes_what_is_open() -> None:
    ladder = [RESET, "alert"]
    engine = Run(policy(rule(ladder=ladder, verify=WITHIN))).feed(series([1.0])).engine
    run = resumed(engine, policy(rule(ladder=ladder, verify=WITHIN, silence_until="90 steps")))
    run.feed(series([1.0] * 3, start=20))
    assert run.told == ["20 collapsed outcome #1 reset_codes failed, rolled back", "20 collapsed skip silenced"]
    firing = Run(policy(rule())).feed(series([1.0])).engine
    quiet = resumed(firing, policy(rule(silence_until="90 steps"))).feed(series([1.0], start=20))
    assert quiet.engine.phase("vq", "collapsed") is Phase.ARMED


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("keep", ["2 loud alert", "6 loud cleared"]),
        ("fire", ["0 loud alert", "6 loud cleared"]),
        ("clear", ["2 loud alert", "3 loud cleared", "4 loud alert", "5 loud cleared"]),
    ],
)
@pytest.mark.parametrize(("key", "unknown"), [("missing", None), ("nan", math.nan)])
def test_what_is_unknown_keeps_fires_or_clears(key: str, unknown: float | None, choice: str, told: list[str]) -> None:
    losses = [unknown, unknown, 9.0, unknown, 9.0, unknown, 1.0]
    run = Run(policy({**rule("loud", "loss > 5"), key: choice}))
    assert run.feed(reading(step, loss=loss) for step, loss in enumerate(losses)).told == told


def test_what_is_unknown_is_told_as_such() -> None:
    run = Run(policy(rule("loud", "loss > 5", nan="fire"), rule("gone", "decay < 0.5", missing="fire")))
    run.feed([reading(1, loss=math.nan)])
    assert [each.reason for each in run.decisions] == [
        "loss nan counts as > 5 for 1 reading",
        "decay unknown counts as < 0.5 for 1 reading",
    ]


def test_a_trend_too_short_fires_nothing() -> None:
    run = Run(policy(rule(when="trend(loss over 3 readings) > 0", missing="fire"))).feed(series([1.0] * 2, loss=1.0))
    assert run.decisions == []


@pytest.mark.parametrize("then", ["alert", "save_checkpoint", "stop_training", "observe"])
def test_what_is_asked_for_at_the_end_of_the_ladder(then: str) -> None:
    run = Run(policy(rule(ladder=[RESET], on_exhausted=then)), applies=lambda _: False).feed(series([1.0]))
    assert run.told[-1] == "10 collapsed exhausted"
    assert run.decisions[-1].then == then
    spent = Run(policy(rule(ladder=[RESET, "alert"], verify=WITHIN, on_exhausted=then), budget={"interventions": 1}))
    assert spent.feed(series([1.0] * 2)).decisions[-1].then == then


def test_after_observe_nothing_more_is_done_to_the_codebook() -> None:
    loud = rule("loud", "loss > 5", ladder=["alert"])
    run = Run(policy(rule(ladder=[RESET], on_exhausted="observe"), loud), applies=lambda act: act.action != RESET)
    run.feed([reading(10, 1.0), reading(20, loss=9.0)])
    run = resumed(run.engine).feed([reading(30, loss=1.0), reading(40, loss=9.0), reading(40, 1.0, "b", loss=1.0)])
    assert run.told[:3] == ["30 loud cleared", "40 loud alert", "40 loud skip observing"]
    assert run.decisions[2].reason == "nothing more is done here since collapsed was exhausted: would alert()"
    assert run.told[3:5] == ["40 collapsed alert", "40 collapsed act #2 reset_codes"]
    assert run.engine.health("vq") is Health.DEGRADED


def test_what_is_missing_is_no_reason_for_an_end_that_it_counts_against() -> None:
    over = {"when": {"any": ["perplexity >= 10", "decay > 0.5"]}}
    run = Run(policy(rule(clear=over, missing="fire"))).feed(series([1.0, 80.0]))
    assert [each.reason for each in run.decisions][1:] == ["perplexity 80.00 >= 10 for 1 reading"]
