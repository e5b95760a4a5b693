"""What the policy asks of the training loop, in a plain loop that takes requests, and in one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from collapse_guard import Guard, Request
from tests.loops import Recorder, digits_model, train


def giving_up(*asked: str) -> dict[str, Any]:
    """A policy whose rules alert at step 20, wait in vain, and are exhausted at step 40; each asks for one thing."""
    return {
        "version": 1,
        "name": "giving-up",
        "sample": {"every": "10 steps", "min_tokens": 64},
        "rules": [
            {
                "name": f"collapsed-{number}",
                "when": "perplexity < 1.5",
                "for": 1,
                "verify": {"within": "20 steps"},
                "ladder": ["alert"],
                "on_exhausted": what,
            }
            for number, what in enumerate(asked, start=1)
        ],
    }


def guarded(*asked: str) -> tuple[Guard, Recorder]:
    recorder = Recorder()
    return Guard(giving_up(*asked), console=False, sinks=[recorder]), recorder


def request(kind: str = "stop_training", rule: str = "collapsed-1") -> Request:
    reason = "every rung has failed: alert()"
    return Request(kind=kind, step=40, codebook="quantizer", rule=rule, reason=reason)


def told(recorder: Recorder, kind: str) -> list[dict[str, Any]]:
    return [{"step": event.step, **event.fields} for event in recorder.of(kind)]


def test_a_request_is_taken_once_and_its_answer_is_written_down() -> None:
    guard, recorder = guarded("stop_training")
    with guard:
        train(digits_model(), 40, guard)
        (taken,) = guard.requests.take()
        assert taken == request()
        assert guard.requests.take() == ()
        guard.requests.carried_out(taken, "the loop was left")
    answer = {"codebook": "quantizer", "rule": "collapsed-1", "request": "stop_training", "asked_at": 40}
    assert told(recorder, "carried_out") == [{"step": 40, **answer, "summary": "the loop was left", "file": None}]
    assert recorder.of("fault") == []
    (exhausted,) = recorder.of("exhausted")
    assert exhausted.fields["reason"] == "every rung has failed: alert(); the policy asks for stop_training now"


def test_the_log_says_once_of_each_request_that_nobody_took_it() -> None:
    guard, recorder = guarded("stop_training")
    with guard:
        train(digits_model(), 60, guard)
        assert guard.requests.take() == (request(),)
    assert told(recorder, "fault") == [
        {
            "step": 41,
            "where": "stop_training",
            "reason": "collapsed-1 on quantizer asked for this at step 40 and nobody took the request, so nothing was "
            "done: call guard.requests.take() after each guard.step() and carry out what it returns",
        }
    ]


def test_a_request_of_the_last_step_is_missed_at_the_end() -> None:
    guard, recorder = guarded("save_checkpoint")
    with guard:
        train(digits_model(), 40, guard)
    assert [(event.step, event.fields["where"]) for event in recorder.of("fault")] == [(40, "save_checkpoint")]


def test_a_loop_may_say_why_it_could_not() -> None:
    guard, recorder = guarded("save_checkpoint")
    with guard:
        train(digits_model(), 40, guard)
        for taken in guard.requests.take():
            guard.requests.failed(taken, "OSError: no space left on device")
    assert [event.fields for event in recorder.of("fault")] == [
        {
            "where": "save_checkpoint",
            "reason": "asked for by collapsed-1 on quantizer at step 40, failed: OSError: no space left on device; "
            "training goes on without it",
        }
    ]


def test_a_request_that_nobody_took_outlives_a_resume() -> None:
    first, _ = guarded("save_checkpoint")
    with first:
        train(digits_model(), 40, first)
        state = first.state_dict()
    second, recorder = guarded("save_checkpoint")
    with second:
        second.attach(digits_model())
        second.load_state_dict(state)
        assert second.requests.take() == (request("save_checkpoint"),)
    assert recorder.of("fault") == []


@pytest.mark.parametrize("then", ["alert", "observe"])
def test_what_needs_no_loop_is_asked_of_none(then: str) -> None:
    guard, recorder = guarded(then)
    with guard:
        train(digits_model(), 60, guard)
        assert guard.requests.take() == ()
    assert [event.fields["then"] for event in recorder.of("exhausted")] == [then]
    assert recorder.of("fault") == []


@pytest.mark.parametrize("kind", ["save_checkpoint", "stop_training"])
def test_a_rung_may_ask_and_is_judged_like_an_alert(kind: str) -> None:
    policy = giving_up("alert")
    policy["rules"][0]["ladder"] = [kind]
    recorder, taken = Recorder(), list[Request]()
    with Guard(policy, console=False, sinks=[recorder]) as guard:
        train(digits_model(), 60, guard, before_step=lambda step: taken.extend(guard.requests.take()))
    asked = {"codebook": "quantizer", "rule": "collapsed-1", "reason": f"rung 1: {kind}"}
    assert taken == [Request(kind=kind, step=20, **asked)]
    (intervention,) = recorder.of("intervention")
    assert (intervention.fields["result"], intervention.fields["manifest"]) == ("applied", [])
    assert intervention.fields["summary"] == "nothing was touched; the training loop is asked for it"
    (outcome,) = recorder.of("outcome")
    assert (outcome.fields["outcome"], outcome.fields["undone"]) == ("failed", [])
    assert [event.step for event in recorder.of("exhausted")] == [40]
