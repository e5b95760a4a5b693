"""Interventions in whole records: asked for, refused, repeated, verified, undone, followed by the next rung."""

from __future__ import annotations

from dataclasses import replace

import pytest

from collapse_guard.policies import (
    Outcome,
    Phase,
    PolicyEngine,
    Reading,
    Skip,
)
from tests.policies.series import Run, policy, reading, rule, series

RESET = "reset_codes"
DECAY = {"decay_commitment": {"factor": 0.5}}
SHORT = DECAY | {"within": "20 steps"}
THRICE = [SHORT | {"repeat": 3}]


def while_loss(*losses: float) -> list[Reading]:
    """Readings of a collapsed codebook each ten steps, with these losses."""
    return [reading(10 * number, 1.0, loss=loss) for number, loss in enumerate(losses, start=1)]


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


@pytest.mark.parametrize(
    ("gradual", "severity", "gives_way"),
    [("upkeep", "info", True), ("restart_optimizer", "info", True), ("reset_codes", "info", False),
     ("upkeep", "warning", False)],
)  # fmt: skip
def test_what_goes_on_for_long_gives_way_to_a_graver_trouble(gradual: str, severity: str, gives_way: bool) -> None:
    verify = {"within": "1000 steps"}
    idle = rule("idle", "perplexity < 50", ladder=[gradual], verify=verify, severity=severity, cooldown="10 steps")
    low = rule("low", "perplexity < 5", ladder=[DECAY], severity="warning")
    run = Run(policy(low, idle)).feed(series([40.0, 40.0, 4.0]))
    ended = [
        f"30 idle outcome #1 {gradual} inconclusive",
        "30 low act #2 decay_commitment",
        "30 idle skip cooling_down",
    ]
    assert run.told[2:] == ["30 low alert", *(ended if gives_way else ["30 low skip occupied"])]
    assert not gives_way or run.decisions[3].reason == "low fired meanwhile"


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


def test_further_tries_of_a_rung_make_way_for_a_rule_above_that_waits() -> None:
    above, below = rule("above", "loss > 5", ladder=[RESET]), rule(ladder=THRICE, cooldown="20 steps")
    told = {}
    for severity in ("warning", "info"):
        run = Run(policy(above | {"severity": severity}, below)).feed(while_loss(1.0, 9.0, 9.0, 9.0))
        assert run.told[2:4] == ["20 above alert", "20 above skip occupied"]
        told[severity] = run.told[4:]
    assert told == {
        "warning": [
            "30 collapsed outcome #1 decay_commitment failed, rolled back",
            "40 above act #2 reset_codes",
            "40 collapsed skip cooling_down",
        ],
        "info": ["30 collapsed outcome #1 decay_commitment failed", "30 collapsed act #2 decay_commitment"],
    }


def test_a_rung_that_made_way_has_not_failed_and_is_tried_again() -> None:
    above, below = rule("above", "loss > 5", clear={"for": 1}, ladder=[RESET]), rule(ladder=THRICE, cooldown="20 steps")
    run = Run(policy(above, below)).feed(while_loss(1.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0))
    failed = next(each for each in run.decisions if each.outcome is Outcome.FAILED)
    assert failed.reason.endswith("; no further try, since above waits")
    assert run.told[5:] == [
        "40 above act #2 reset_codes",
        "40 collapsed skip cooling_down",
        "50 above outcome #2 reset_codes recovered",
        "50 collapsed alert",
        "50 collapsed act #3 decay_commitment",
        "70 collapsed outcome #3 decay_commitment failed",
        "70 collapsed act #4 decay_commitment",
    ]


def test_the_next_rung_makes_way_for_nobody() -> None:
    above, below = rule("above", "loss > 5", ladder=[RESET]), rule(ladder=[SHORT, "fallback_tokenizer"])
    run = Run(policy(above, below)).feed(while_loss(1.0, 9.0, 9.0))
    assert run.told[-2:] == [
        "30 collapsed outcome #1 decay_commitment failed, rolled back",
        "30 collapsed act #2 fallback_tokenizer",
    ]


def test_a_rule_below_does_not_take_the_place_of_one_that_waits() -> None:
    above, below = rule("above", "loss > 5", ladder=[RESET]), rule("below", "loss > 5", ladder=["slow_ema"])
    run = Run(policy(above, rule(ladder=THRICE), below)).feed(while_loss(1.0, 9.0, 9.0, 9.0))
    assert [each for each in run.told if " act " in each] == [
        "10 collapsed act #1 decay_commitment",
        "40 above act #2 reset_codes",
    ]


@pytest.mark.parametrize(
    ("loss", "place"),
    [((1.0, 9.0, 1.0), "above"), ((1.0, 9.0, 9.0), "below"), ((1.0, 9.0, 9.0), "of evaluation")],
    ids=["that no longer holds", "that is judged later", "that looks at evaluation"],
)
def test_a_rung_is_tried_again_beside_a_rule(loss: tuple[float, ...], place: str) -> None:
    other = rule("other", "loss > 5", clear={"when": "loss < 5", "for": 3}, ladder=[RESET])
    if place == "of evaluation":
        other["stage"] = "eval"
    rules = [rule(ladder=THRICE), other] if place == "below" else [other, rule(ladder=THRICE)]
    run, readings = Run(policy(*rules)), while_loss(*loss)
    if place == "of evaluation":
        readings.insert(2, replace(readings[1], stage="eval"))
    run.feed(readings)
    assert "20 other skip occupied" in run.told
    assert run.told[-2:] == ["30 collapsed outcome #1 decay_commitment failed", "30 collapsed act #2 decay_commitment"]


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
