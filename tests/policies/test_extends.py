"""`extends:` lays one policy over another; what comes out is a policy like any other, and mistakes keep their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from collapse_guard.policies import Budget, Duration, Policy, PolicyError, Rule, load_policy, preset_names
from tests.policies.series import rule
from tests.policies.test_loader import problems_of


def over(base: str = "default", *rules: dict[str, Any], **fields: Any) -> Policy:
    """A policy over another."""
    return load_policy({"version": 1, "extends": base, **({"rules": list(rules)} if rules else {}), **fields})


def rules_of(policy: Policy) -> dict[str, Rule]:
    return {each.name: each for each in policy.rules}


@pytest.mark.parametrize("name", preset_names())
def test_nothing_said_changes_nothing_but_the_name(name: str) -> None:
    base, same = load_policy(name), over(name)
    assert (same.name, same.source, same.extends) == ("custom", "<mapping>", None)
    assert same.model_copy(update={"name": base.name}).with_source(base.source) == base


def test_mappings_are_merged_key_by_key() -> None:
    base = load_policy("default")
    changed = over(mode="observe", warmup="9 steps", sample={"settle": 3}, budget={"refill_after": None})
    assert (changed.mode, changed.warmup_steps) == ("observe", 9)
    assert changed.sample == base.sample.model_copy(update={"settle": 3})
    assert changed.budget == Budget(interventions=base.budget.interventions, refill_after=None)
    assert changed.rules == base.rules


def test_a_rule_of_the_same_name_is_merged_where_it_stood() -> None:
    base, changed = load_policy("default"), over("default", {"name": "collapsed", "for": 5, "clear": {"for": 7}})
    assert [each.name for each in changed.rules] == [each.name for each in base.rules]
    old, new = rules_of(base)["collapsed"], rules_of(changed)["collapsed"]
    assert new == old.model_copy(update={"for_": 5, "clear": old.clear.model_copy(update={"for_": 7})})


def test_lists_and_conditions_are_replaced_whole() -> None:
    overriding = {"name": "collapsed", "when": {"any": ["usage < 0.1"]}, "ladder": ["alert"], "inhibits": []}
    new = rules_of(over("default", overriding))["collapsed"]
    assert (str(new.when), [rung.action for rung in new.ladder], new.inhibits) == ("usage < 0.1", ["alert"], ())


def test_a_new_rule_comes_last() -> None:
    assert [each.name for each in over("default", rule("mine")).rules][-1] == "mine"


def test_a_removed_rule_is_gone_and_not_spoken_of() -> None:
    changed = over("default", {"name": "collapsing", "remove": True})
    whole = load_policy("default")
    assert [each.name for each in changed.rules] == [each.name for each in whole.rules if each.name != "collapsing"]
    silenced = {each.name: each.inhibits for each in whole.rules if "collapsing" in each.inhibits}
    assert set(silenced) == {"non_finite", "collapsed", "astray", "reshaped", "cut_off", "unspread"}
    for name, others in silenced.items():
        assert rules_of(changed)[name].inhibits == tuple(each for each in others if each != "collapsing")


def test_policies_may_lie_over_each_other_in_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("version: 1\nextends: default\nwarmup: 7 steps\n", encoding="utf-8")
    top = tmp_path / "sub" / "top.yaml"
    top.write_text("version: 1\nextends: ../base.yaml\nname: top\nsample: {settle: 2}\n", encoding="utf-8")
    loaded = load_policy(top)
    assert (loaded.name, loaded.warmup, loaded.sample.settle) == ("top", Duration(7, "steps"), 2)
    assert loaded.source == str(top)


def test_a_mistake_in_what_is_extended_is_told_there(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("version: 1\nrules:\n  - {name: a, when: usage < x}\n", encoding="utf-8")
    (tmp_path / "top.yaml").write_text("version: 1\nextends: base.yaml\nmode: [\n", encoding="utf-8")
    (tmp_path / "top2.yaml").write_text("version: 1\nextends: base.yaml\nwarmup: 3\n", encoding="utf-8")
    assert [told.partition(": ")[0] for told in problems_of(tmp_path / "top.yaml")] == [f"{tmp_path}/top.yaml:4:1"]
    told, own = problems_of(tmp_path / "top2.yaml")
    assert told.startswith(f"{tmp_path}/base.yaml:3:21: rule 'a': when: expected a comparison")
    assert own.startswith(f"{tmp_path}/top2.yaml:3:9: warmup: expected a duration")


def test_a_mistake_that_only_both_together_make_is_told_with_both_names() -> None:
    (told,) = problems_of(
        {"version": 1, "extends": "default", "rules": [{"name": "collapsing", "inhibits": ["collapsed"]}]}
    )
    assert told.startswith("default:")
    assert "rule 'collapsed': inhibits: expected no circle of inhibition" in told
    assert told.endswith("Remove one of these. <mapping> extends it.")


def test_a_circle_is_refused_with_its_members(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "b"), ("self", "self")):
        (tmp_path / f"{name}.yaml").write_text(f"version: 1\nextends: ./{base}.yaml\n", encoding="utf-8")
    b, c = (f"{tmp_path}/{name}.yaml" for name in "bc")
    wanted = f"{c}:2:10: extends: expected no circle of extends, got {b} -> {c} -> {b}. Remove one of these."
    assert problems_of(tmp_path / "a.yaml") == [wanted]
    assert "expected no circle of extends" in problems_of(tmp_path / "self.yaml")[0]


def test_a_missing_file_is_told_at_the_key(tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_text("version: 1\nextends: gone.yaml\n", encoding="utf-8")
    assert problems_of(tmp_path / "top.yaml") == [
        f"{tmp_path}/top.yaml:2:10: extends: expected a file that can be read, got no such file or directory. "
        "Beside it: top.yaml."
    ]


def test_a_tower_of_policies_ends_somewhere(tmp_path: Path) -> None:
    for index in range(12):
        base = f"./{index + 1}.yaml" if index < 11 else "default"
        (tmp_path / f"{index}.yaml").write_text(f"version: 1\nextends: {base}\n", encoding="utf-8")
    assert load_policy(tmp_path / "5.yaml").name == "custom"
    assert "expected at most 8 policies one over another, got more" in problems_of(tmp_path / "0.yaml")[0]


@pytest.mark.parametrize("base", ["", "x" * 5000 + ".yaml", "a\0b.yaml", 3, [], {"a": 1}, True])
def test_nonsense_is_no_policy_to_extend(base: Any) -> None:
    assert "extends: expected a preset or the path of a file, got " in problems_of({"version": 1, "extends": base})[0]


def test_a_policy_extends_only_through_the_loader() -> None:
    with pytest.raises(ValueError, match="`load_policy` works out what it extends"):
        Policy.model_validate({"version": 1, "extends": "default", "rules": [rule()]})


@pytest.mark.parametrize("rules", [None, {}, 3, [None], [{"name": []}], [{"name": "collapsed", "when": {}}], [[]]])
def test_rules_that_are_none_are_a_problem_not_a_traceback(rules: Any) -> None:
    with pytest.raises(PolicyError):
        load_policy({"version": 1, "extends": "default", "rules": rules})


def test_what_is_loaded_can_be_written_and_read_without_the_other_policy() -> None:
    loaded = over("default", {"name": "collapsing", "remove": True})
    again = load_policy(loaded.model_dump(mode="json", by_alias=True))
    assert again == loaded
    assert again.fingerprint() == loaded.fingerprint()
