"""`collapse-guard replay`, run as a user runs it."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from collapse_guard.policies import Reading
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


_REQUIRED = [each.name for each in fields(Reading) if each.default is MISSING]
CSV = ("log.csv", "--codes", "256", "--tokens", "2048", "--column", "perplexity=train/ppl")


def test_the_timeline_the_counts_and_the_limits_are_printed(folder: Path) -> None:
    done = run("replay", "old.yaml", *CSV, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "old (old.yaml) on 9 readings of codebook"
    assert lines[2] == "step     10  alert         codebook: low: perplexity 1.00 < 2 for 1 reading"
    assert "  reset_codes                  3" in lines
    assert lines[-5].startswith("A replay cannot know what an action would have changed")


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
        (("old.yaml", "."), "expected a directory with an event log or TensorBoard files, got bare.jsonl, "),
        (("old.yaml", "old.yaml"), "expected an event log (JSON lines), TensorBoard event files, or a CSV file"),
        (
            ("old.yaml", "bare.jsonl"),
            "expected readings as collapse_guard writes them, got one without step, codebook, K, D,",
        ),
        (("old.yaml", "words.jsonl"), "expected a number for perplexity in a reading, got 'low'."),
        (("old.yaml", "latin.csv"), "expected text in UTF-8, got something else. Save it as UTF-8."),
        (("old.yaml", "semicolon.csv"), "got step;ppl. Separate columns by commas."),
        (("old.yaml", "time.csv"), "got time, ppl. Name it: `--column step=NAME`."),
        (("old.yaml", "long.csv", *CSV[1:-1], "perplexity=ppl"), "field larger than field limit"),
        (("old.yaml", "empty.csv"), "expected a header with the names of the columns, got an empty file."),
        (("old.yaml", "log.csv", *CSV[1:-1], "perplexity=step", "--column", "usage=step;"), "Did you mean `step`?"),
    ],
)
def test_what_cannot_be_replayed_is_said_and_exits_with_2(
    folder: Path, arguments: tuple[str, ...], expected: str
) -> None:
    words = {"event": "reading", **dict.fromkeys(_REQUIRED, 1), "codebook": "vq", "perplexity": "low"}
    files = {
        "empty.jsonl": b"",
        "empty.csv": b"",
        "bare.jsonl": b'{"event": "intervention"}\n{"event": "reading"}\n',
        "words.jsonl": json.dumps(words).encode(),
        "latin.csv": b"step,p\xe9rplexit\xe9\n",
        "semicolon.csv": b"step;ppl\n1;2\n",
        "time.csv": b"time,ppl\n1,2\n",
        "long.csv": b"step,ppl\n1," + b"9" * 200_000 + b"\n",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    done = run("replay", *arguments, cwd=folder)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
