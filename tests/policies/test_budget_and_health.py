"""What is common to a run: its budget; and what the guard asks the engine: health, suspicion, phases."""

from __future__ import annotations

import math

import pytest

from collapse_guard.policies import (
    Health,
    Phase,
    PolicyEngine,
)
from tests.policies.series import Run, policy, reading, rule, series

RESET = "reset_codes"
DECAY = {"decay_commitment": {"factor": 0.5}}


def test_a_spent_budget_exhausts_the_rule() -> None:
    run = Run(policy(rule(ladder=[RESET, DECAY], verify={"within": "10 steps"}), budget={"interventions": 1}))
    run.feed(series([1.0, 1.0, 1.0, 100.0, 1.0]))
    assert run.told == [
        "10 collapsed alert",
        "10 collapsed act #1 reset_codes",
        "20 collapsed outcome #1 reset_codes failed, rolled back",
        "20 collapsed skip budget_spent",
        "40 collapsed cleared",
        "50 collapsed alert",
        "50 collapsed skip budget_spent",
    ]
    assert run.decisions[3].reason == "budget of 1 interventions is spent"


def test_a_try_after_which_the_runs_budget_allows_none_is_undone_as_the_last_one() -> None:
    ladder = [{**DECAY, "repeat": 3}, RESET]
    run = Run(policy(rule(ladder=ladder, verify={"within": "10 steps"}), budget={"interventions": 1}))
    assert run.feed(series([1.0, 1.0, 1.0])).told == [
        "10 collapsed alert",
        "10 collapsed act #1 decay_commitment",
        "20 collapsed outcome #1 decay_commitment failed, rolled back",
        "20 collapsed skip budget_spent",
    ]


def test_the_budget_is_refilled_once_every_codebook_has_been_healthy_for_long_enough() -> None:
    run = Run(policy(rule(ladder=[RESET]), budget={"interventions": 1, "refill_after": "30 steps"}))
    for step, (a, b) in enumerate([(1, 100), (100, 100), (100, 1), (100, 1), (1, 100), (100, 100)], start=1):
        run.feed([reading(10 * step, a, "a"), reading(10 * step, b, "b")])
    run.feed([reading(80, 100, "a"), reading(90, 100, "b"), reading(100, 1, "a"), reading(110, 1, "b")])
    told = zip(run.decisions, run.told, strict=True)
    assert [(decision.codebook, line) for decision, line in told if "alert" not in line] == [
        ("a", "10 collapsed act #1 reset_codes"),
        ("a", "20 collapsed outcome #1 reset_codes recovered"),
        ("b", "30 collapsed skip budget_spent"),
        ("a", "50 collapsed skip budget_spent"),
        ("b", "50 collapsed cleared"),
        ("a", "60 collapsed cleared"),
        ("a", "100 collapsed act #2 reset_codes"),
        ("b", "110 collapsed skip budget_spent"),
    ]


def test_an_exhausted_codebook_keeps_the_budget_from_being_refilled() -> None:
    budget = {"interventions": 2, "refill_after": "30 steps"}
    run = Run(policy(rule(ladder=[RESET], verify={"within": "10 steps"}), budget=budget))
    for step in range(10, 100, 10):
        run.feed([reading(step, 1.0 if step < 80 else 100.0, "hopeless"), reading(step, 1.0 if step == 10 else 100.0)])
    assert run.engine.state_dict()["spent"] == 2
    run.feed([reading(100), reading(110), reading(120, 1.0)])
    assert run.told[-1] == "120 collapsed act #3 reset_codes"


def test_the_wait_for_a_refill_begins_again_with_every_trouble() -> None:
    loud = rule("loud", "loss > 5")
    run = Run(policy(rule(ladder=[RESET]), loud, budget={"interventions": 1, "refill_after": "30 steps"}))
    run.feed(
        [reading(10, 1.0), reading(20), reading(30), reading(40, loss=9.0), *series([100.0] * 3, start=50, loss=1.0)]
    )
    assert run.engine.state_dict()["spent"] == 1
    assert run.feed([reading(80)]).engine.state_dict()["spent"] == 0


def test_the_wait_for_a_refill_does_not_begin_while_another_codebook_is_in_trouble() -> None:
    loud = rule("loud", "loss > 5")
    run = Run(policy(rule(ladder=[RESET]), loud, budget={"interventions": 1, "refill_after": "30 steps"}))
    run.feed([reading(10, loss=9.0, codebook="loud"), reading(10, 1.0), *series([100.0] * 9, start=20)])
    assert run.engine.state_dict()["spent"] == 1
    run.feed([reading(110, loss=1.0, codebook="loud"), *series([100.0] * 2, start=120)])
    assert run.engine.state_dict()["spent"] == 1
    assert run.feed([reading(140)]).engine.state_dict()["spent"] == 0


def test_a_codebook_that_is_sick_while_its_rule_cools_down_keeps_the_budget_spent() -> None:
    """Its last reading is healthy only where an intervention has just recovered, for one reading."""
    sick = rule(ladder=[RESET], severity="critical", cooldown={"for": "50 steps", "growth": 4})
    run = Run(policy(sick, budget={"interventions": 3, "refill_after": "60 steps"}))
    for step in range(10, 2000, 10):
        acted = [int(line.split()[0]) for line in run.told if " act " in line]
        run.feed([reading(step, 100.0 if acted and step == acted[-1] + 10 else 1.0)])
    assert [line for line in run.told if " act " in line or "spent" in line] == [
        "10 collapsed act #1 reset_codes",
        "70 collapsed act #2 reset_codes",
        "280 collapsed act #3 reset_codes",
        "1090 collapsed skip budget_spent",
    ]


def test_a_rule_that_only_informs_does_not_keep_the_budget_from_being_refilled() -> None:
    note = rule("note", "loss > 5", severity="info")
    run = Run(policy(rule(ladder=[RESET]), note, budget={"interventions": 1, "refill_after": "30 steps"}))
    run.feed(series([1.0, *[100.0] * 4], loss=9.0))
    assert run.engine.health("vq") is Health.HEALTHY
    assert run.engine.state_dict()["spent"] == 0


def test_a_budget_without_refill_stays_spent() -> None:
    run = Run(policy(rule(ladder=[RESET]), budget={"interventions": 1, "refill_after": None}))
    run.feed(series([1.0, *[100.0] * 900, 1.0]))
    assert run.told[-1] == "9020 collapsed skip budget_spent"


def test_health_follows_the_severity_of_the_rules_concerned() -> None:
    rules = [
        rule("critical", "perplexity < 1.5", severity="critical"),
        rule("warning", "perplexity < 5", severity="warning"),
        rule("info", "perplexity < 50", severity="info"),
    ]
    engine = PolicyEngine(policy(*rules))
    assert engine.health("vq") is Health.UNKNOWN
    healths = []
    for each in series([100.0, 20.0, 4.0, 1.0, math.nan, 4.0, 100.0]):
        engine.observe(each)
        healths.append(engine.health("vq"))
    assert healths == [
        Health.HEALTHY,
        Health.HEALTHY,
        Health.DEGRADED,
        Health.COLLAPSED,
        Health.COLLAPSED,
        Health.DEGRADED,
        Health.HEALTHY,
    ]


def test_suspicion_begins_with_the_run_and_ends_with_a_healthy_reading() -> None:
    engine = PolicyEngine(policy(rule(hold=2)))
    suspicions = [engine.is_suspect]
    for each in [reading(10, tokens=0), *series([100.0, 1.0, 100.0, 1.0, 1.0, 100.0, 100.0], start=20)]:
        engine.observe(each)
        suspicions.append(engine.is_suspect)
    assert suspicions == [True, True, False, True, False, True, True, True, False]


def test_the_phase_of_an_unknown_rule_is_an_error_that_lists_the_known_ones() -> None:
    engine = PolicyEngine(policy(rule(), rule("loud", "loss > 5")))
    assert engine.phase("never seen", "loud") is Phase.ARMED
    with pytest.raises(LookupError, match=r"a rule of this policy \(collapsed, loud\), got 'colapsed'"):
        engine.phase("vq", "colapsed")
