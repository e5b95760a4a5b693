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
    ResetCodes,
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
    why = "perplexity 1.00 < 1.5 and perplexity_ratio 0.005 < 0.5 and rest_ratio 0.00 < 0.35"
    reset = ResetCodes(scope="all", source="reservoir")
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
        reason="perplexity 1.00, perplexity_ratio 0.005, rest_ratio 0.00, relative_error 0.10 after 50 steps, "
        "wanted (perplexity >= 10 or perplexity_ratio >= 0.5 or (rest_ratio >= 0.5 and relative_error <= 0.9)) "
        "and relative_error < 1 for 3 readings",
        action=RESET,
        params=reset,
        rung=2,
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
        reason=f"rung 4 of 4: {fallback.describe()} at perplexity 1.00, perplexity_ratio 0.005, rest_ratio 0.00, "
        "relative_error 0.10",
        action="fallback_tokenizer",
        params=fallback,
        rung=3,
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
