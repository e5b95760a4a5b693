"""`verify: guard`: a codebook that recovers at the cost of the loss has not recovered."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import DecisionKind, LossBound, Outcome, Phase
from tests.policies.series import Run, policy, reading, rule

BEFORE = 2.0


def guarded(losses: list[float | None], *, before: float | None = BEFORE, bound: float = 0.1, **fields: Any) -> Run:
    """One collapsed reading, then healthy ones with these losses, 10 steps apart; 30 steps to verify."""
    verify = {"within": "30 steps", "guard": {"loss_increase": bound}}
    run = Run(policy(rule(ladder=["reset_codes", "alert"], verify=verify, **fields)))
    return run.feed(
        [reading(10, 1.0, loss=before), *(reading(20 + 10 * i, loss=loss) for i, loss in enumerate(losses))]
    )


def test_recovery_within_the_bound_is_recovery() -> None:
    run = guarded([2.19])
    assert run.told[-1] == "20 collapsed outcome #1 reset_codes recovered"
    assert run.decisions[-1].reason == "perplexity 100.00 >= 1.5 for 1 reading after reset_codes; loss 2.19, 2 before"


def test_recovery_beyond_the_bound_has_failed_at_the_deadline_and_is_rolled_back() -> None:
    run = guarded([3.0, 3.0, 3.0])
    assert run.told[2:4] == ["40 collapsed outcome #1 reset_codes failed, rolled back", "40 collapsed act #2 alert"]
    assert run.decisions[2].reason == (
        "perplexity 100.00 >= 1.5 for 3 readings after reset_codes, but loss 3 is more than 0.1 above the 2 before "
        "reset_codes"
    )


def test_a_loss_that_comes_down_in_time_is_forgiven() -> None:
    assert guarded([9.0, 5.0, 2.0]).told[-1] == "40 collapsed outcome #1 reset_codes recovered"


def test_nothing_is_decided_while_the_loss_may_come_down() -> None:
    run = guarded([9.0, 5.0])
    assert len(run.decisions) == 2
    assert run.engine.phase("vq", "collapsed") is Phase.VERIFYING


@pytest.mark.parametrize(("before", "after"), [(None, 9.0), (math.nan, 9.0), (math.inf, 9.0), (2.0, None)])
def test_without_a_loss_the_bound_is_not_applied_and_that_is_said(before: float | None, after: float | None) -> None:
    run = guarded([after], before=before)
    assert run.decisions[-1].outcome is Outcome.RECOVERED
    said = "; its bound on the loss was not applied: no loss is known before and after"
    assert run.decisions[-1].reason.endswith(said)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_of_no_number_is_beyond_every_bound(loss: float) -> None:
    run = guarded([loss] * 3, bound=1e6)
    assert run.told[2] == "40 collapsed outcome #1 reset_codes failed, rolled back"


def test_a_negative_loss_has_bounds_too() -> None:
    assert guarded([-1.9], before=-2.0).decisions[-1].outcome is Outcome.RECOVERED
    assert guarded([-1.7] * 3, before=-2.0).decisions[2].outcome is Outcome.FAILED


def test_without_a_guard_the_reason_does_not_speak_of_the_loss() -> None:
    run = Run(policy(rule(ladder=["reset_codes"]))).feed([reading(10, 1.0, loss=1.0), reading(20, loss=9.0)])
    assert run.decisions[-1].reason == "perplexity 100.00 >= 1.5 for 1 reading after reset_codes"


def test_a_guard_is_part_of_the_meaning() -> None:
    plain, with_guard = (policy(rule(verify=verify)) for verify in ({}, {"guard": {"loss_increase": 0.1}}))
    assert with_guard.rules[0].verify.guard == LossBound(loss_increase=0.1)
    assert plain.fingerprint() != with_guard.fingerprint()


@given(st.floats(-9, 9), st.lists(st.floats(-9, 9), min_size=1, max_size=6), st.floats(0, 1))
def test_what_has_recovered_kept_the_bound(before: float, losses: list[float], bound: float) -> None:
    run = guarded([*losses], before=before, bound=bound)
    for each in run.decisions:
        if each.kind is DecisionKind.OUTCOME and each.outcome is Outcome.RECOVERED:
            assert each.before
            assert each.after
            assert (each.after.loss or 0) <= (each.before.loss or 0) + bound * abs(each.before.loss or 0)
