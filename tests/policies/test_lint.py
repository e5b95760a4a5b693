"""Warnings: each on the policy it is about, and none on the presets or on policies that only look alike."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.ceiling import perplexity_ceiling
from collapse_guard.policies import Finding, lint_policy, load_policy, policy_text, position_in, preset_names
from collapse_guard.statistics import dead_fraction, perplexity, top_share, usage
from tests.policies.series import Run, policy, reading, rule, series

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
        (["perplexity < 5", "perplexity_ratio < 0.25"], 16, None),
        (["perplexity < 5", "perplexity_ratio < 0.25"], 4, "never-fires"),  # one code of four is a quarter
        ("usage < 0.1", 8, "never-fires"),
        ("dead_fraction > 0.9", 8, "never-fires"),
        ("top_share >= 0.125", 8, "always-fires"),
        ("perplexity_ratio < 5", None, "always-fires"),  # meant as a percentage, or as a perplexity
        ("rel(perplexity) < 1.2", None, "always-fires"),
        ("rel(loss) < 0.9", None, "never-fires"),
        ("rel(loss) > 1.1", None, None),
        ("trend(perplexity, over: 50 readings) < -0.2", None, "never-fires"),
        ("trend(perplexity, over: 5 readings) < -0.2", None, None),
        ("trend(loss, over: 50 readings) < -0.2", None, None),  # a loss may be negative
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
        "rule 'collapsed': 20 steps are over before success can be seen, which takes 3 clear readings, 10 steps apart: "
        "only a streak that has begun by then can still succeed. "
        "Write at least `30 steps`, or a shorter `clear.for`. [short-verification]"
    )


def test_a_streak_that_has_begun_in_time_succeeds_after_a_short_verification() -> None:
    """What the warning says, on the engine itself."""
    short = rule(clear=CLEAR, verify={"within": "20 steps"}, ladder=["alert"])
    told = Run(policy(short)).feed(series([1.0, 50.0, 50.0, 50.0])).told
    assert told[-1] == "40 collapsed outcome #1 alert recovered"
    late = Run(policy(short)).feed(series([1.0, 1.0, 1.0, 50.0, 50.0, 50.0])).told
    assert "30 collapsed outcome #1 alert failed, rolled back" in late


@pytest.mark.parametrize(
    ("success", "codes", "expected"),
    [
        ("perplexity > 300", 256, "never-succeeds"),
        ("perplexity > 300", None, None),
        ("perplexity > 2", None, "succeeds-where-it-fires"),
        ("perplexity >= 5", None, None),
        ("relative_error < 1", None, None),
        ({"any": ["usage > 0.5", "perplexity > 2"]}, None, "succeeds-where-it-fires"),
    ],
)
def test_a_success_that_cannot_be_or_that_changes_nothing(success: Any, codes: int | None, expected: str) -> None:
    one = rule(when="perplexity < 5", verify={"success": success}, ladder=["alert"])
    assert found(one, codes=codes) == ([f"{expected} collapsed verify.success"] if expected else [])
    assert found({**one, "ladder": []}, codes=codes) == []


SLIDES = "trend(perplexity, over: 5 readings) < -0.1"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"when": SLIDES}, True),
        ({"when": ["usage < 0.5", SLIDES]}, True),
        ({"when": {"any": ["usage < 0.5", SLIDES]}}, False),  # over only where usage is better, too
        ({"when": SLIDES, "clear": {"when": "usage > 0.5"}}, False),
        ({"when": SLIDES, "verify": {"success": "usage > 0.5"}}, False),
        ({"when": SLIDES, "ladder": []}, False),
        ({"when": "perplexity < 5"}, False),
    ],
)
def test_a_rule_of_trends_that_is_over_at_the_bottom(fields: dict[str, Any], expected: bool) -> None:
    one = rule(**{"ladder": ["alert"], **fields})
    assert found(one) == (["over-by-itself collapsed when"] if expected else [])


def test_a_slide_that_ends_at_the_bottom_passes_for_a_recovery() -> None:
    """What the warning says, on the engine itself."""
    run = Run(policy(rule(when="trend(perplexity, over: 3 readings) < -0.1", ladder=["alert"])))
    assert run.feed(series([100.0, 60.0, 20.0, *[2.0] * 4])).told[-1] == "60 collapsed outcome #1 alert recovered"


@pytest.mark.parametrize(
    ("within", "expected"),
    [("7 readings", False), ("6 readings", True), ("80 steps", False), ("79 steps", True)],
)
def test_a_trend_has_to_be_known_before_success_can_be_seen(within: str, expected: bool) -> None:
    clear = {"when": ["perplexity > 10", "trend(perplexity, over: 5 readings) >= 0"], "for": 3}
    one = rule(clear=clear, verify={"within": within}, ladder=["alert"])
    assert found(one, sample={"settle": 1}) == (["short-verification collapsed verify.within"] if expected else [])
    either = {"when": {"any": clear["when"]}, "for": 3}
    own = rule(clear=either, verify={"within": within}, ladder=["alert"])
    assert found(own, sample={"settle": 1}) == []


def test_a_suspect_codebook_that_is_read_less_often_than_a_healthy_one() -> None:
    sparse = {"every": "10 steps", "when_suspect": "20 steps"}
    assert found(rule(), sample=sparse) == ["sparse-when-suspect - sample.when_suspect"]
    assert found(rule(), sample={**sparse, "every": "20 steps"}) == []


def test_a_condition_out_of_reach_says_where_its_fields_lie() -> None:
    (finding,) = lint_policy(policy(rule(when=["perplexity < 1.5", "perplexity_ratio < 0.1"])), 8)
    assert str(finding) == (
        "rule 'collapsed': `perplexity < 1.5 and perplexity_ratio < 0.1` never holds with 8 codes: the rule cannot "
        "fire. perplexity_ratio lies between 0.125 and 2 there. Move the threshold. [never-fires]"
    )


@pytest.mark.parametrize("codes", [16, 256, 512, 1024, 8192, 65536])
@pytest.mark.parametrize("name", preset_names())
def test_the_presets_are_clean_for_codebooks_of_every_usual_size(name: str, codes: int) -> None:
    """But for what is meant for many codes: one of 16 is more than the fiftieth or twentieth where two rules begin."""
    kinds = [f"{each.kind} {each.rule}" for each in lint_policy(load_policy(name), codes, commitment=0.25)]
    too_few = ["never-fires collapsed", "never-fires unused"]
    assert kinds == (too_few if codes == 16 and name == "large_codebook" else [])


def test_two_codes_are_too_few_for_the_default_preset() -> None:
    """One code of two is half of what could be used: no reading falls below that."""
    kinds = [f"{each.kind} {each.rule}" for each in lint_policy(load_policy("default"), 2)]
    rules = "collapsed evaluation_only unspread collapsing unused unfitted hasty"
    assert kinds == [f"never-fires {rule}" for rule in rules.split()]


@given(counts=st.lists(st.integers(0, 50), min_size=2, max_size=40).filter(any))
def test_what_counts_can_show_is_never_said_to_be_out_of_reach(counts: list[int]) -> None:
    codes, tokens = len(counts), sum(counts)
    shown = {
        "perplexity": perplexity(counts),
        "perplexity_ratio": perplexity(counts) / perplexity_ceiling(tokens, codes),
        "usage": usage(counts),
        "dead_fraction": dead_fraction(counts, 0.1),
        "top_share": top_share(counts),
        "tokens": tokens,
    }
    values = [float(count) for count in counts]
    course = float(np.polyfit(range(codes), values, 1)[0]) / float(np.mean(values))
    shown[f"trend(perplexity, over: {codes} readings)"] = course * (1 - 1e-9)
    rules = [rule(f"r{index}", f"{name} == {value!r}") for index, (name, value) in enumerate(shown.items())]
    assert "never-fires" not in {each.kind for each in lint_policy(policy(*rules, sample={"min_tokens": 1}), codes)}


@pytest.mark.parametrize(("codes", "tokens"), [(2, 2), (8, 8), (16, 4), (256, 256), (1024, 256), (64, 100_000)])
def test_what_even_use_shows_is_what_draws_show(codes: int, tokens: int) -> None:
    rng = np.random.default_rng(0)
    even = import_module("collapse_guard.policies.intervals").even_use(codes, tokens, dead_below=0.1)
    draws = rng.multinomial(tokens, np.full(codes, 1 / codes), size=2000)
    shown = {
        "perplexity": float(np.mean([perplexity(counts) for counts in draws])),
        "usage": float(np.mean(draws > 0)),
        "dead_fraction": float(np.mean([dead_fraction(counts, 0.1) for counts in draws])),
        "top_share": float(np.mean(draws.max(axis=1)) / tokens),
    }
    for name, value in shown.items():
        least, most = even[name]
        assert least - 0.01 <= value <= most + 0.01, name


def test_a_critical_ladder_ends_with_a_last_resort() -> None:
    assert found(rule(severity="critical", ladder=["alert", "reset_codes"])) == ["no-last-resort collapsed ladder.1"]
    assert found(rule(severity="critical", ladder=["reset_codes", "fallback_tokenizer"])) == []
    assert found(rule(severity="warning", ladder=["reset_codes"])) == []
    assert found(rule(severity="critical")) == []


@pytest.mark.parametrize(
    ("only", "unless", "ending"),
    [
        ({"cause": "few_modes"}, {"cause": ["padded_tokens", "few_modes"]}, "it never fires."),
        ({"cause": ["few_modes", "starvation"]}, {"cause": "few_modes"}, "it never fires for it."),
        ({"cause": "few_modes"}, {"cause": "padded_tokens"}, None),
        (
            {"cause": "few_modes", "confidence": 0.5},
            {"cause": "few_modes", "confidence": 0.9},
            None,
        ),  # in between it does
    ],
)
def test_a_cause_that_a_rule_fires_for_and_rests_for(only: Any, unless: Any, ending: str | None) -> None:
    told = lint_policy(policy(rule("torn", "perplexity < 2", only=only, unless=unless)))
    assert [(each.kind, each.place) for each in told] == ([("only-and-unless", ("unless",))] if ending else [])
    assert all(each.message.endswith(str(ending)) for each in told)


def test_rules_that_another_one_keeps_from_firing() -> None:
    wide, narrow = rule("wide", "perplexity < 5"), rule("narrow", ["perplexity < 1.5", "usage < 0.1"])
    assert found(wide | {"inhibits": ["narrow"]}, narrow) == ["shadowed narrow when"]
    assert found(wide | {"inhibits": ["narrow"], "for": 3}, narrow) == []
    assert found(wide, narrow | {"inhibits": ["wide"]}) == []
    assert found(wide, narrow) == ["doubled narrow when"]
    assert found(wide, rule("same", "perplexity < 5")) == ["doubled wide when"]
    assert found(wide, rule("other", "usage < 0.1")) == []


def test_a_shadowed_rule_may_come_after_one_that_can_be_exhausted() -> None:
    wide, narrow = rule("wide", "perplexity < 5", inhibits=["narrow"]), rule("narrow", "perplexity < 1.5")
    acting, told = {"ladder": ["alert"]}, []
    for mine in ((wide, narrow), (wide | acting, narrow), (wide, narrow | acting), (wide | acting, narrow | acting)):
        (finding,) = lint_policy(policy(*mine))
        told.append(finding.message.partition(":")[0])
    assert told == ["it can never fire"] * 3 + ["it can only fire once wide is exhausted"]


@given(first=st.floats(1, 9), second=st.floats(1, 9), values=st.lists(st.floats(1, 9), min_size=1, max_size=30))
def test_a_shadowed_rule_never_fires(first: float, second: float, values: list[float]) -> None:
    """What the warning claims, on the engine itself."""
    mine = policy(rule("one", f"perplexity < {first}", inhibits=["two"]), rule("two", f"perplexity < {second}"))
    shadowed = "shadowed" in {finding.kind for finding in lint_policy(mine)}
    assert shadowed is (second <= first) or not second > 1
    run = Run(mine).feed(reading(10 * index, value) for index, value in enumerate(values, start=1))
    if shadowed:
        assert not any(" two alert" in told for told in run.told)


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (rule(when="usage < 0.4"), "fires then"),
        (rule(when="dead_fraction > 0.5"), "fires then"),
        (rule(when=["usage < 0.4", "relative_error > 1"]), "fires then"),
        (rule(when="usage < 0.1"), None),  # even use shows 0.22
        (rule(when=["usage < 0.4", "perplexity_ratio < 0.25"]), None),
        (rule(when="perplexity < 5", clear={"when": "usage > 0.5"}), "is not over even then"),
        (rule(when="perplexity < 5", clear={"when": "usage > 0.2"}), None),
        (rule(when="relative_error > 1", ladder=["reset_codes"]), "may fire then and reset them"),
        (rule(when="relative_error > 1", ladder=[{"reset_codes": {"scope": "all"}}]), None),
        (rule(when="perplexity < 5", ladder=["reset_codes"]), None),  # then they are dead indeed
    ],
)
def test_readings_too_small_for_the_codebook(one: dict[str, Any], problem: str | None) -> None:
    findings = [each for each in lint_policy(policy(one), 1024) if each.kind == "few-tokens"]
    assert [each.message for each in findings] == (
        [
            "a reading of 256 tokens shows 78% of 1024 codes as dead though all be used alike, "
            f"and rule collapsed {problem}."
        ]
        if problem
        else []
    )
    assert [each.hint for each in findings] == (
        ["Write `min_tokens: 3068` or more, or compare `perplexity_ratio`, which takes it into account."]
        if problem
        else []
    )
    assert lint_policy(policy(one, sample={"min_tokens": 3068}), 1024) == []
    assert "few-tokens" not in {each.kind for each in lint_policy(policy(one))}


def test_a_floor_that_the_commitment_weight_is_at_already() -> None:
    decays = rule(ladder=["alert", {"decay_commitment": {"floor": 0.1}}])
    (finding,) = lint_policy(policy(decays), commitment=0.1)
    assert (finding.kind, finding.place) == ("floor-above-weight", ("ladder", 1, "decay_commitment", "floor"))
    assert finding.message == "the commitment weight is 0.1, not above the floor 0.1: the action is refused."
    assert lint_policy(policy(decays), commitment=0.11) == lint_policy(policy(decays)) == []


def test_a_target_that_the_commitment_weight_is_at_already() -> None:
    raises = rule(ladder=["alert", {"raise_commitment": {"to": 0.1}}])
    (finding,) = lint_policy(policy(raises), commitment=0.1)
    assert (finding.kind, finding.place) == ("target-below-weight", ("ladder", 1, "raise_commitment", "to"))
    assert finding.message == "the commitment weight is 0.1, not below 0.1: the action is refused."
    assert lint_policy(policy(raises), commitment=0.09) == lint_policy(policy(raises)) == []


def test_a_condition_too_long_to_compare_is_left_alone() -> None:
    long = [{"any": [f"perplexity < {n}", f"usage < 0.{n}"]} for n in range(1, 10)]
    assert found(rule(when=long)) == []


def test_a_finding_has_its_line() -> None:
    text = "version: 1\nrules:\n  - {name: a, when: usage < 0.1}\n  - name: b\n    when: usage > 1\n"
    finding = Finding(kind="never-fires", rule="b", place=("when",), message="", hint="")
    assert position_in(text, finding) == (5, 11)
    general = Finding(kind="few-tokens", rule="", place=("sample", "min_tokens"), message="", hint="")
    assert position_in(text, general) == (1, 1)
    assert position_in(policy_text("default") or "", general) == (15, 15)
    gone = Finding(kind="never-fires", rule="c", place=("when",), message="", hint="")
    assert position_in(text, gone) == (None, None)
