"""Thousands of damaged policies: each is a policy or a `PolicyError` with a line, in time, and nothing is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from collapse_guard.policies import Comparison, Policy, PolicyEngine, PolicyError, lint_policy, load_policy
from tests.checkout import ROOT
from tests.policies.series import policy, reading, rule

HEAD = "version: 1\nrules:\n"
LOW = "rules: [{name: a, when: usage < 1}]\n"


def examined(count: int) -> dict[str, Any]:
    """The findings on so many mutants, from an interpreter of their own: an audit hook cannot be taken off again."""
    command = [sys.executable, "-m", "tests.policies.mutants", str(count)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout))


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_damaged_policy_is_a_policy_or_a_policy_error(count: int) -> None:
    found = examined(count)
    assert found["wrong"] == []
    assert found["started"] == {}
    assert found["accepted"] + found["refused"] == count
    assert min(found["accepted"], found["refused"]) > count / 10  # both ways are taken
    assert found["slowest"][0] < 1.0  # seconds of the processor; the slowest needs a fifth of it


def test_the_watch_of_these_tests_notices_what_is_started(tmp_path: Path) -> None:
    (tmp_path / "read").touch()
    program = f"""
import json, os, pathlib
from tests.policies.mutants import Watch
watch = Watch(pathlib.Path({str(tmp_path)!r}))
watch.is_on = True
open({str(tmp_path / "read")!r}).close()
open({str(tmp_path / "written")!r}, "w").close()
os.system("true")
exec("1")
import this
watch.is_on = False
print(json.dumps(list(watch.seen)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert {"open", "os.system", "exec", "import"} <= {event.split()[0] for event in seen}
    assert any("written" in event for event in seen)
    assert not any("'read'" in event for event in seen)


def problems_of(source: Any) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_policy(source)
    return [str(problem).partition(": ")[2] for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("%YAML 1." + "9" * 5000 + "\n---\nversion: 1\n" + LOW, "1:9", "got a number out of range."),
        ('version: 1\nname: "\\UFFFFFFFF"\n' + LOW, "2:10", "got a number out of range."),
        ('version: 1\nname: "\\ud800"\n' + LOW, "2:7", "YAML: expected printable text, got character 0xd800."),
        ('version: 1\n"\\x1b[2J": 1\n' + LOW, "2:1", "YAML: expected printable text, got character 0x1b."),
        ('version: 1\n"a\\nb": 1\n' + LOW, "2:1", "'a\\nb': expected a known key"),
        ("version: 1\nextends: " + "a" * 900 + "\n", "2:10", "expected a preset or the path of a file"),
        ("version: 1\nextends: /dev/zero\n", "2:10", "got a device or a pipe. Copy it into a file."),
        ("version: 1\nsample: {settle: " + "9" * 400 + "}\n" + LOW, "2:18", "got a number of more than 75 digits."),
        ("version: 1\nsample: {min_tokens: " + "9" * 400 + "}\n" + LOW, "2:22", "at most 1e+18"),
        (HEAD + f'  - {{name: a, when: "rel(a{" " * 90_000}x"}}', "3:21", "a comparison of at most 500 characters"),
        (HEAD + f"  - {{name: a, when: usage < 1, codebooks: '{'[' * 90_000}'}}", "3:43", "at most 200 characters"),
        (HEAD + "  - {name: a, when: usage < 1}\n" * 201, "3:3", "at most 200 rules, got 201"),
    ],
)  # fmt: skip
def test_what_the_mutants_found_stays_found(tmp_path: Path, text: str, place: str, told: str) -> None:
    (tmp_path / "mutant.yaml").write_text(text)
    (problem,) = problems_of(tmp_path / "mutant.yaml")
    assert told in problem
    with pytest.raises(PolicyError, match=rf"mutant\.yaml:{place}: "):
        load_policy(tmp_path / "mutant.yaml")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(10**12)
    assert problems_of(tmp_path / "large.yaml") == ["file: expected at most 1000000 bytes, got 1000000000000."]


@pytest.mark.parametrize("source", ["a" * 300, "a\0b", "a\0b.yaml"])
def test_a_name_that_no_file_can_have_is_no_policy(source: str) -> None:
    assert len(problems_of(source)) == 1


def test_hundreds_of_strangers_are_all_told(tmp_path: Path) -> None:
    """Looking for the nearest name is left off in the end: it took half a minute."""
    rules = [rule("a", inhibits=[f"s{i}" for i in range(3000)]), *(rule(f"r{i}") for i in range(199))]
    told = problems_of({"version": 1, "rules": rules})
    assert len(told) == 3000
    assert "Known: a, r0" in told[99]
    assert told[100].endswith("got 's100'.")


def test_a_mapping_has_the_bounds_of_a_file() -> None:
    endless: list[Any] = []
    endless.append(endless)
    bound = ["the policy: expected at most 5000 values in 20 levels, got more."]
    assert problems_of({"version": 1, "rules": [rule(when=endless)]}) == bound
    assert problems_of({"version": 1, "rules": [rule(codebooks=["a"] * 6000)]}) == bound
    assert "more than 75 digits" in problems_of({"version": 10**5000, "rules": [rule()]})[0]


def test_a_key_that_is_no_text_is_told() -> None:
    assert problems_of({"version": 1, 3: 4, "rules": [{**rule(), 5: 6}]})


@pytest.mark.parametrize(
    "when", [[{"any": ["usage < 1", "loss > 2"]}], [["usage < 1", "loss > 2"]], "usage < 0.30000000000000004"]
)
def test_a_condition_is_the_same_after_it_was_written_out(when: Any) -> None:
    written = policy(rule(when=when)).model_dump(mode="json", by_alias=True)
    assert load_policy(written) == policy(rule(when=when))


def many(count: int) -> Policy:
    return policy(*(rule(f"r{i}", f"usage < 0.{i + 1:03}") for i in range(count)))


def test_the_most_rules_there_may_be_are_used_without_trouble() -> None:
    most = many(200)
    assert lint_policy(most)
    assert PolicyEngine(most).observe(reading(1, usage=0.0))
    alternatives = {"any": [f"usage < 0.{i + 1:03}" for i in range(900)]}
    assert lint_policy(policy(rule(when=alternatives, clear={"when": alternatives}))) == []


def test_the_longest_comparison_is_read() -> None:
    assert str(Comparison.parse("usage <" + " " * 492 + "1")) == "usage < 1"
