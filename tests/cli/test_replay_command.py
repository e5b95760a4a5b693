"""`collapse-guard replay`, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import run

OLD = """version: 1
name: old
sample: {settle: 0}
rules:
  - {name: low, when: perplexity < 2, verify: {within: 20 steps}, ladder: [{reset_codes: {}, repeat: 3}]}
"""
NEW = OLD.replace("name: old", "name: new").replace("repeat: 3", "repeat: 1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two policies and a table."""
    (tmp_path / "old.yaml").write_text(OLD)
    (tmp_path / "new.yaml").write_text(NEW)
    rows = "\n".join(f"{step},1.0" for step in range(10, 100, 10))
    (tmp_path / "log.csv").write_text(f"step,train/ppl\n{rows}\n")
    return tmp_path


CSV = ("log.csv", "--codes", "256", "--tokens", "2048", "--column", "perplexity=train/ppl")


def test_the_timeline_the_counts_and_the_limits_are_printed(folder: Path) -> None:
    done = run("replay", "old.yaml", *CSV, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "old (old.yaml) on 9 readings of codebook"
    assert lines[2] == "step     10  alert         codebook: low: perplexity 1.00 < 2 for 1 reading"
    assert "  reset_codes                  3" in lines
    assert lines[-3].startswith("A replay cannot know what an action would have changed")


def test_two_policies_are_set_against_each_other(folder: Path) -> None:
    done = run("replay", "new.yaml", *CSV, "--against", "old.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "  reset_codes                  old: 3; new: 1" in done.stdout
    assert "They part here:" in done.stdout
    same = run("replay", "new.yaml", *CSV, "--against", "new.yaml", cwd=folder)
    assert "They decide the same, step by step." in same.stdout


def test_json_holds_every_decision(folder: Path) -> None:
    done = run("replay", "new.yaml", *CSV, "--against", "old.yaml", "--format", "json", cwd=folder)
    result = json.loads(done.stdout)
    assert result["new"]["counts"]["reset_codes"] == 1
    assert result["old"]["decisions"][1] == {
        "step": 10,
        "codebook": "codebook",
        "rule": "low",
        "kind": "act",
        "severity": "warning",
        "action": "reset_codes",
        "params": {"scope": "dead", "source": "kmeans", "refill": 0.5},
        "attempt": 1,
        "reason": "rung 1 of 1, try 1 of 3: reset_codes(scope=dead, source=kmeans, refill=0.5) at perplexity 1.00",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("old.yaml", "gone.jsonl"), "gone.jsonl"),
        (("old.yaml", "log.csv"), "The number of codes is missing: add `--codes K`."),
        (("old.yaml", "log.csv"), "computed from is missing: add `--tokens N`."),
        (("old.yaml", "log.csv", "--codes", "256"), "holds what: `--column perplexity=train/ppl`."),
        (("old.yaml", "log.csv", "--codes", "256", "--column", "perplexity"), "expected FIELD=COLUMN"),
        (("old.yaml", "log.csv", "--codes", "256", "--column", "perplexity=loss"), "expected a column of the log"),
        (("old.yaml", "empty.jsonl"), "expected an event log with readings"),
        (("gone.yaml", "log.csv"), "gone.yaml: there is no such file"),
    ],
)
def test_what_cannot_be_replayed_is_said_and_exits_with_2(
    folder: Path, arguments: tuple[str, ...], expected: str
) -> None:
    (folder / "empty.jsonl").write_text("")
    done = run("replay", *arguments, cwd=folder)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
