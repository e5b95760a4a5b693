"""Rules on evaluation: whose readings they see, and what they share with rules on training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from collapse_guard.policies import (
    Phase,
    PolicyEngine,
    PolicyError,
    Reading,
    explain_policy,
    lint_policy,
    load_cases,
    load_policy,
    policy_json_schema,
    replay,
    taken_together,
    try_case,
)
from collapse_guard.policies import recordings_of_events as recordings
from tests.policies.series import Run, policy, reading, rule, series

FIX = {"eval_fix": {"method": "assignment"}}
RESET = {"reset_codes": {"scope": "all"}}


def shown(step: int, perplexity: float = 100.0, to_train: float = 1.0, **fields: Any) -> Reading:
    """A reading in evaluation."""
    return reading(step, perplexity, stage="eval", eval_to_train=to_train, **fields)


def on_eval(name: str = "apart", when: Any = "eval_to_train < 0.5", **fields: Any) -> dict[str, Any]:
    return rule(name, when, stage="eval", **fields)


def test_each_rule_sees_the_readings_of_its_own_stage_alone() -> None:
    low = policy(rule("low", "perplexity < 2"), on_eval("low_there", "perplexity < 2"))
    run = Run(low).feed([reading(10, 1.0), shown(15, 100.0), reading(20, 1.0), shown(25, 1.0)])
    assert run.told == ["10 low alert", "25 low_there alert"]


def test_a_policy_without_rules_on_evaluation_is_left_bit_equal_by_its_readings() -> None:
    engine = PolicyEngine(policy(rule(hold=2, ladder=[RESET])))
    engine.observe(reading(10, 1.0))
    before = engine.state_dict()
    assert engine.observe(shown(15, 1.0, 0.01)) == ()
    assert engine.state_dict() == before


def test_an_intervention_by_a_rule_on_evaluation_is_verified_at_the_next_validation() -> None:
    apart = policy(on_eval(ladder=[FIX], clear={"when": "eval_to_train >= 0.8"}, verify={"within": "2 readings"}))
    steps = [shown(45, 3.0, 0.1), *series([100.0] * 4, start=50), shown(90, 90.0, 0.9)]
    assert Run(apart).feed(steps).told == [
        "45 apart alert",
        "45 apart act #1 eval_fix",
        "90 apart outcome #1 eval_fix recovered",
    ]


def test_readings_in_training_are_no_chance_missed_for_a_rule_on_evaluation() -> None:
    apart = policy(
        on_eval(ladder=[FIX], clear={"when": "eval_to_train >= 0.8"}, verify={"within": "2 readings"}),
        sample={"settle": 3, "min_tokens": 256},
    )
    few = [reading(step, 100.0, tokens=10) for step in (50, 60, 70, 80)]
    told = Run(apart).feed([shown(45, 3.0, 0.1), *few, shown(90, 3.0, 0.1), shown(135, 3.0, 0.1)]).told
    assert [each for each in told if "apart" in each] == [
        "45 apart alert",
        "45 apart act #1 eval_fix",
        "135 apart outcome #1 eval_fix failed, rolled back",
        "135 apart exhausted",
    ]


def test_a_rule_on_training_keeps_one_on_evaluation_quiet_while_it_is_at_work() -> None:
    both = policy(rule("collapsed", "perplexity < 1.5", inhibits=["apart"]), on_eval())
    run = Run(both).feed([reading(10, 1.0), shown(15, 1.0, 0.1), reading(20, 100.0), shown(25, 1.0, 0.1)])
    assert run.told == ["10 collapsed alert", "15 apart skip inhibited", "20 collapsed cleared", "25 apart alert"]


def test_only_one_intervention_is_open_on_a_codebook_whatever_the_stage() -> None:
    both = policy(rule("low", "perplexity < 2", ladder=[RESET]), on_eval(ladder=[FIX]))
    run = Run(both).feed([shown(5, 3.0, 0.1), reading(10, 1.0)])
    assert run.told == ["5 apart alert", "5 apart act #1 eval_fix", "10 low alert", "10 low skip occupied"]


def test_what_a_rule_on_evaluation_waits_for_does_not_make_readings_in_training_dense() -> None:
    engine = PolicyEngine(policy(on_eval(hold=2, ladder=[FIX])))
    engine.observe(reading(10))
    engine.observe(shown(15, 3.0, 0.1))
    assert engine.phase("vq", "apart") is Phase.PENDING
    assert not engine.is_suspect


def test_rel_and_trend_compare_evaluation_with_evaluation() -> None:
    fallen = policy(on_eval("fallen", "rel(perplexity) < 0.5"), rule("fell", "rel(perplexity) < 0.5"))
    run = Run(fallen).feed([reading(10, 200.0), shown(15, 60.0), shown(16, 60.0), reading(20, 180.0), shown(25, 20.0)])
    assert run.told == ["25 fallen alert"]


def test_too_few_tokens_in_evaluation_are_said_once_and_apart() -> None:
    told = Run(policy(on_eval(), sample={"min_tokens": 100})).feed(
        [shown(5, 1.0, 0.1, tokens=10), reading(10), shown(15, 1.0, 0.1, tokens=10), shown(25, 1.0, 0.1)]
    )
    assert told.told == ["5 - skip few_tokens", "25 apart alert"]
    assert told.decisions[0].reason.startswith("in evaluation: 10 tokens")


def test_the_state_goes_on_where_it_stood() -> None:
    given = policy(on_eval(hold=3, ladder=[FIX]), on_eval("fallen", "rel(perplexity) < 0.5"))
    whole, broken = Run(given), Run(given)
    steps = [shown(5, 60.0, 0.1), reading(10), shown(15, 60.0, 0.1), shown(25, 20.0, 0.1)]
    whole.feed(steps)
    broken.feed(steps[:2])
    resumed = Run(given)
    resumed.engine.load_state_dict(broken.engine.state_dict())
    resumed.feed(steps[2:])
    assert broken.told + resumed.told == whole.told


def test_levels_of_one_step_are_bundled_by_stage() -> None:
    levels = [reading(10, codebook=f"rvq.{level}", group="rvq", level=level) for level in (0, 1)]
    there = [shown(10, codebook=f"rvq.{level}", group="rvq", level=level) for level in (0, 1)]
    assert list(taken_together([*levels, *there])) == [tuple(levels), tuple(there)]


def test_a_stage_that_does_not_exist_is_an_error_with_its_place() -> None:
    with pytest.raises(PolicyError, match="stage: expected `train` or `eval`, got 'test'"):
        load_policy({"version": 1, "rules": [rule("low", "perplexity < 2", stage="test")]})


def test_lint_warns_of_what_only_evaluation_knows_and_not_of_rules_of_another_stage() -> None:
    found = lint_policy(policy(rule("blind", "eval_to_train < 0.5")))
    assert [each.kind for each in found] == ["wrong-stage"]
    apart = policy(rule("low", "perplexity < 2"), on_eval("low_there", "perplexity < 2"))
    assert lint_policy(apart) == []
    both_there = policy(on_eval("a", "perplexity < 2"), on_eval("b", "perplexity < 3"))
    assert [each.kind for each in lint_policy(both_there)] == ["doubled"]


def test_lint_warns_of_causes_that_are_looked_for_in_the_other_stage_alone() -> None:
    shift, modes = {"cause": ["eval_shift", "encoder_collapse"]}, {"cause": "few_modes"}
    reset: dict[str, Any] = {"reset_codes": {}}
    blind = policy(rule("blind", "perplexity < 2", ladder=[{**reset, "on": shift}, reset], unless=modes))
    (found,) = lint_policy(blind)
    assert (found.kind, found.rule, found.place) == ("cause-of-other-stage", "blind", ("ladder", 0, "on"))
    assert found.message == "eval_shift is never found in readings of stage train, which this rule looks at."
    there = policy(on_eval("there", "perplexity < 2", ladder=[{**reset, "on": shift}, reset], unless=modes))
    assert [(each.kind, each.place) for each in lint_policy(there)] == [
        ("cause-of-other-stage", ("unless",)),
        ("cause-of-other-stage", ("ladder", 0, "on")),
    ]


def test_the_stage_is_in_the_schema_and_in_plain_english() -> None:
    assert policy_json_schema()["$defs"]["Rule"]["properties"]["stage"]["enum"] == ["train", "eval"]
    text = " ".join(explain_policy(policy(on_eval(ladder=[FIX]))).split())
    assert "It looks at evaluation alone" in text
    assert "nothing that it writes" in text.replace("keep ", "")


def test_a_case_may_be_about_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "apart.test.yaml"
    file.write_text(
        "policy: default\ntests:\n"
        "  - name: evaluation alone is collapsed, and the remedy holds\n    stage: eval\n    codes: 64\n"
        "    every: 45 steps\n"
        "    series: {eval_to_train: 0.1x2, perplexity: 3x2, dead_fraction: 0.9}\n"
        "    after: {eval_fix: {eval_to_train: 1x2, perplexity: 40x2}}\n"
        "    expect:\n      45: [evaluation_only alert, evaluation_only act eval_fix]\n"
        "      90: [evaluation_only outcome eval_fix recovered]\n"
    )
    given, cases = load_cases(file)
    assert [try_case(given, case) for case in cases] == [[]]


def test_a_replay_says_that_a_recording_has_no_evaluation() -> None:
    record = {"event": "reading", "run": "a", **reading(10).as_record()}
    (recording,) = recordings([{"event": "attached", "run": "a"}, record])
    assert replay(policy(on_eval()), recording).idle() == ("apart sees nothing here: no reading is of stage eval",)
    there = {"event": "reading", "run": "a", **shown(20, 3.0, 0.1).as_record()}
    (recording,) = recordings([{"event": "attached", "run": "a"}, record, there])
    assert replay(policy(on_eval()), recording).counts() == {"alert": 1}
