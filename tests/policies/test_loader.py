"""Policies from presets, files and mappings; `data/*.bad.yaml` holds one mistake each and the message it deserves."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import Policy, PolicyError, Problem, load_policy, preset_names
from tests.policies.series import rule

DATA = Path(__file__).parent / "data"
MARK = "# expected: "


def problems_of(source: Any) -> list[str]:
    """What is wrong with a policy, one line each."""
    with pytest.raises(PolicyError) as caught:
        load_policy(source)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", sorted(DATA.glob("*.bad.yaml")), ids=lambda path: path.name.partition(".")[0])
def test_a_mistake_is_told_with_its_place_and_the_next_move(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    expected = [f"{path}:{line.removeprefix(MARK)}" for line in lines if line.startswith(MARK)]
    assert expected, "the first line of a bad file says what is expected"
    assert problems_of(path) == expected


@pytest.mark.parametrize("path", sorted(DATA.glob("*.good.yaml")), ids=lambda path: path.name.partition(".")[0])
def test_a_good_file_loads(path: Path) -> None:
    assert load_policy(path).source == str(path)


def test_an_error_is_a_value_error_with_records() -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        load_policy({"version": 1, "rules": [rule(cooldown=100)]})
    assert isinstance(caught.value, PolicyError)
    assert caught.value.problems == (
        Problem(
            file="<mapping>",
            line=None,
            column=None,
            rule="collapsed",
            message="cooldown",
            expected="a duration with its unit, such as `50 steps`",
            got="100",
            hint="Write `100 steps`, or `readings` or `epochs`.",
        ),
    )
    assert str(caught.value) == (
        "<mapping>: rule 'collapsed': cooldown: expected a duration with its unit, such as `50 steps`, got 100. "
        "Write `100 steps`, or `readings` or `epochs`."
    )


def test_a_mapping_is_told_everything_at_once_too() -> None:
    mapping = {
        "version": 1,
        "mode": "on",
        "rules": [rule(inhibits=["x"]), "collapsing", rule("b", inhibits="collapsed")],
    }
    assert problems_of(MappingProxyType(mapping)) == [
        "<mapping>: mode: expected `observe` or `act`, got 'on'.",
        "<mapping>: rule '#2': the rule: expected a mapping with some of the keys "
        "name, codebooks, stage, when, for, clear, severity, inhibits, cooldown, silence_until, missing, nan, verify, "
        "ladder, budget, on_exhausted, unless, only, got 'collapsing'.",
        "<mapping>: rule 'b': inhibits: expected a list, got 'collapsed'. Write `[collapsed]`.",
    ]


@pytest.mark.parametrize("rules", [None, {}, [None], [rule(inhibits=[1])], [rule(inhibits=[[]]), 3]])
def test_rules_too_broken_to_refer_to_each_other_are_told_only_that(rules: Any) -> None:
    assert not any("the name of a rule" in problem for problem in problems_of({"version": 1, "rules": rules}))


def test_the_name_of_a_preset_loads_it() -> None:
    assert {"default", "observe"} <= set(preset_names())
    assert [load_policy(name).source for name in preset_names()] == list(preset_names())


def test_a_policy_is_returned_as_it_is() -> None:
    loaded = load_policy("default")
    assert load_policy(loaded) is loaded


def test_a_name_that_is_neither_preset_nor_path_lists_the_presets() -> None:
    assert problems_of("defualt") == [
        "defualt: policy: expected a preset or the path of a file, got 'defualt'. "
        "Did you mean `default`? "
        "Presets: conservative, default, large_codebook, observe, residual, semantic_ids, upkeep."
    ]


def test_a_text_that_looks_like_a_path_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "version: 1\nrules: [{name: collapsed, when: perplexity < 1.5}]\n"
    for name in ("mine.yaml", "mine.yml", "mine"):
        Path(name).write_text(text, encoding="utf-8")
    Path("folder").mkdir()
    Path("folder/mine").write_text(text, encoding="utf-8")
    sources: list[str | Path] = ["mine.yaml", "mine.yml", "mine", "folder/mine", Path("mine")]
    assert [load_policy(source).source for source in sources] == [str(source) for source in sources]


def test_a_preset_goes_before_a_file_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("default").write_text("nonsense", encoding="utf-8")
    assert load_policy("default").name == "default"


def test_a_missing_file_names_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    assert problems_of(tmp_path / "min.yaml") == [
        f"{tmp_path}/min.yaml: file: expected a file that can be read, got no such file or directory. "
        "Beside it: mine.yaml."
    ]
    assert problems_of(str(tmp_path / "nowhere" / "x.yaml"))[0].endswith(
        "Presets: conservative, default, large_codebook, observe, residual, semantic_ids, upkeep."
    )


def test_a_folder_is_no_policy(tmp_path: Path) -> None:
    assert "expected a file that can be read, got " in problems_of(tmp_path)[0]


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: Prüfung".encode("latin-1"))
    assert problems_of(tmp_path / "latin.yaml") == [
        f"{tmp_path}/latin.yaml: file: expected text in UTF-8, got byte 0xfc at position 8. Save it as UTF-8."
    ]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_text("version: 1\nrules: [{name: a, when: usage < 1}]", encoding="utf-8-sig")
    assert load_policy(tmp_path / "bom.yaml").version == 1


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 3000, "x" * 100_001, "&a [*a]", "? [a]\n: 1"])
def test_a_hostile_file_ends_in_a_problem(text: str, tmp_path: Path) -> None:
    (tmp_path / "hostile.yaml").write_text(text, encoding="utf-8")
    assert problems_of(tmp_path / "hostile.yaml")


def test_a_bare_on_that_pyyaml_read_as_true_is_told_as_such() -> None:
    text = "ladder: [{decay_commitment: {}, on: {cause: encoder_collapse}}, {off: 1}, {alert: {no: 1}}]"
    mapping = {"version": 1, 3: 4, "rules": [rule(**yaml.safe_load(text))]}
    on = (
        "expected keys of text, got the key true. YAML 1.1, which PyYAML reads, takes a bare on, yes or true for a "
        "truth value. Put the key in quotes, or give `load_policy` the path of the file."
    )
    off = on.replace("key true", "key false").replace("on, yes or true", "off, no or false")
    assert problems_of(mapping) == [
        f"<mapping>: rule 'collapsed': ladder[0]: {on}",
        f"<mapping>: rule 'collapsed': ladder[1]: {off}",
        f"<mapping>: rule 'collapsed': ladder[2].alert: {off}",
        "<mapping>: the policy: expected keys of text, got the key 3. Put the key in quotes, or give `load_policy` the "
        "path of the file.",
    ]


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    path = DATA / "empty.bad.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: text)
        with pytest.raises(PolicyError):
            load_policy(path)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1 step", "usage < 1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "when", "any", "for", "ladder", "alert", "repeat", True, 3]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
keys = st.sampled_from(["version", "name", "mode", "sample", "warmup", "budget", "rules", "other"])


@given(st.dictionaries(keys, plain, max_size=6))
def test_any_mapping_is_a_policy_or_a_policy_error(mapping: dict[str, Any]) -> None:
    try:
        result: Policy | tuple[Problem, ...] = load_policy(mapping)
    except PolicyError as error:
        result = error.problems
    assert result
