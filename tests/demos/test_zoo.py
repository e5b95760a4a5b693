"""The zoo: which scenarios and arms there are."""

from __future__ import annotations

from collapse_guard.demos import zoo
from collapse_guard.policies import load_policy

PATCHES = zoo.SCENARIOS["start-far-away"]


def test_the_held_out_third_is_the_one_that_was_written_down() -> None:
    expected = "artificial-reshape diffusers-start encodec-replacement four-codes frozen-codebook narrow-cosine"
    assert {*expected.split(), "plain-ema", "residual-4", "residual-healthy", "start-too-small"} == zoo.HELD_OUT
    assert set(zoo.SCENARIOS) >= zoo.HELD_OUT


def test_there_are_as_many_collapses_and_controls_as_the_zoo_promises() -> None:
    assert len(zoo.COLLAPSES) >= 16
    assert len(zoo.CONTROLS) >= 8
    assert len(zoo.SCENARIOS) == len(zoo.COLLAPSES) + len(zoo.FRESH) + len(zoo.CONTROLS)
    fresh_controls = [each for each in zoo.CONTROLS if each.is_fresh]
    assert [each for each in zoo.SCENARIOS.values() if each.part == "fresh"] == [*zoo.FRESH, *fresh_controls]
    assert (len(zoo.FRESH), len(fresh_controls)) == (6, 3)
    assert not any(each.is_fresh for each in zoo.COLLAPSES)
    assert {scenario.family for scenario in zoo.SCENARIOS.values()} <= set(zoo.FAMILIES)


def test_the_blunt_arm_answers_everything_alike() -> None:
    blunt, default = zoo.blunt_policy("any"), load_policy("default")
    assert [each.name for each in blunt.rules] == [each.name for each in default.rules if each.name != "half_repaired"]
    asked = {rule.name: [rung.params.describe() for rung in rule.ladder] for rule in blunt.rules if rule.ladder}
    assert [asked.pop(name) for name in ("stale_moments", "set_back")] == [["restart_optimizer()"]] * 2
    assert {tuple(rungs) for rungs in asked.values()} == {("reset_codes(scope=all, source=reservoir, refill=0.5)",)}


def test_the_random_arm_is_default_with_anything_in_its_ladders() -> None:
    drawn = [zoo.random_policy(str(seed)) for seed in range(20)]
    default = load_policy("default")
    for policy in drawn:
        assert [(rule.name, rule.when) for rule in policy.rules] == [(rule.name, rule.when) for rule in default.rules]
        assert [len(rule.ladder) for rule in policy.rules] == [len(rule.ladder) for rule in default.rules]
    actions = {rung.action for policy in drawn for rule in policy.rules for rung in rule.ladder}
    broad = {"reset_codes", "decay_commitment", "upkeep", "fallback_tokenizer", "take_over_updates"}
    assert actions == broad | {"alert", "restart_optimizer"}
    kept = [
        [rule.ladder for rule in policy.rules if rule.name in ("stale_moments", "set_back")]
        for policy in (default, *drawn)
    ]
    assert all(each == kept[0] for each in kept)
    assert zoo.random_policy("1") == zoo.random_policy("1")
