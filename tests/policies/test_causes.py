"""Causes in policies: rungs that are for some of them, rules that excuse some, and readings that carry them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from collapse_guard.policies import (
    Cause,
    Decision,
    DecisionKind,
    Diagnosis,
    Health,
    Phase,
    PolicyEngine,
    PolicyError,
    Reading,
    Skip,
    explain_policy,
    lint_policy,
    load_policy,
    recordings_of_events,
    replay,
)
from tests.policies.series import reading


def found(cause: Cause, confidence: float = 0.9) -> Diagnosis:
    return Diagnosis(cause=cause, confidence=confidence, says="it was measured", evidence={"ratio": 3.0})


ENCODER, RUNAWAY = found(Cause.ENCODER_COLLAPSE), found(Cause.RUNAWAY_CODEBOOK)
MODES = found(Cause.FEW_MODES)


def policy(*ladder: Any, **rule: Any) -> dict[str, Any]:
    low = {"name": "low", "when": "perplexity < 5", "verify": {"within": "1 readings"}, "ladder": list(ladder)}
    return {"version": 1, "sample": {"settle": 0, "min_tokens": 1}, "rules": [low | rule]}


def decide(engine: PolicyEngine, step: int, perplexity: float, *causes: Diagnosis) -> list[Decision]:
    made = list(engine.observe(replace(reading(step, perplexity), causes=causes)))
    follow = [each for act in made if act.kind is DecisionKind.ACT for each in engine.report(act, applied=True)]
    return made + follow


def acts(decisions: list[Decision]) -> list[str]:
    return [each.action or "" for each in decisions if each.kind is DecisionKind.ACT]


BY_CAUSE = policy(
    {"decay_commitment": None, "on": {"cause": "encoder_collapse"}},
    {"fallback_tokenizer": None, "on": {"cause": ["runaway_codebook", "shrinking_codebook"], "confidence": 0.8}},
    "reset_codes",
)


@pytest.mark.parametrize(
    ("causes", "action"),
    [
        ((ENCODER,), "decay_commitment"),
        ((found(Cause.ENCODER_COLLAPSE, 0.4), RUNAWAY), "fallback_tokenizer"),
        ((found(Cause.RUNAWAY_CODEBOOK, 0.7),), "reset_codes"),
        ((), "reset_codes"),
    ],
)
def test_the_first_rung_for_what_was_found_has_its_turn(causes: tuple[Diagnosis, ...], action: str) -> None:
    assert acts(decide(PolicyEngine(load_policy(BY_CAUSE)), 1, 1.0, *causes)) == [action]


def test_a_rung_that_is_being_repeated_is_finished_whatever_shows_meanwhile() -> None:
    engine = PolicyEngine(
        load_policy(policy({"decay_commitment": None, "on": {"cause": "encoder_collapse"}, "repeat": 2}, "reset_codes"))
    )
    seen = [acts(decide(engine, step, 1.0, *causes)) for step, causes in enumerate([(ENCODER,), (), ()], start=1)]
    assert seen == [["decay_commitment"], ["decay_commitment"], ["reset_codes"]]


def test_an_action_may_stand_again_without_its_cause_and_is_not_tried_twice_when_it_failed() -> None:
    ladder = ({"alert": None, "on": {"cause": "encoder_collapse"}}, "reset_codes", "alert")
    engine = PolicyEngine(load_policy(policy(*ladder)))
    decide(engine, 1, 1.0, ENCODER)
    assert acts(decide(engine, 2, 1.0, ENCODER)) == ["reset_codes"]
    (outcome, exhausted) = decide(engine, 3, 1.0)
    assert (outcome.rung, exhausted.kind) == (1, DecisionKind.EXHAUSTED)


def test_a_ladder_without_a_rung_for_what_was_found_is_exhausted_and_says_so() -> None:
    engine = PolicyEngine(load_policy(policy({"reset_codes": None, "on": {"cause": "misplaced_codebook"}})))
    alert, exhausted = decide(engine, 1, 1.0, RUNAWAY)
    assert (alert.kind, exhausted.kind) == (DecisionKind.ALERT, DecisionKind.EXHAUSTED)
    assert "no rung is for the cause that was found (runaway_codebook)" in exhausted.reason


def test_a_rule_is_withdrawn_once_while_its_excuse_stays_and_the_codebook_is_well() -> None:
    excused = policy("reset_codes", unless={"cause": "few_modes"}, cooldown="5 steps")
    engine = PolicyEngine(load_policy(excused))
    told = {step: [each.kind.value for each in decide(engine, step, 1.0, MODES)] for step in range(1, 30)}
    assert {step: kinds for step, kinds in told.items() if kinds} == {1: ["withdrawn"]}
    assert engine.health("vq") is Health.HEALTHY
    assert not engine.is_suspect
    assert engine.phase("vq", "low") is Phase.WITHDRAWN


def test_a_withdrawn_rule_looks_again_after_ten_readings_and_fires_if_the_excuse_is_gone() -> None:
    engine = PolicyEngine(load_policy(policy("reset_codes", unless={"cause": "few_modes"})))
    decide(engine, 1, 1.0, MODES)
    steps = [step for step in range(2, 30) if engine.wants_causes([reading(step, 1.0)]) or decide(engine, step, 1.0)]
    assert steps[0] == 11
    assert [each.kind.value for each in decide(engine, 11, 1.0, RUNAWAY)] == ["alert", "act"]


def test_a_withdrawn_rule_is_armed_again_as_soon_as_it_no_longer_holds() -> None:
    engine = PolicyEngine(load_policy(policy("reset_codes", unless={"cause": "few_modes"})))
    decide(engine, 1, 1.0, MODES)
    decide(engine, 2, 50.0)
    assert engine.phase("vq", "low") is Phase.ARMED


def test_a_rule_for_some_causes_only_fires_where_one_was_found_and_looks_again_where_not() -> None:
    meant = {"cause": ["runaway_codebook", "starvation"]}
    engine = PolicyEngine(load_policy(policy("reset_codes", only=meant, cooldown="5 steps")))
    assert engine.wants_causes([reading(1, 1.0)]) == {"vq"}
    (skip,) = decide(engine, 1, 1.0, ENCODER)
    assert (skip.kind, skip.skip) == (DecisionKind.SKIP, Skip.OTHER_CAUSE)
    assert "runaway_codebook or starvation was not found, but encoder_collapse" in skip.reason
    assert engine.health("vq") is Health.HEALTHY
    assert not engine.is_suspect
    steps = [step for step in range(2, 30) if engine.wants_causes([reading(step, 1.0)]) or decide(engine, step, 1.0)]
    assert steps[0] == 6
    assert [each.kind.value for each in decide(engine, 6, 1.0, RUNAWAY)] == ["alert", "act"]


def test_a_rule_for_some_causes_only_does_not_fire_where_nobody_looks_for_causes() -> None:
    engine = PolicyEngine(load_policy(policy("reset_codes", only={"cause": "starvation"}, cooldown="10 steps")))
    skips = [each for step in range(1, 30) for each in decide(engine, step, 1.0)]
    assert [(each.step, each.skip) for each in skips] == [(step, Skip.OTHER_CAUSE) for step in (1, 11, 21)]
    assert "starvation was not found" in skips[0].reason


def test_what_excuses_a_rule_goes_before_what_it_is_for() -> None:
    both = policy("reset_codes", unless={"cause": "few_modes"}, only={"cause": "starvation"})
    engine = PolicyEngine(load_policy(both))
    assert [each.kind.value for each in decide(engine, 1, 1.0, MODES)] == ["withdrawn"]


def test_an_excuse_is_told_of_a_rule_that_rested_for_want_of_its_own_cause() -> None:
    both = policy("reset_codes", unless={"cause": "few_modes"}, only={"cause": "starvation"}, cooldown="5 steps")
    engine = PolicyEngine(load_policy(both))
    told = [each.kind.value for step in range(1, 6) for each in decide(engine, step, 1.0, ENCODER)]
    assert told == ["skip"]
    assert [each.kind.value for each in decide(engine, 6, 1.0, MODES)] == ["withdrawn"]


def test_state_with_a_withdrawn_rule_survives_json() -> None:
    engine = PolicyEngine(load_policy(policy("reset_codes", unless={"cause": "few_modes"})))
    decide(engine, 1, 1.0, MODES)
    other = PolicyEngine(engine.policy)
    other.load_state_dict(json.loads(json.dumps(engine.state_dict())))
    assert other.state_dict() == engine.state_dict()


def test_what_a_policy_without_causes_decides_does_not_depend_on_them() -> None:
    plain = load_policy(policy("reset_codes", "fallback_tokenizer"))
    knowing, ignorant = PolicyEngine(plain), PolicyEngine(plain)
    for step, value in enumerate([50.0, 1.0, 1.0, 1.0, 50.0, 1.0], start=1):
        seen = decide(knowing, step, value, RUNAWAY, MODES)
        assert [(each.kind, each.action, each.reason) for each in seen] == [
            (each.kind, each.action, each.reason) for each in decide(ignorant, step, value)
        ]


def test_causes_are_wanted_where_something_would_be_told_and_asking_changes_nothing() -> None:
    engine = PolicyEngine(load_policy(BY_CAUSE))
    decide(engine, 1, 50.0)
    before = engine.state_dict()
    assert engine.wants_causes([reading(2, 50.0)]) == frozenset()
    assert engine.wants_causes([reading(2, 1.0)]) == {"vq"}
    assert engine.wants_causes([replace(reading(2, 1.0), causes=(RUNAWAY,))]) == frozenset()
    assert engine.state_dict() == before


def test_a_reading_keeps_its_causes_through_json_and_leaves_out_what_it_cannot_read() -> None:
    seen = replace(reading(7, 3.5), causes=(ENCODER, MODES))
    plain = json.loads(json.dumps(seen.as_record()))
    assert Reading.from_dict(plain) == seen
    plain["causes"] += [{"cause": "gremlins", "confidence": 1.0}, {"confidence": 2}, 3]
    assert Reading.from_dict(plain) == seen
    assert "causes" not in reading(7).as_dict()


def test_a_replay_decides_by_the_causes_that_were_recorded() -> None:
    readings = [reading(1, 50.0), replace(reading(2, 1.0), causes=(ENCODER,)), reading(3, 1.0)]
    (recording,) = recordings_of_events([{"event": "reading", "run": "a", **each.as_record()} for each in readings])
    decided = replay(load_policy(BY_CAUSE), recording)
    assert acts(list(decided.decisions)) == ["decay_commitment", "reset_codes"]
    excused = replay(load_policy(policy("reset_codes", unless={"cause": "encoder_collapse"})), recording)
    assert excused.counts() == {"withdrawn": 1}


def test_mistakes_in_causes_are_told_with_what_is_known() -> None:
    wrong = policy({"reset_codes": None, "on": {"cause": "runaway"}}, unless={"cause": []})
    with pytest.raises(PolicyError) as refused:
        load_policy(wrong)
    text = str(refused.value)
    assert "ladder[0].on.cause: expected a cause, got 'runaway'. Did you mean `runaway_codebook`?" in text
    assert "unless.cause: expected at least one cause, got an empty list" in text


def test_the_same_action_for_two_causes_is_one_rung() -> None:
    twice = [{"reset_codes": None, "on": {"cause": name}} for name in ("starvation", "misplaced_codebook")]
    with pytest.raises(PolicyError, match="Write one rung with all causes"):
        load_policy(policy(*twice))


def test_a_policy_with_causes_survives_being_written_and_is_explained() -> None:
    loaded = load_policy(
        {
            **BY_CAUSE,
            "rules": [{**BY_CAUSE["rules"][0], "unless": {"cause": "few_modes"}, "only": {"cause": "starvation"}}],
        }
    )
    assert load_policy(loaded.model_dump(mode="json", by_alias=True)) == loaded
    told = " ".join(explain_policy(loaded).split())
    assert "decay_commitment, only where the cause found is encoder_collapse (the latents themselves" in told
    assert "with a confidence of 0.8 or more" in told
    assert "It is withdrawn, and that is told once, where the cause found is few_modes" in told
    assert "It fires only where the cause found is starvation" in told


def test_a_critical_ladder_that_ends_with_a_rung_for_some_causes_is_warned_of() -> None:
    ladder = ["reset_codes", {"fallback_tokenizer": None, "on": {"cause": "runaway_codebook"}}]
    findings = lint_policy(load_policy(policy(*ladder, severity="critical")))
    assert "only-for-causes" in [each.kind for each in findings]


def test_a_confidence_that_none_can_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\], got 1.5"):
        found(Cause.STARVATION, 1.5)
