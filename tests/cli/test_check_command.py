"""`collapse-guard check`: lines, warnings, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_cli import run

WARNS = "version: 1\nname: mine\nrules:\n  - name: low\n    when: perplexity < 5\n"


def test_the_offending_line_is_shown_under_each_error(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\nwarmup: 10\nrules:\n  - {name: low, when: '[red]perplexty < 2'}\n")
    done = run("check", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("bad.yaml:2:9: warmup: expected a duration")
    assert lines[1:3] == ["     2 | warmup: 10", "       |         ^"]
    assert lines[4:6] == ["     4 |   - {name: low, when: '[red]perplexty < 2'}", "       |                       ^"]


def test_warnings_leave_the_exit_code_at_0_unless_strict(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(WARNS)
    done = run("check", "mine.yaml", "--codes", "4", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("mine.yaml:5:11: warning: rule 'low': `perplexity < 5` always holds with 4 codes")
    assert lines[1:] == [
        "     5 |     when: perplexity < 5",
        "       |           ^",
        "mine.yaml: 1 warning: mine, mode act, rules low",
    ]
    assert run("check", "mine.yaml", "--codes", "4", "--strict", cwd=tmp_path).returncode == 1
    assert run("check", "mine.yaml", "--strict", cwd=tmp_path).returncode == 0


def test_json_holds_errors_and_warnings_of_every_policy(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(WARNS)
    (tmp_path / "bad.yaml").write_text(WARNS.replace("perplexity", "perplexty"))
    done = run("check", "mine.yaml", "bad.yaml", "--codes", "4", "--format", "json", cwd=tmp_path)
    assert done.returncode == 1
    mine, bad = json.loads(done.stdout)["policies"]
    (warning,) = mine["warnings"]
    assert (warning["kind"], warning["file"], warning["line"], warning["rule"]) == (
        "always-fires",
        "mine.yaml",
        5,
        "low",
    )
    (error,) = bad["errors"]
    assert (error["line"], error["column"], error["got"]) == (5, 11, "'perplexty'")
    assert bad["warnings"] == mine["errors"] == []


def test_a_long_line_is_cut_around_the_mistake(tmp_path: Path) -> None:
    text = f"version: 1\nrules: [{{name: low, {' ' * 300}when: perplexty < 2}}]\n"
    (tmp_path / "bad.yaml").write_text(text)
    lines = run("check", "bad.yaml", cwd=tmp_path).stdout.splitlines()
    assert max(map(len, lines[1:])) <= 120
    assert lines[1][lines[2].index("^") :].startswith("perplexty")


def test_the_commitment_weight_of_the_model_is_held_against_floors(tmp_path: Path) -> None:
    text = WARNS + "    ladder:\n      - decay_commitment: {factor: 0.5, floor: 0.2}\n"
    (tmp_path / "mine.yaml").write_text(text)
    done = run("check", "mine.yaml", "--commitment", "0.1", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[:3] == [
        "mine.yaml:7:48: warning: rule 'low': the commitment weight is 0.1, not above the floor 0.2: the action is "
        "refused. Write a lower `floor`, or leave the rung out. [floor-above-weight]",
        "     7 |       - decay_commitment: {factor: 0.5, floor: 0.2}",
        "       |                                                ^",
    ]
    assert run("check", "mine.yaml", "--commitment", "0.3", "--strict", cwd=tmp_path).returncode == 0
