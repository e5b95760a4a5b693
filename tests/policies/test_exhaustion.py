"""A rule with nothing left to try: what it still keeps quiet, and what has its turn after it."""

from __future__ import annotations

from typing import Any

import pytest

from collapse_guard.policies import Phase
from tests.policies.series import Run, policy, reading, rule, series

RESET = "reset_codes"
DECAY = {"decay_commitment": {"factor": 0.5}}
GIVEN_UP = [
    "10 collapsed alert",
    "10 collapsed act #1 reset_codes",
    "10 collapsed outcome #1 reset_codes failed",
    "10 collapsed exhausted",
    "10 collapsing skip inhibited",  # it was still at work then
]


def exhausted_at_once(*ladder: Any, worse: dict[str, Any] | None = None, **whole: Any) -> Run:
    """A rule whose reset is refused, as every reset is, and a milder one with a ladder of its own."""
    rules = (
        rule(ladder=[RESET], inhibits=["collapsing"], **(worse or {})),
        rule("collapsing", "perplexity < 5", ladder=list(ladder), verify={"within": "20 steps"}),
    )
    return Run(policy(*rules, **whole), applies=lambda act: act.action != RESET)


def test_a_milder_rule_goes_on_with_what_an_exhausted_one_has_not_tried() -> None:
    run = exhausted_at_once(RESET, DECAY, "fallback_tokenizer").feed(series([1.0] * 6))
    assert run.told == [
        *GIVEN_UP,
        "20 collapsing alert",
        "20 collapsing act #2 decay_commitment",
        "40 collapsing outcome #2 decay_commitment failed, rolled back",
        "40 collapsing act #3 fallback_tokenizer",
        "60 collapsing outcome #3 fallback_tokenizer failed, rolled back",
        "60 collapsing exhausted",
    ]
    assert run.decisions[-1].reason.startswith("every rung has failed: reset_codes(scope=dead, source=kmeans")


@pytest.mark.parametrize("ladder", [[], [RESET]])
def test_one_that_could_do_nothing_either_stays_quiet_until_the_exhausted_one_is_over(ladder: list[Any]) -> None:
    run = exhausted_at_once(*ladder).feed(series([1.0, 1.0]))
    assert run.told == GIVEN_UP
    run.feed(series([4.0], start=30))
    assert run.told[5:7] == ["30 collapsed cleared", "30 collapsing alert"]


def test_what_the_budget_of_the_run_does_not_allow_is_nothing_to_try() -> None:
    run = exhausted_at_once(DECAY, budget={"interventions": 1}).feed(series([1.0, 1.0]))
    assert run.told == GIVEN_UP


def test_on_a_codebook_that_was_given_up_there_is_nothing_to_try() -> None:
    run = exhausted_at_once(DECAY, worse={"on_exhausted": "observe"}).feed(series([1.0, 1.0]))
    assert run.told == GIVEN_UP


def test_what_is_being_repeated_keeps_its_tries_and_is_undone_with_the_last() -> None:
    """A reset that an exhausted rule saw fail before is the second try of a milder one that has begun with it."""
    loud = rule("loud", "loss > 5", ladder=[RESET], inhibits=["collapsing"], verify={"within": "10 steps"})
    twice = [{RESET: {}, "repeat": 2}, DECAY]
    milder = rule("collapsing", "perplexity < 5", ladder=twice, verify={"within": "20 steps"})
    run = Run(policy(loud, milder))
    readings = [(100.0, 9.0), (100.0, 9.0), (100.0, 0.0), (1.0, 0.0), (1.0, 9.0), (1.0, 9.0), (1.0, 9.0), (1.0, 9.0)]
    run.feed(reading(10 + 10 * at, perplexity, loss=loss) for at, (perplexity, loss) in enumerate(readings))
    assert run.told == [
        "10 loud alert",
        "10 loud act #1 reset_codes",
        "20 loud outcome #1 reset_codes failed, rolled back",
        "20 loud exhausted",
        "30 loud cleared",
        "40 collapsing alert",
        "40 collapsing act #2 reset_codes",
        "50 loud alert",
        "50 loud exhausted",
        "60 collapsing outcome #2 reset_codes failed",
        "60 collapsing act #3 reset_codes",
        "80 collapsing outcome #3 reset_codes failed, rolled back",
        "80 collapsing act #4 decay_commitment",
    ]
    assert run.engine.phase("vq", "loud") is Phase.EXHAUSTED


def test_levels_that_act_together_leave_out_together_what_was_tried_in_vain() -> None:
    run = exhausted_at_once(RESET, DECAY)
    for step in (10, 20, 30, 40):
        run.feed_together(reading(step, 1.0, f"q.{level}", group="q", level=level) for level in (0, 1))
    assert run.told == [
        *GIVEN_UP,
        "20 collapsing alert",
        "20 collapsing act #2 decay_commitment",
        "40 collapsing outcome #2 decay_commitment failed, rolled back",
        "40 collapsing exhausted",
    ]
    assert {decision.codebooks for decision in run.decisions} == {("q.0", "q.1")}
