"""Warnings: each on the policy it is about, and none on the presets or on policies that only look alike."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import Finding, lint_policy, load_policy, policy_text, position_in, preset_names
from tests.policies.series import Run, policy, reading, rule

CLEAR = {"when": "perplexity >= 10", "for": 3}


def found(*rules: dict[str, Any], codes: int | None = None, **fields: Any) -> list[str]:
    """Kind, rule and place of every warning."""
    findings = lint_policy(policy(*rules, **fields), codes)
    return [f"{each.kind} {each.rule or '-'} {'.'.join(map(str, each.place))}" for each in findings]


@pytest.mark.parametrize("name", preset_names())
def test_the_presets_are_clean(name: str) -> None:
    assert lint_policy(load_policy(name)) == []


@pytest.mark.parametrize(
    ("when", "codes", "expected"),
    [
        ("perplexity < 5", 4, "always-fires"),
        ("perplexity <= 4", 4, "always-fires"),
        ("perplexity < 4", 4, None),
        ("perplexity < 1", None, "never-fires"),
        ("perplexity > 300", 256, "never-fires"),
        ("perplexity > 300", None, None),
        ("usage < 2", None, "always-fires"),
        ("usage > 1", None, "never-fires"),
        ("tokens < 256", None, "never-fires"),
        ("K >= 8192", 512, "never-fires"),
        ("K >= 8192", 8192, "always-fires"),
        ("K >= 8192", None, None),
        (["perplexity < 5", "perplexity > 6"], None, "never-fires"),
        (["perplexity < 5", "perplexity >= 5"], None, "never-fires"),
        (["perplexity <= 5", "perplexity >= 5"], None, None),
        (["perplexity <= 5", "perplexity >= 5", "perplexity != 5"], None, "never-fires"),
        ({"any": ["perplexity < 5", "perplexity >= 5"]}, None, "always-fires"),
        ({"any": ["usage > 1", "top_share > 0.9"]}, None, None),
        (["perplexity < 5", "perplexity_ratio < 0.25"], 4, None),
        ("loss > 1e9", None, None),
    ],
)
def test_thresholds_out_of_reach(when: Any, codes: int | None, expected: str | None) -> None:
    assert found(rule(when=when), codes=codes) == ([f"{expected} collapsed when"] if expected else [])


def test_a_rule_that_is_never_over() -> None:
    low = rule(when="perplexity < 2", clear=CLEAR)
    assert found(low, codes=8) == ["never-clears collapsed clear.when"]
    assert found(low, codes=256) == []


@pytest.mark.parametrize(
    ("clear", "expected"),
    [
        ("perplexity >= 3", True),
        ("perplexity < 5", False),  # never over, which is said instead
        ("perplexity >= 5", False),
        ("usage > 0.5", False),
        ({"any": ["perplexity > 9", "perplexity > 4"]}, True),
    ],
)
def test_a_rule_that_clears_where_it_fires(clear: Any, expected: bool) -> None:
    kinds = found(rule(when="perplexity < 5", clear={"when": clear}))
    assert ("clears-where-it-fires collapsed clear.when" in kinds) is expected


@pytest.mark.parametrize(
    ("within", "settle", "expected"),
    [
        ("40 steps", 1, False),
        ("39 steps", 1, True),
        ("39 steps", 0, False),
        ("3 readings", 1, False),
        ("2 readings", 1, True),
        ("1 epoch", 1, False),
    ],
)
def test_deadlines_before_success_can_be_seen(within: str, settle: int, expected: bool) -> None:
    one = rule(clear=CLEAR, verify={"within": within}, ladder=["alert"])
    assert found(one, sample={"settle": settle}) == (["short-verification collapsed verify.within"] if expected else [])
    own = rule(clear=CLEAR, ladder=[{"alert": None, "within": within}])
    assert found(own, sample={"settle": settle}) == (
        ["short-verification collapsed ladder.0.within"] if expected else []
    )


def test_a_short_verification_names_the_time_that_it_takes() -> None:
    (finding,) = lint_policy(policy(rule(clear=CLEAR, verify={"within": "20 steps"}, ladder=["alert"])))
    assert str(finding) == (
        "rule 'collapsed': 20 steps are over before success can be seen: it takes 3 clear readings, 10 steps apart. "
        "Write at least `30 steps`, or a shorter `clear.for`. [short-verification]"
    )


def test_a_critical_ladder_ends_with_a_last_resort() -> None:
    assert found(rule(severity="critical", ladder=["alert", "reset_codes"])) == ["no-last-resort collapsed ladder.1"]
    assert found(rule(severity="critical", ladder=["reset_codes", "fallback_tokenizer"])) == []
    assert found(rule(severity="warning", ladder=["reset_codes"])) == []
    assert found(rule(severity="critical")) == []


def test_rules_that_another_one_keeps_from_firing() -> None:
    wide, narrow = rule("wide", "perplexity < 5"), rule("narrow", ["perplexity < 1.5", "usage < 0.1"])
    assert found(wide | {"inhibits": ["narrow"]}, narrow) == ["shadowed narrow when"]
    assert found(wide | {"inhibits": ["narrow"], "for": 3}, narrow) == []
    assert found(wide, narrow | {"inhibits": ["wide"]}) == []
    assert found(wide, narrow) == ["doubled narrow when"]
    assert found(wide, rule("same", "perplexity < 5")) == ["doubled wide when"]
    assert found(wide, rule("other", "usage < 0.1")) == []


@given(first=st.floats(1, 9), second=st.floats(1, 9), values=st.lists(st.floats(1, 9), min_size=1, max_size=30))
def test_a_shadowed_rule_never_fires(first: float, second: float, values: list[float]) -> None:
    """What the warning claims, on the engine itself."""
    mine = policy(rule("one", f"perplexity < {first}", inhibits=["two"]), rule("two", f"perplexity < {second}"))
    shadowed = "shadowed" in {finding.kind for finding in lint_policy(mine)}
    assert shadowed is (second <= first) or not second > 1
    run = Run(mine).feed(reading(10 * index, value) for index, value in enumerate(values, start=1))
    if shadowed:
        assert not any(" two alert" in told for told in run.told)


def test_readings_too_small_for_the_codebook() -> None:
    dead = rule(ladder=[{"reset_codes": {"scope": "dead"}}])
    assert found(dead, codes=256) == ["few-tokens - sample.min_tokens"]
    assert found(dead) == found(rule(), codes=256) == found(dead, codes=64) == []
    assert found(rule(when="usage < 0.1"), codes=256) == ["few-tokens - sample.min_tokens"]
    assert found(dead, codes=256, sample={"min_tokens": 767}) == []
    (finding,) = lint_policy(policy(dead), 256)
    assert "37% of 256 codes as dead" in finding.message
    assert finding.hint == "Write `min_tokens: 767` or more."


def test_a_condition_too_long_to_compare_is_left_alone() -> None:
    long = [{"any": [f"perplexity < {n}", f"usage < 0.{n}"]} for n in range(1, 10)]
    assert found(rule(when=long)) == []


def test_a_finding_has_its_line() -> None:
    text = "version: 1\nrules:\n  - {name: a, when: usage < 0.1}\n  - name: b\n    when: usage > 1\n"
    finding = Finding(kind="never-fires", rule="b", place=("when",), message="", hint="")
    assert position_in(text, finding) == (5, 11)
    general = Finding(kind="few-tokens", rule="", place=("sample", "min_tokens"), message="", hint="")
    assert position_in(text, general) == (1, 1)
    assert position_in(policy_text("default") or "", general) == (14, 15)
    gone = Finding(kind="never-fires", rule="c", place=("when",), message="", hint="")
    assert position_in(text, gone) == (None, None)
