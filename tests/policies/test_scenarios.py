"""Whole records: readings in, every decision out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from collapse_guard.policies import (
    Decision,
    DecisionKind,
    Duration,
    FallbackTokenizer,
    Health,
    Outcome,
    Phase,
    PolicyEngine,
    ResetCodes,
    Skip,
    load_policy,
)
from tests.policies.series import Run, policy, reading, rule, series

RESET = "reset_codes"
DECAY = {"decay_commitment": {"factor": 0.5}}


def test_the_reference_story() -> None:
    """A reset that cannot hold is undone, and the quantizer loses its update instead."""
    run = Run(load_policy("default"))
    run.feed(series([1.0] * 7)).feed(series([80.0] * 12, start=80))
    assert run.told == [
        "10 collapsed pending",
        "10 collapsing pending",
        "20 collapsed alert",
        "20 collapsed act #1 reset_codes",
        "20 collapsing skip inhibited",
        "30 - skip settling",
        "70 collapsed outcome #1 reset_codes failed, rolled back",
        "70 collapsed act #2 fallback_tokenizer",
        "80 - skip settling",
        "110 collapsed outcome #2 fallback_tokenizer recovered",
    ]
    assert run.engine.health("vq") is Health.HEALTHY
    assert not run.engine.is_suspect


def test_records_of_the_reference_story_are_complete() -> None:
    run = Run(load_policy("default")).feed(series([1.0] * 7))
    of_kind = {decision.kind: decision for decision in run.decisions if decision.rule == "collapsed"}
    fired, ended = reading(20, 1.0), reading(70, 1.0)
    why = "perplexity 1.00 < 1.5 and perplexity_ratio 0.005 < 0.5"
    reset = ResetCodes(scope="all", source="kmeans")
    common: dict[str, Any] = {"codebook": "vq", "rule": "collapsed", "severity": "critical"}
    assert of_kind[DecisionKind.PENDING] == Decision(
        kind=DecisionKind.PENDING, step=10, reason=f"{why}: 1 of 2 readings", **common
    )
    assert of_kind[DecisionKind.ALERT] == Decision(
        kind=DecisionKind.ALERT, step=20, reason=f"{why} for 2 readings", before=fired, **common
    )
    assert of_kind[DecisionKind.OUTCOME] == Decision(
        kind=DecisionKind.OUTCOME,
        step=70,
        reason="perplexity 1.00, perplexity_ratio 0.005, relative_error 0.10 after 50 steps, "
        "wanted (perplexity >= 10 or perplexity_ratio >= 0.5) and relative_error < 1 for 3 readings",
        action=RESET,
        params=reset,
        rung=0,
        attempt=1,
        outcome=Outcome.FAILED,
        rollback=True,
        before=fired,
        after=ended,
        **common,
    )
    fallback = FallbackTokenizer(backend="faiss", refit_every=Duration(50, "steps"), refit_iterations=5)
    assert of_kind[DecisionKind.ACT] == Decision(
        kind=DecisionKind.ACT,
        step=70,
        reason=f"rung 2 of 2: {fallback.describe()} at perplexity 1.00, perplexity_ratio 0.005",
        action="fallback_tokenizer",
        params=fallback,
        rung=1,
        attempt=2,
        before=ended,
        **common,
    )


def test_a_codebook_in_use_that_explains_nothing_has_not_recovered() -> None:
    """Perplexity alone would call this reset a success; the codes are far from every latent."""
    run = Run(load_policy("default")).feed(series([1.0] * 2)).feed(series([40.0] * 5, start=30, relative_error=1e5))
    assert "70 collapsed outcome #1 reset_codes failed, rolled back" in run.told


def test_rule_fires_once_then_cools_down() -> None:
    run = Run(policy(rule(ladder=[RESET], cooldown="100 steps")))
    run.feed(series([1.0, 100.0, *[1.0] * 12]))
    assert run.told == [
        "10 collapsed alert",
        "10 collapsed act #1 reset_codes",
        "20 collapsed outcome #1 reset_codes recovered",
        "30 collapsed skip cooling_down",
        "120 collapsed alert",
        "120 collapsed act #2 reset_codes",
    ]
    assert run.decisions[3].reason == "cooling down: 90 of 100 steps left"


def test_a_streak_of_cooling_down_is_told_again_after_a_break() -> None:
    run = Run(policy(rule(ladder=[RESET], cooldown="100 steps", hold=2)))
    run.feed(series([1.0, 1.0, 100.0, 100.0, 1.0, 1.0, 1.0, 100.0, math.nan, 1.0, 1.0]))
    assert run.told[2:] == [
        "20 collapsed act #1 reset_codes",
        "40 collapsed outcome #1 reset_codes recovered",
        "60 collapsed skip cooling_down",
        "110 collapsed skip cooling_down",
    ]


@pytest.mark.parametrize(
    ("cooldown", "fires_at"),
    [("0 steps", 30), ("15 steps", 40), ("3 readings", 50), ("1 epoch", 70), ("2 epochs", 120)],
)
def test_cooldown_in_every_unit(cooldown: str, fires_at: int) -> None:
    """The intervention ends at step 20, in epoch 0; an epoch has 5 readings, and 70 is the first step of epoch 1."""
    values = [1.0, 100.0, *[1.0] * 12]
    readings = [reading(10 + 10 * i, value, epoch=(i - 1) // 5) for i, value in enumerate(values)]
    run = Run(policy(rule(ladder=[RESET], cooldown=cooldown))).feed(readings)
    acts = [decision.step for decision in run.decisions if decision.kind is DecisionKind.ACT]
    assert acts == [10, fires_at]


def test_epochs_never_pass_in_a_loop_that_does_not_say_its_epoch() -> None:
    run = Run(policy(rule(ladder=[RESET], verify={"within": "1 epoch"}))).feed(series([1.0] * 50))
    assert run.told == ["10 collapsed alert", "10 collapsed act #1 reset_codes"]
    assert run.finish(510).told[2:] == ["510 collapsed outcome #1 reset_codes inconclusive"]


def test_pending_ends_quietly_when_the_condition_ends() -> None:
    run = Run(policy(rule(hold=3))).feed(series([1.0, 1.0, 100.0, 1.0]))
    assert run.told == ["10 collapsed pending", "40 collapsed pending"]
    assert run.engine.phase("vq", "collapsed") is Phase.PENDING


def test_a_rule_without_ladder_alerts_once_and_says_when_it_is_over() -> None:
    run = Run(policy(rule(clear={"when": "perplexity >= 10", "for": 2})))
    run.feed(series([1.0, 1.0, 5.0, 20.0, 5.0, 20.0, 1.0, 20.0, 20.0, 20.0]))
    assert run.told == ["10 collapsed alert", "90 collapsed cleared"]
    assert run.decisions[-1].reason == "perplexity 20.00 >= 10 for 2 readings"


def test_clearing_takes_as_long_as_firing_unless_told_otherwise() -> None:
    run = Run(policy(rule(hold=3))).feed(series([1.0] * 3 + [100.0] * 4))
    assert run.told == ["10 collapsed pending", "30 collapsed alert", "60 collapsed cleared"]


def test_an_unknown_value_neither_fires_nor_clears_nor_breaks_a_streak() -> None:
    run = Run(policy(rule(when="loss > 9", hold=2)))
    run.feed([reading(step, loss=loss) for step, loss in enumerate([10, None, 10, None, 1, math.nan, 1, None])])
    assert run.told == ["0 collapsed pending", "2 collapsed alert", "6 collapsed cleared"]


def test_observe_mode_says_once_what_it_would_do() -> None:
    run = Run(policy(rule(ladder=[{RESET: {"scope": "all"}}]), mode="observe")).feed(series([1.0] * 5 + [100.0, 1.0]))
    assert run.told == [
        "10 collapsed alert",
        "10 collapsed skip observing",
        "60 collapsed cleared",
        "70 collapsed alert",
        "70 collapsed skip observing",
    ]
    skip = run.decisions[1]
    assert skip.reason == "observe mode: would reset_codes(scope=all, source=kmeans, refill=0.5)"
    assert (skip.action, skip.params, skip.rung, skip.attempt) == (RESET, ResetCodes(scope="all"), 0, None)


def test_a_refused_rung_has_failed_and_the_next_has_its_turn_at_once() -> None:
    run = Run(policy(rule(ladder=[RESET, "fallback_tokenizer"])), applies=lambda act: act.action != RESET)
    run.feed(series([1.0]))
    assert run.told == [
        "10 collapsed alert",
        "10 collapsed act #1 reset_codes",
        "10 collapsed outcome #1 reset_codes failed",
        "10 collapsed act #2 fallback_tokenizer",
    ]
    refused = run.decisions[2]
    assert refused.reason == "reset_codes was not applied: not today"
    assert (refused.before, refused.after) == (reading(10, 1.0), None)
    assert run.engine.phase("vq", "collapsed") is Phase.VERIFYING


def test_when_every_rung_is_refused_the_rule_is_exhausted_until_it_clears() -> None:
    run = Run(policy(rule(ladder=[RESET, DECAY])), applies=lambda _: False)
    run.feed(series([1.0, 1.0, 1.0, 100.0, 1.0]))
    assert run.told == [
        "10 collapsed alert",
        "10 collapsed act #1 reset_codes",
        "10 collapsed outcome #1 reset_codes failed",
        "10 collapsed act #2 decay_commitment",
        "10 collapsed outcome #2 decay_commitment failed",
        "10 collapsed exhausted",
        "40 collapsed cleared",
        "50 collapsed alert",
        "50 collapsed exhausted",
    ]
    assert run.decisions[5].reason == (
        "every rung has failed: reset_codes(scope=dead, source=kmeans, refill=0.5), "
        "decay_commitment(factor=0.5, floor=0.01)"
    )


def test_a_repeated_rung_is_rolled_back_only_after_its_last_try() -> None:
    ladder = [DECAY | {"repeat": 3, "within": "20 steps"}, RESET]
    run = Run(policy(rule(ladder=ladder))).feed(series([1.0] * 8))
    assert run.told == [
        "10 collapsed alert",
        "10 collapsed act #1 decay_commitment",
        "30 collapsed outcome #1 decay_commitment failed",
        "30 collapsed act #2 decay_commitment",
        "50 collapsed outcome #2 decay_commitment failed",
        "50 collapsed act #3 decay_commitment",
        "70 collapsed outcome #3 decay_commitment failed, rolled back",
        "70 collapsed act #4 reset_codes",
    ]
    assert run.decisions[3].reason == (
        "rung 1 of 2, try 2 of 3: decay_commitment(factor=0.5, floor=0.01) at perplexity 1.00"
    )


def test_a_refusal_after_failed_tries_undoes_them() -> None:
    ladder = [DECAY | {"repeat": 3, "within": "20 steps"}]
    run = Run(policy(rule(ladder=ladder)), applies=lambda act: act.attempt == 1).feed(series([1.0] * 3))
    assert run.told[2:] == [
        "30 collapsed outcome #1 decay_commitment failed",
        "30 collapsed act #2 decay_commitment",
        "30 collapsed outcome #2 decay_commitment failed, rolled back",
        "30 collapsed exhausted",
    ]


def test_a_rung_that_recovered_may_be_tried_again_one_that_failed_may_not() -> None:
    run = Run(policy(rule(ladder=[RESET, DECAY], verify={"within": "10 steps"})))
    run.feed(series([1.0, 1.0, 100.0, 1.0, 100.0, 1.0]))
    assert [line for line in run.told if "#" in line] == [
        "10 collapsed act #1 reset_codes",
        "20 collapsed outcome #1 reset_codes failed, rolled back",
        "20 collapsed act #2 decay_commitment",
        "30 collapsed outcome #2 decay_commitment recovered",
        "40 collapsed act #3 decay_commitment",
        "50 collapsed outcome #3 decay_commitment recovered",
        "60 collapsed act #4 decay_commitment",
    ]


def test_success_in_an_unfinished_streak_may_pass_the_deadline() -> None:
    clear = {"when": "perplexity >= 10", "for": 3}
    run = Run(policy(rule(ladder=[RESET, DECAY], clear=clear, verify={"within": "30 steps"})))
    run.feed(series([1.0, 1.0, 1.0, 20.0, 20.0, 20.0]))
    assert run.told[-1] == "60 collapsed outcome #1 reset_codes recovered"


def test_a_streak_broken_after_the_deadline_has_failed() -> None:
    clear = {"when": "perplexity >= 10", "for": 3}
    run = Run(policy(rule(ladder=[RESET], clear=clear, verify={"within": "30 steps"})))
    run.feed(series([1.0, 1.0, 1.0, 20.0, 20.0, 5.0]))
    assert run.told[-2:] == ["60 collapsed outcome #1 reset_codes failed, rolled back", "60 collapsed exhausted"]


def test_nothing_clears_while_its_condition_holds() -> None:
    """`clear` may overlap with `when`; then the condition goes before it."""
    run = Run(policy(rule(clear={"when": "usage > 0.5"}, ladder=[RESET], verify={"within": "20 steps"})))
    run.feed([reading(10, 1.0), reading(20, 1.0), reading(30, 1.0), reading(40, 1.0), reading(50, 9.0)])
    assert run.told[2:] == [
        "30 collapsed outcome #1 reset_codes failed, rolled back",
        "30 collapsed exhausted",
        "50 collapsed cleared",
    ]


def test_success_can_be_asked_for_apart_from_clearing() -> None:
    verify = {"within": "50 steps", "success": "loss < 1"}
    run = Run(policy(rule(ladder=[RESET], verify=verify)))
    run.feed([reading(10, 1.0, loss=3.0), reading(20, 100.0, loss=3.0), reading(30, 100.0, loss=0.5)])
    assert run.told[-1] == "30 collapsed outcome #1 reset_codes recovered"
    assert run.decisions[-1].reason == "loss 0.50 < 1 for 1 reading after reset_codes"


@pytest.mark.parametrize(("within", "ends_at"), [("25 steps", 40), ("2 readings", 30), ("1 epoch", 60)])
def test_verification_in_every_unit(within: str, ends_at: int) -> None:
    readings = [reading(10 + 10 * i, 1.0, epoch=i // 5) for i in range(8)]
    run = Run(policy(rule(ladder=[RESET], verify={"within": within}))).feed(readings)
    assert run.told[-2:] == [
        f"{ends_at} collapsed outcome #1 reset_codes failed, rolled back",
        f"{ends_at} collapsed exhausted",
    ]


def test_a_verification_that_saw_nothing_is_inconclusive() -> None:
    run = Run(policy(rule(ladder=[RESET], verify={"within": "30 steps"}, cooldown="50 steps")))
    run.feed(series([1.0])).feed(series([1.0] * 3, start=20, tokens=9))
    assert run.told[2:] == ["20 - skip few_tokens", "40 collapsed outcome #1 reset_codes inconclusive"]
    assert run.decisions[-1].reason == "no usable reading to tell within 30 steps whether reset_codes held"
    assert run.engine.phase("vq", "collapsed") is Phase.COOLING


def test_a_verification_that_saw_something_waits_for_the_next_usable_reading() -> None:
    run = Run(policy(rule(ladder=[RESET], verify={"within": "30 steps"})))
    run.feed(series([1.0, 1.0])).feed(series([1.0] * 3, start=30, tokens=9)).feed(series([1.0], start=60))
    assert run.told[2:-1] == ["30 - skip few_tokens", "60 collapsed outcome #1 reset_codes failed, rolled back"]


def test_a_verification_does_not_wait_for_ever() -> None:
    verify = {"within": "30 steps", "success": "loss < 1"}
    run = Run(policy(rule(ladder=[RESET], verify=verify)))
    run.feed([reading(10, 1.0), reading(20, 1.0, loss=2.0), *series([1.0] * 6, start=30)])
    assert run.told[2] == "70 collapsed outcome #1 reset_codes inconclusive"


def test_the_end_of_the_run_leaves_no_intervention_open() -> None:
    run = Run(policy(rule(ladder=[RESET]))).feed([*series([1.0], codebook="a"), *series([1.0], codebook="b")])
    run.feed(series([100.0], codebook="healthy")).finish(99)
    assert run.told[-2:] == [
        "99 collapsed outcome #1 reset_codes inconclusive",
        "99 collapsed outcome #2 reset_codes inconclusive",
    ]
    assert run.decisions[-1].reason == "the run ended before reset_codes was verified"
    assert (run.decisions[-1].before, run.decisions[-1].after) == (reading(10, 1.0, "b"), None)
    assert run.engine.finish(100) == ()


def test_warmup_few_tokens_and_settling_are_told_once_a_streak() -> None:
    run = Run(policy(rule(ladder=[RESET]), warmup="25 steps", sample={"settle": 2}))
    run.feed(series([1.0, 1.0])).feed(series([1.0] * 2, start=30, tokens=255)).feed(series([1.0] * 4, start=50))
    run.feed(series([1.0], start=90, tokens=0))
    assert [(each.step, each.reason) for each in run.decisions if each.kind is DecisionKind.SKIP] == [
        (10, "warming up: step 10 of 25"),
        (30, "255 tokens are too few for a verdict: min_tokens is 256"),
        (60, "settling: 1 of 2 readings after reset_codes"),
        (90, "0 tokens are too few for a verdict: min_tokens is 256"),
    ]


def test_settling_readings_are_no_evidence_for_any_rule() -> None:
    other = rule("loud", "loss > 5")
    run = Run(policy(rule(ladder=[RESET]), other, sample={"settle": 1}))
    run.feed([reading(10, 1.0), reading(20, 100.0, loss=9.0), reading(30, 100.0, loss=1.0)])
    assert run.told == [
        "10 collapsed alert",
        "10 collapsed act #1 reset_codes",
        "20 - skip settling",
        "30 collapsed outcome #1 reset_codes recovered",
    ]


def test_eval_readings_are_ignored() -> None:
    run = Run(policy(rule(hold=2))).feed([reading(1, 1.0), reading(2, 100.0, stage="eval"), reading(3, 1.0)])
    assert run.told == ["1 collapsed pending", "3 collapsed alert"]


def test_an_inhibited_rule_is_quiet_and_counts_from_the_beginning_afterwards() -> None:
    worse = rule("collapsed", "perplexity < 1.5", inhibits=["collapsing"], hold=2)
    milder = rule("collapsing", "perplexity < 5", hold=2)
    run = Run(policy(milder, worse)).feed(series([4.0, 1.0, 1.0, 4.0, 4.0, 4.0]))
    assert run.told == [
        "10 collapsing pending",
        "20 collapsed pending",
        "20 collapsing skip inhibited",
        "30 collapsed alert",
        "50 collapsed cleared",
        "50 collapsing pending",
        "60 collapsing alert",
    ]


def test_a_worse_rule_that_never_comes_to_fire_does_not_keep_the_milder_one_from_it() -> None:
    """Perplexity wavers around the worse threshold and stays below the milder one all the while."""
    worse = rule("collapsed", "perplexity < 1.5", inhibits=["collapsing"], hold=2)
    milder = rule("collapsing", "perplexity < 5", hold=2)
    run = Run(policy(milder, worse)).feed(series([4.0, 1.0, 4.0, 1.0, 4.0]))
    assert run.told == [
        "10 collapsing pending",
        "20 collapsed pending",
        "20 collapsing skip inhibited",
        "30 collapsing alert",
        "40 collapsed pending",
        "40 collapsing skip inhibited",
    ]


def test_a_firing_rule_goes_quiet_when_a_worse_one_is_at_work() -> None:
    run = Run(
        policy(rule(inhibits=["collapsing"]), rule("collapsing", "perplexity < 5", ladder=[RESET]), mode="observe")
    )
    run.feed(series([4.0, 1.0, 4.0, 4.0]))
    assert run.told == [
        "10 collapsing alert",
        "10 collapsing skip observing",
        "20 collapsed alert",
        "20 collapsing skip inhibited",
        "30 collapsed cleared",
        "30 collapsing alert",
        "30 collapsing skip observing",
    ]


def test_one_open_intervention_at_a_time_on_a_codebook() -> None:
    loud = rule("loud", "loss > 5", ladder=[DECAY])
    run = Run(policy(rule(ladder=[RESET]), loud))
    run.feed([reading(10, 1.0, loss=9.0), reading(20, 1.0, loss=9.0), reading(30, 100.0, loss=9.0)])
    assert run.told == [
        "10 collapsed alert",
        "10 collapsed act #1 reset_codes",
        "10 loud alert",
        "10 loud skip occupied",
        "30 collapsed outcome #1 reset_codes recovered",
        "30 loud act #2 decay_commitment",
    ]


def test_codebooks_do_not_wait_for_each_other() -> None:
    run = Run(policy(rule(ladder=[RESET]))).feed([reading(10, 1.0, "a"), reading(10, 1.0, "b")])
    assert [decision.codebook for decision in run.decisions] == ["a", "a", "b", "b"]
    assert run.told[1::2] == ["10 collapsed act #1 reset_codes", "10 collapsed act #2 reset_codes"]


def test_a_worse_rule_does_not_wait_for_the_verification_of_one_that_it_inhibits() -> None:
    milder = rule("collapsing", "perplexity < 5", ladder=[DECAY | {"repeat": 3}])
    run = Run(policy(rule(ladder=[RESET], inhibits=["collapsing"]), milder)).feed(series([4.0, 4.0, 1.0, 1.0]))
    assert run.told == [
        "10 collapsing alert",
        "10 collapsing act #1 decay_commitment",
        "30 collapsed alert",
        "30 collapsing outcome #1 decay_commitment failed, rolled back",
        "30 collapsing skip inhibited",
        "30 collapsed act #2 reset_codes",
    ]
    assert run.decisions[3].reason == "collapsed fired meanwhile"


def test_a_verification_that_fails_while_inhibited_does_not_climb() -> None:
    alarm = rule("alarm", "loss > 5", inhibits=["collapsed"])
    run = Run(policy(alarm, rule(ladder=[RESET, DECAY], verify={"within": "20 steps"})))
    run.feed([reading(10, 1.0, loss=1.0), reading(20, 1.0, loss=9.0), reading(30, 1.0, loss=9.0)])
    assert run.told[2:] == [
        "20 alarm alert",
        "30 collapsed outcome #1 reset_codes failed, rolled back",
        "30 collapsed skip inhibited",
    ]
    assert run.engine.phase("vq", "collapsed") is Phase.ARMED


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


def test_until_it_is_reported_an_act_waits() -> None:
    engine = PolicyEngine(
        policy(rule(ladder=[RESET]), rule("loud", "loss > 5", ladder=[DECAY], inhibits=["collapsed"]))
    )
    act = engine.observe(reading(10, 1.0))[-1]
    assert engine.phase("vq", "collapsed") is Phase.FIRING
    assert engine.observe(reading(20, 1.0)) == ()
    assert [each.skip for each in engine.observe(reading(30, 1.0, loss=9.0))] == [None, Skip.OCCUPIED]
    assert engine.report(act, applied=True) == ()
    assert engine.phase("vq", "collapsed") is Phase.VERIFYING


def test_what_no_longer_waits_cannot_be_reported() -> None:
    engine = PolicyEngine(policy(rule(ladder=[RESET])))
    alert, act = engine.observe(reading(10, 1.0))
    with pytest.raises(ValueError, match=r"expected an ACT decision that waits for its report, got alert of rule"):
        engine.report(alert, applied=True)
    engine.report(act, applied=True)
    with pytest.raises(ValueError, match=r"got act of rule 'collapsed' on 'vq', attempt 1\. Report each ACT once"):
        engine.report(act, applied=True)


def test_the_phase_of_an_unknown_rule_is_an_error_that_lists_the_known_ones() -> None:
    engine = PolicyEngine(policy(rule(), rule("loud", "loss > 5")))
    assert engine.phase("never seen", "loud") is Phase.ARMED
    with pytest.raises(LookupError, match=r"a rule of this policy \(collapsed, loud\), got 'colapsed'"):
        engine.phase("vq", "colapsed")
