"""A run that was cut off anywhere, saved as JSON and continued decides as if nothing had happened."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from collapse_guard.policies import Decision, Health, Phase, Policy, PolicyEngine, Reading, ResetCodes, load_policy
from tests.policies.series import Run, policy, reading, rule, series

LADDER: list[Any] = [{"decay_commitment": {}, "repeat": 2, "within": "20 steps"}, "reset_codes", "fallback_tokenizer"]

STORIES: dict[str, tuple[Policy, list[Reading]]] = {
    "reference": (load_policy("default"), series([1.0] * 7 + [80.0] * 6 + [1.0] * 9 + [math.nan, 80.0] * 6)),
    "every phase": (
        policy(
            rule("collapsed", "perplexity < 1.5", inhibits=["collapsing"], ladder=LADDER, hold=2),
            rule("collapsing", "perplexity < 5", cooldown="2 epochs", ladder=LADDER, clear={"for": 2}),
            sample={"settle": 2},
        ),
        [reading(10 * i, each, epoch=i // 8) for i, each in enumerate([4.0] * 9 + [1.0] * 12 + [9.0] * 9 + [1.0] * 30)],
    ),
    "nothing usable": (
        policy(rule(ladder=["reset_codes"], verify={"within": "9 readings"}, cooldown="9 readings")),
        series([1.0]) + series([1.0] * 12, start=20, tokens=1) + series([1.0] * 30, start=140),
    ),
    "refilled budget": (
        policy(rule(ladder=["reset_codes"]), budget={"interventions": 1, "refill_after": "50 steps"}),
        series([1.0] + [100.0] * 3 + [1.0] + [100.0] * 8 + [1.0] * 4),
    ),
}


def refuses_resets(act: Decision) -> bool:
    return act.action != "reset_codes"


def resumed(engine: PolicyEngine, policy: Policy | None = None) -> Run:
    """A new run, perhaps under another policy, that continues from what the engine would have saved."""
    run = Run(policy or engine.policy)
    run.engine.load_state_dict(json.loads(json.dumps(engine.state_dict())))
    return run


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("applies", [lambda _: True, refuses_resets], ids=["applied", "resets refused"])
def test_a_run_may_be_cut_off_at_any_reading(story: str, applies: Any) -> None:
    policy, readings = STORIES[story]
    whole = Run(policy, applies).feed(readings).finish(9999)
    assert len(whole.decisions) > 4
    for cut in range(len(readings) + 1):
        first = Run(policy, applies).feed(readings[:cut])
        second = resumed(first.engine)
        second.applies = applies
        second.feed(readings[cut:]).finish(9999)
        assert repr(first.decisions + second.decisions) == repr(whole.decisions)
        assert repr(second.engine.state_dict()) == repr(whole.engine.state_dict())


def test_a_decision_may_be_reported_after_a_resume() -> None:
    engine = PolicyEngine(policy(rule(ladder=["reset_codes"])))
    act = engine.observe(reading(10, 1.0))[-1]
    run = resumed(engine)
    assert run.engine.report(act, applied=True) == ()
    assert run.engine.phase("vq", "collapsed") is Phase.VERIFYING


def test_saved_state_is_plain_data() -> None:
    """Anything else would make a checkpoint unreadable with `weights_only=True`."""

    def types_in(value: Any) -> set[type]:
        inner = list(value) if isinstance(value, (dict, list)) else []
        inner += value.values() if isinstance(value, dict) else []
        return {type(value)}.union(*map(types_in, inner))

    run = Run(*STORIES["every phase"][:1]).feed(STORIES["every phase"][1][:20])
    assert types_in(run.engine.state_dict()) <= {dict, list, str, int, float, bool, type(None)}


def test_saved_state_holds_no_configuration() -> None:
    engine = Run(load_policy("default")).feed(series([1.0] * 3)).engine
    lenient = policy(rule("collapsed", "perplexity < 0.5"), mode="observe", budget={"interventions": 3})
    assert resumed(engine, lenient).engine.policy is lenient
    assert "mode" not in json.dumps(engine.state_dict())


def test_rules_that_are_gone_are_forgotten_and_new_ones_start_armed() -> None:
    engine = Run(policy(rule("old"), rule("kept"))).feed(series([1.0])).engine
    run = resumed(engine, policy(rule("kept"), rule("new", hold=2)))
    assert [run.engine.phase("vq", name) for name in ("kept", "new")] == [Phase.FIRING, Phase.ARMED]
    assert list(run.engine.state_dict()["codebooks"]["vq"]["rules"]) == ["kept"]
    assert run.engine.health("vq") is Health.DEGRADED


def test_an_open_intervention_whose_rung_is_gone_is_inconclusive() -> None:
    engine = Run(policy(rule(ladder=["reset_codes"]))).feed(series([1.0])).engine
    run = resumed(engine, policy(rule(ladder=["alert"]))).feed(series([1.0] * 2, start=20))
    assert run.told == [
        "20 collapsed outcome #1 reset_codes inconclusive",
        "30 collapsed alert",
        "30 collapsed act #2 alert",
    ]
    ended = run.decisions[0]
    assert ended.reason == "the policy has changed and no longer has reset_codes(scope=dead, source=kmeans, refill=0.5)"
    assert (ended.params, ended.rung, ended.after) == (None, 0, reading(20, 1.0))


def test_an_intervention_that_waits_for_evidence_ends_also_when_its_rung_is_gone() -> None:
    engine = Run(policy(rule(ladder=["reset_codes"]))).feed(series([1.0])).engine
    changed = policy(rule(ladder=["alert"], verify={"within": "20 steps"}))
    run = resumed(engine, changed).feed(series([1.0] * 3, start=20, tokens=1))
    assert run.told[1:] == ["30 collapsed outcome #1 reset_codes inconclusive"]


def test_a_failed_rung_is_remembered_by_what_it_was_not_by_where_it_stood() -> None:
    failing = policy(rule(ladder=["reset_codes", "alert"], verify={"within": "10 steps"}))
    engine = Run(failing).feed(series([1.0, 1.0, 100.0])).engine
    longer = policy(rule(ladder=["decay_commitment", "reset_codes", {"reset_codes": {"scope": "all"}}]))
    run = resumed(engine, longer).feed(series([1.0], start=40))
    run.applies = lambda _: False
    run.feed(series([100.0, 1.0], start=50))
    assert run.told == [
        "40 collapsed alert",
        "40 collapsed act #3 decay_commitment",
        "50 collapsed outcome #3 decay_commitment recovered",
        "60 collapsed alert",
        "60 collapsed act #4 decay_commitment",
        "60 collapsed outcome #4 decay_commitment failed",
        "60 collapsed act #5 reset_codes",
        "60 collapsed outcome #5 reset_codes failed",
        "60 collapsed exhausted",
    ]
    assert run.decisions[6].params == ResetCodes(scope="all")


def test_tries_of_a_rung_that_is_gone_do_not_count_for_another() -> None:
    engine = Run(policy(rule(ladder=[LADDER[0]]), rule("alarm", "loss > 5", inhibits=["collapsed"])))
    engine.feed([reading(10, 1.0), reading(20, 1.0, loss=9.0), reading(30, 1.0, loss=9.0)])
    changed = policy(rule(ladder=[{"decay_commitment": {"factor": 0.5}, "repeat": 2, "within": "10 steps"}]))
    run = resumed(engine.engine, changed).feed(series([1.0] * 3, start=40))
    assert run.told == [
        "40 collapsed alert",
        "40 collapsed act #2 decay_commitment",
        "50 collapsed outcome #2 decay_commitment failed",
        "50 collapsed act #3 decay_commitment",
        "60 collapsed outcome #3 decay_commitment failed, rolled back",
        "60 collapsed exhausted",
    ]


def test_a_policy_that_now_only_observes_finishes_what_is_open_and_begins_nothing() -> None:
    acting = policy(rule(ladder=["reset_codes", "alert"], verify={"within": "10 steps"}))
    engine = Run(acting).feed(series([1.0])).engine
    run = resumed(engine, acting.with_mode("observe")).feed(series([1.0], start=20))
    assert run.told == ["20 collapsed outcome #1 reset_codes failed, rolled back", "20 collapsed skip observing"]


@pytest.mark.parametrize("schema", [None, 2])
def test_state_of_another_form_is_refused(schema: int | None) -> None:
    state = PolicyEngine(load_policy("default")).state_dict() | {"schema": schema}
    with pytest.raises(ValueError, match=rf"expected engine state of schema 1, got {schema}\. Resume"):
        PolicyEngine(load_policy("default")).load_state_dict(state)
