"""Unit tests of policies as data: the notation, the course of a case, and the presets' own tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.ceiling import perplexity_ceiling
from collapse_guard.policies import (
    Case,
    Policy,
    PolicyError,
    load_cases,
    load_policy,
    preset_names,
    preset_tests,
    try_case,
)
from tests.checkout import ROOT
from tests.policies.series import policy, rule

HEAD = "policy: default\ntests:\n  - name: a\n    codes: 4\n    "
RESETS = policy(rule(ladder=["reset_codes", "alert"], verify={"within": "20 steps"}))


def case(perplexity: Any, expect: dict[str, Any], **fields: Any) -> Case:
    """A case on 256 codes with a reading every 10 steps, as YAML would hold it."""
    plain = {"name": "it", "codes": 256, "every": "10 steps", "series": perplexity, "expect": expect}
    return Case.model_validate(plain | fields)


def differences(perplexity: Any, expect: dict[str, Any], tested: Policy = RESETS, **fields: Any) -> list[str]:
    return [str(each) for each in try_case(tested, case(perplexity, expect, **fields))]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_ships_with_tests_that_it_passes(name: str) -> None:
    tested, cases = load_cases(preset_tests(name))
    assert tested == load_policy(name)
    assert {each.name: try_case(tested, each, perplexity_ceiling) for each in cases} == {
        each.name: [] for each in cases
    }


@pytest.mark.parametrize("name", preset_names())
def test_the_tests_of_a_preset_try_every_rule_and_a_codebook_that_is_left_alone(name: str) -> None:
    tested, cases = load_cases(preset_tests(name))
    assert any(case.expect == {} and case.elsewhere == "nothing" for case in cases)
    told = [words.split() for case in cases for decisions in case.expect.values() for words in decisions]
    assert {rule for rule, kind, *_ in told if kind == "alert"} == {rule.name for rule in tested.rules}


def test_a_test_file_is_no_preset_and_a_stranger_has_none() -> None:
    assert not any("test" in name for name in preset_names())
    with pytest.raises(LookupError, match=r"got 'defualt'\. Did you mean `default`\?"):
        preset_tests("defualt")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", [1.0]),
        (0.5, [0.5]),
        ("1x3 2", [1.0, 1.0, 1.0, 2.0]),
        ("60..2x3", [60.0, 31.0, 2.0]),
        ("_x2 -1.5e1", [None, None, -15.0]),
        ("1 nanx2 nan", [1.0, math.nan, math.nan, math.nan]),
        (".5x1", [0.5]),
    ],
)
def test_a_series_in_compact_notation(text: Any, values: list[float | None]) -> None:
    assert list(case(text, {}).series["perplexity"]) == values


@pytest.mark.parametrize(
    "text", ["", "x3", "1x", "1x0", "60..2", "60..2x1", "1,2", "1x9999999", "1x100000 1", True, [1], "1x3_"]
)
def test_what_is_no_series_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        case(text, {})


@given(st.text(alphabet="0123456789.x_ -e", max_size=12))
def test_any_text_is_a_series_or_a_mismatch(text: str) -> None:
    try:
        assert len(case(text, {}).series["perplexity"]) > 0
    except ValueError as error:
        assert "expected" in str(error)  # noqa: PT017 - either way is right


def test_a_policy_that_counts_epochs_is_tested_with_epochs(tmp_path: Path) -> None:
    policy_ = {"version": 1, "sample": {"settle": 0}, "rules": [rule(ladder=["alert"], cooldown="2 epochs")]}
    told = {"10": ["collapsed alert", "collapsed act alert"], "20": "collapsed outcome", "30": "collapsed skip"}
    one: dict[str, Any] = {"name": "a", "codes": 256, "every": "10 steps", "series": "1 100 1x9", "expect": told}
    path = tmp_path / "mine.test.yaml"
    path.write_text(yaml.safe_dump({"policy": policy_, "tests": [one]}))
    with pytest.raises(
        PolicyError, match=r"mine.test.yaml:12:3: tests\[0\]: expected an `epoch`, got nothing\. .* 100 steps"
    ):
        load_cases(path)
    one |= {
        "epoch": "30 steps",
        "expect": told | {"70": ["collapsed alert", "collapsed act"]},
    }  # step 61 begins the third
    path.write_text(yaml.safe_dump({"policy": policy_, "tests": [one]}))
    loaded, (case_,) = load_cases(path)
    assert try_case(loaded, case_) == []


def test_a_case_that_holds_has_no_differences() -> None:
    expect = {
        "10": None,
        "30": ["collapsed alert", "collapsed act"],
        "40": [],
        "50": ["collapsed outcome reset_codes failed undone", "collapsed act alert"],
        "70": ["collapsed outcome alert failed", "collapsed exhausted"],
    }
    assert differences("9x2 1x5", expect, elsewhere="anything") == []


def test_differences_are_told_in_the_order_of_the_steps() -> None:
    told = differences("9x2 1x2", {"15": [], "20": "collapsed alert", "30": ["collapsed act reset_codes"]})
    assert told == [
        "- step 15: nothing (there is no reading at this step; the nearest are at 10 and 20)",
        "- step 20: collapsed alert",
        "+ step 30: collapsed alert (perplexity 1.00 < 1.5 for 1 reading)",
    ]


def test_elsewhere_nothing_may_happen_unless_the_case_allows_it() -> None:
    assert [each.partition(" (")[0] for each in differences("1", {})] == [
        "+ step 10: collapsed alert",
        "+ step 10: collapsed act reset_codes",
    ]
    assert differences("1", {}, elsewhere="anything") == []


def test_one_decision_meets_one_expectation() -> None:
    twice = ["collapsed alert", "collapsed alert", "collapsed act"]
    assert differences("1", {"10": twice}) == ["- step 10: collapsed alert"]
    assert differences("1", {"10": ["collapsed a"]}, elsewhere="anything")[0] == "- step 10: collapsed a"


def test_an_action_changes_the_series_until_it_is_undone() -> None:
    recovered = {"10": ["collapsed alert", "collapsed act"], "20": ["collapsed outcome reset_codes recovered"]}
    assert differences("1", recovered, after={"reset_codes": "5x3"}) == []
    fades = {
        "10": ["collapsed alert", "collapsed act reset_codes"],
        "20": [],
        "30": ["collapsed outcome", "collapsed act alert"],
    }
    assert differences("1x4 9", fades, after={"reset_codes": "1.2x2"}, elsewhere="anything") == []


def test_a_case_may_name_its_codebook() -> None:
    deep = policy(rule(codebooks="rvq.1"))
    assert differences("1", {}, deep) == []
    assert differences("1", {"10": "collapsed alert"}, deep, codebook="rvq.1") == []


def test_what_is_asked_for_at_the_end_can_be_expected() -> None:
    ends = policy(rule(ladder=["alert"], on_exhausted="stop_training"))
    expect = {"10": ["collapsed alert", "collapsed act", "collapsed outcome", "collapsed exhausted stop_training"]}
    assert differences("1", expect, ends, refuses=["alert"]) == []
    expect["10"][-1] = "collapsed exhausted alert"
    assert differences("1", expect, ends, refuses=["alert"])[0] == "- step 10: collapsed exhausted alert"


def test_a_refused_action_changes_nothing() -> None:
    words = ["alert", "act reset_codes", "outcome reset_codes failed", "act alert"]
    expect = {"10": [f"collapsed {each}" for each in words]}
    assert differences("1", expect, refuses=["reset_codes"], after={"reset_codes": 90}) == []


def test_without_a_cadence_readings_come_as_the_policy_takes_them() -> None:
    mine = policy(rule(hold=2))
    quiet = Case.model_validate({"name": "it", "codes": 9, "series": "9x3 1x2", "expect": {"170": "collapsed alert"}})
    assert try_case(mine, quiet) == []


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("tests: []", "1:1: policy: expected a value, got nothing. Add `policy: default`."),
        ("policy: 3\ntests: []", "1:9: policy: expected a preset, a path, or a policy, got 3."),
        (
            HEAD + "series: {perplexty: 1}\n    expect: {}",
            "5:14: tests[0].series.perplexty: expected a field of a reading, got 'perplexty'.",
        ),
        (
            HEAD + "series: 1 2x\n    expect: {soon: []}",
            "5:13: tests[0].series: expected a series such as",
        ),
        (
            HEAD + "series: 1 2x\n    expect: {soon: []}",
            "6:14: tests[0].expect.soon: expected a step, got 'soon'.",
        ),
        (
            HEAD + "series: 1\n    expect: {20: {a: b}}\n    after: {pray: 1}",
            "6:18: tests[0].expect.20: expected a list of decisions, got a mapping (a).",
        ),
        (
            HEAD + "series: 1\n    expect: {20: {a: b}}\n    after: {pray: 1}",
            "7:13: tests[0].after.pray: expected an action, got 'pray'.",
        ),
        (
            HEAD + "series: 1\n    expect: {}\n    refuses: [pray]",
            "7:15: tests[0].refuses[0]: expected an action, got 'pray'.",
        ),
        (
            HEAD + "series: 1\n    after: {reset_codes: {usage: x}}\n    expect: 3",
            "6:34: tests[0].after.reset_codes.usage: expected a series",
        ),
        ("policy: default\ntests: !!python/object:os.system []", "2:8: YAML: expected text, a number"),
        ("policy: gone.yaml\ntests: [{name: a, codes: 4, series: 1, expect: {}}]", "gone.yaml: file: expected a file"),
        ("", "1:1: "),
    ],
)
def test_a_mistake_in_a_file_of_tests_is_told_with_its_place(tmp_path: Path, written: str, expected: str) -> None:
    path = tmp_path / "mine.test.yaml"
    path.write_text(written + "\n")
    with pytest.raises(PolicyError) as caught:
        load_cases(path)
    assert any(expected in str(problem) for problem in caught.value.problems), str(caught.value)


def test_the_readme_tests_the_policy_of_the_readme(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        "version: 1\n" + readme.partition("```yaml\nversion: 1\n")[2].partition("```")[0]
    )
    shown = readme.partition("### Test a policy")[2].partition("```text\n")[2].partition("```")[0]
    (tmp_path / "mine.test.yaml").write_text(shown)
    assert yaml.safe_load(shown)["tests"]
    tested, cases = load_cases(tmp_path / "mine.test.yaml")
    assert [try_case(tested, each, perplexity_ceiling) for each in cases] == [[]]
