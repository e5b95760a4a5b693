from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from collapse_guard.policies import (
    Alert,
    Budget,
    Condition,
    DecayCommitment,
    Duration,
    Policy,
    PolicyError,
    ResetCodes,
    Rung,
    Sample,
    Verify,
    load_policy,
    preset_names,
)
from tests.policies.series import policy, rule
from tests.policies.test_loader import DATA


def test_a_policy_says_little_and_means_a_lot() -> None:
    loaded = load_policy({"version": 1, "rules": [rule()]})
    assert (loaded.name, loaded.mode, loaded.warmup_steps, loaded.source) == ("custom", "act", 0, "<mapping>")
    assert loaded.budget == Budget(interventions=20, refill_after=Duration(2000, "steps"))
    assert (loaded.sample.every_steps, loaded.sample.when_suspect_steps) == (50, 10)
    assert (loaded.sample.min_tokens, loaded.sample.settle, loaded.sample.dead_below) == (256, 1, 0.1)
    (only,) = loaded.rules
    assert (only.for_, only.severity, only.inhibits, only.ladder) == (1, "warning", (), ())
    assert (only.cooldown.for_, only.verify) == (Duration(0, "steps"), Verify(within=Duration(200, "steps")))
    assert (only.clear_when, only.clear_for) == (Condition.parse("perplexity >= 1.5"), 1)


def test_clear_is_derived_from_when_and_for_unless_it_is_given() -> None:
    (derived,) = policy(rule(when=["usage < 0.1", "loss > 5"], hold=4)).rules
    (given,) = policy(rule(clear={"when": "perplexity > 9", "for": 2}, hold=4)).rules
    assert (str(derived.clear_when), derived.clear_for) == ("usage >= 0.1 or loss <= 5", 4)
    assert (str(given.clear_when), given.clear_for) == ("perplexity > 9", 2)


def test_a_suspect_codebook_is_never_read_less_often_than_a_healthy_one() -> None:
    assert Sample(every=Duration(5, "steps")).when_suspect_steps == 5


@pytest.mark.parametrize(
    ("written", "rung"),
    [
        ("alert", Rung(action="alert", params=Alert())),
        ("reset_codes", Rung(action="reset_codes", params=ResetCodes())),
        ({"reset_codes": None}, Rung(action="reset_codes", params=ResetCodes())),
        ({"reset_codes": {"scope": "all"}}, Rung(action="reset_codes", params=ResetCodes(scope="all"))),
        (
            {"decay_commitment": {"factor": 0.5}, "repeat": 3, "within": "9 steps"},
            Rung(action="decay_commitment", params=DecayCommitment(factor=0.5), repeat=3, within=Duration(9, "steps")),
        ),
    ],
)
def test_a_rung_may_be_written_short_or_long(written: Any, rung: Rung) -> None:
    assert policy(rule(ladder=[written])).rules[0].ladder == (rung,)


@pytest.mark.parametrize("source", [*preset_names(), DATA / "everything.good.yaml"])
def test_a_policy_survives_being_written_and_read(source: Any) -> None:
    loaded = load_policy(source)
    written = json.loads(loaded.model_dump_json(by_alias=True))
    again = load_policy(written)
    assert again.with_source(loaded.source) == loaded
    assert again.fingerprint() == loaded.fingerprint()


def test_the_fingerprint_is_of_the_meaning() -> None:
    short = policy(rule(ladder=["reset_codes"]))
    long = policy(rule(when=[" perplexity<1.50"], ladder=[{"reset_codes": {"scope": "dead"}}], hold=1))
    assert short.fingerprint() == long.fingerprint()
    assert len(short.fingerprint()) == 12
    assert short.fingerprint() != short.with_mode("observe").fingerprint()


def test_another_mode_is_another_policy() -> None:
    acting = load_policy("default")
    observing = acting.with_mode("observe")
    assert (acting.mode, observing.mode, observing.source) == ("act", "observe", "default")
    assert observing.rules == acting.rules


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_policy("default").mode = "observe"


def test_the_json_schema_knows_the_language() -> None:
    schema = Policy.model_json_schema(by_alias=True)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["rules"]["minItems"] == 1
    assert schema["anyOf"] == [{"required": ["rules"]}, {"required": ["extends"]}]
    assert schema["$defs"]["Rule"]["required"] == ["name"]
    assert list(schema["$defs"]["Rule"]["properties"])[:5] == ["name", "codebooks", "stage", "when", "for"]
    assert schema["$defs"]["Verify"]["properties"]["within"]["pattern"] == r"^\d+ *(steps?|readings?|epochs?)$"


def test_models_check_themselves_without_the_loader() -> None:
    with pytest.raises(ValueError, match="no circle of inhibition"):
        Policy.model_validate({"version": 1, "rules": [rule("a", inhibits=["b"]), rule("b", inhibits=["a"])]})
    with pytest.raises(ValueError, match="expected a known key, got 'scop'"):
        Rung.model_validate({"reset_codes": {"scop": "all"}})


def test_a_long_chain_of_inhibition_is_no_circle() -> None:
    names = [f"rule{index}" for index in range(200)]
    rules = [rule(name, inhibits=[following]) for name, following in pairwise(names)]
    assert len(policy(*rules, rule(names[-1])).rules) == 200
    with pytest.raises(PolicyError, match=r"rule0 -> rule1 -> rule2"):
        policy(*rules, rule(names[-1], inhibits=[names[0]]))
