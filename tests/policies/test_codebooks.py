"""`codebooks:` decides where a rule exists at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import Health, Phase, Policy, load_policy
from tests.policies.series import Run, policy, reading, rule, series
from tests.policies.strategies import Line, lines, policies, readings_of, refuses_some
from tests.policies.test_resume import resumed


@pytest.mark.parametrize(
    ("patterns", "name", "applies"),
    [
        ("rvq.0", "rvq.0", True),
        ("rvq.0", "rvq.00", False),
        ("rvq.*", "rvq.7", True),
        ("rvq.*", "rvq.deep.7", True),
        ("rvq.[1-3]", "rvq.2", True),
        ("rvq.[!0]", "rvq.0", False),
        ("RVQ.*", "rvq.0", False),
        (["a", "*.1"], "rvq.1", True),
        (["a", "*.1"], "rvq.2", False),
        ("*", "", True),
    ],
)
def test_a_pattern_matches_the_whole_name(patterns: Any, name: str, applies: bool) -> None:
    assert policy(rule(codebooks=patterns)).rules[0].applies_to(name) is applies


def test_a_rule_is_judged_only_where_it_exists() -> None:
    run = Run(policy(rule("coarse", "perplexity < 5", codebooks="rvq.0"), rule("fine", codebooks="rvq.[!0]")))
    run.feed(
        [reading(10, 3.0, "rvq.0"), reading(10, 3.0, "rvq.1"), reading(20, 1.0, "rvq.0"), reading(20, 1.0, "rvq.1")]
    )
    assert run.told == ["10 coarse alert", "20 fine alert"]
    assert [decision.codebook for decision in run.decisions] == ["rvq.0", "rvq.1"]


def test_a_codebook_without_any_rule_is_watched_and_healthy() -> None:
    run = Run(policy(rule(codebooks="elsewhere"))).feed(series([1.0] * 3))
    assert run.decisions == []
    assert run.engine.health("vq") is Health.HEALTHY
    assert not run.engine.is_suspect


def test_a_rule_inhibits_only_where_it_exists() -> None:
    worse = rule("worse", codebooks="a", inhibits=["mild"])
    run = Run(policy(worse, rule("mild", "perplexity < 5"))).feed([reading(10, 1.0, "a"), reading(10, 1.0, "b")])
    assert run.told == ["10 worse alert", "10 mild skip inhibited", "10 mild alert"]


def test_a_rule_that_left_a_codebook_is_forgotten_there() -> None:
    engine = Run(policy(rule())).feed([reading(10, 1.0, "a"), reading(10, 1.0, "b")]).engine
    narrower = resumed(engine, policy(rule(codebooks="b"))).engine
    assert [narrower.phase(name, "collapsed") for name in "ab"] == [Phase.ARMED, Phase.FIRING]
    assert narrower.health("a") is Health.HEALTHY


def test_one_pattern_means_the_same_as_a_list_of_it() -> None:
    assert policy(rule(codebooks="a")).fingerprint() == policy(rule(codebooks=["a"])).fingerprint()
    assert policy(rule()).fingerprint() == policy(rule(codebooks="*")).fingerprint()


@given(policies(), lines, st.sampled_from("abc"))
def test_a_rule_confined_to_a_codebook_decides_there_as_if_it_were_everywhere(
    policy: Policy, script: list[Line], name: str
) -> None:
    budget = policy.budget.model_copy(update={"interventions": 10**6, "refill_after": None})
    policy = policy.model_copy(update={"budget": budget})  # what is common to the run may differ
    confined = load_policy(
        policy.model_dump(mode="json", by_alias=True)
        | {"rules": [each.model_dump(mode="json", by_alias=True) | {"codebooks": [name]} for each in policy.rules]}
    )
    readings = readings_of(script)
    told = Run(confined, refuses_some).feed(readings).decisions
    alone = Run(policy, refuses_some).feed(each for each in readings if each.codebook == name).decisions
    rest = [each for each in told if each.codebook != name]
    assert all(each.rule == "" for each in rest)
    assert repr([each for each in told if each.codebook == name]) == repr(alone)
