"""`collapse-guard test`: what it prints and how it exits."""

from __future__ import annotations

from pathlib import Path

from collapse_guard.policies import preset_names
from tests.cli.test_cli import run

MINE = """policy: {version: 1, name: mine, rules: [{name: low, when: perplexity < 2}]}
tests:
  - {name: '[bold]it fires', codes: 256, every: 10 steps, series: 9x2 1, expect: {20: [], 30: [low alert]}}
  - {name: it fires too soon, codes: 256, every: 10 steps, series: 9x2 1, expect: {20: [low alert]}}
"""


def test_the_presets_tests_pass() -> None:
    done = run("test", *preset_names())
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("ok      conservative: conservative: a codebook in full use is left alone\n")
    assert done.stdout.splitlines()[-1].endswith(" passed, 0 failed")


def test_a_preset_can_be_tested_by_its_file_too() -> None:
    named, filed = run("test", "observe"), run("test", "policies/observe.test.yaml")
    assert filed.stdout == named.stdout.replace("observe: observe:", "policies/observe.test.yaml: observe:")


def test_what_is_decided_otherwise_is_printed_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "mine.test.yaml").write_text(MINE)
    done = run("test", "mine.test.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "ok      mine.test.yaml: mine: [bold]it fires",
        "FAILED  mine.test.yaml: mine: it fires too soon",
        "          - step 20: low alert",
        "          + step 30: low alert (perplexity 1.00 < 2 for 1 reading)",
        "        (-: expected and not decided, +: decided and not expected)",
        "1 passed, 1 failed",
    ]


def test_a_file_that_cannot_be_used_is_said_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "mine.test.yaml").write_text(MINE)
    (tmp_path / "bad.test.yaml").write_text("policy: default\ntests: 3\n")
    (tmp_path / "none.test.yaml").write_text("policy: default\ntests: []\n")
    (tmp_path / "binary.test.yaml").write_bytes(b"\xff\xfe")
    done = run(
        "test", "bad.test.yaml", "none.test.yaml", "gone.test.yaml", "binary.test.yaml", "mine.test.yaml", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "bad.test.yaml:2:8: tests: expected a list, got 3." in done.stdout
    assert "none.test.yaml:2:8: tests: expected a list that is not empty, got an empty list." in done.stdout
    presets = ", ".join(preset_names())
    give = f"Give a file of policy tests, or a preset: {presets}."
    assert f"gone.test.yaml: No such file or directory. {give}" in done.stdout
    assert f"binary.test.yaml: not a text in UTF-8. {give}" in done.stdout
    assert "1 passed, 1 failed" in done.stdout
    assert "Traceback" not in done.stderr
