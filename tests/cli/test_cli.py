"""The command line, run as a user runs it: what it prints and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT, prelude


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = (
        f"{prelude()}sys.argv = ['collapse-guard', *{list(arguments)!r}]\nfrom collapse_guard.cli import main\nmain()"
    )
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=cwd or ROOT, check=False
    )


def test_a_good_policy_is_fine_and_exits_with_0(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("version: 1\nname: mine\nrules:\n  - {name: low, when: perplexity < 2}\n")
    done = run("check", "default", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert (
        "default: fine: default, mode act, rules non_finite, collapsed, astray, evaluation_only, reshaped, cut_off, "
        "unspread, collapsing, outgrown, fallen, misled, unused, unfitted, half_repaired, restless, "
        "overheated, hasty, overcommitted, outweighed, stale_moments, set_back, standing\n" in done.stdout
    )
    assert "mine.yaml: fine: mine, mode act, rules low" in done.stdout


def test_every_mistake_is_printed_with_file_line_and_column_and_exits_with_1(tmp_path: Path) -> None:
    text = "version: 1\nname: mine\nwarmup: 10\nrules:\n  - name: low\n    when: perplexty < 2\n    ladder: [pray]\n"
    (tmp_path / "bad.yaml").write_text(text)
    done = run("check", "bad.yaml", "observe", cwd=tmp_path)
    assert done.returncode == 1
    for expected in ("bad.yaml:3:", "bad.yaml:6:", "bad.yaml:7:", "perplexity", "pray", "observe: fine"):
        assert expected in done.stdout


@pytest.mark.parametrize("source", ["missing.yaml", "conservativ", "."])
def test_what_is_no_policy_is_said_and_exits_with_2(tmp_path: Path, source: str) -> None:
    done = run("check", source, "default", cwd=tmp_path)
    assert done.returncode == 2
    why = "that is a directory" if source == "." else "there is no such file"
    assert f"{source}: {why}" in done.stdout
    assert "default: fine" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [("dance",), ("check",), ("demo", "--seeds", "0"), ("demo", "--seeds", "many")])
def test_bad_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_explain_prints_plain_english_and_names_as_they_are(tmp_path: Path) -> None:
    text = "version: 1\nname: '[bold]mine[/bold]'\nrules:\n  - {name: low, when: perplexity < 2}\n"
    (tmp_path / "mine.yaml").write_text(text)
    done = run("explain", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert "Policy [bold]mine[/bold]: it watches" in done.stdout
    assert "It fires when perplexity is below 2, at a single reading." in done.stdout


def test_schema_prints_json() -> None:
    done = run("schema")
    assert done.returncode == 0
    assert json.loads(done.stdout)["title"] == "collapse_guard policy"


@pytest.mark.parametrize("command", ["explain"])
def test_a_policy_that_cannot_be_used_is_said_on_stderr_and_exits_with_2(tmp_path: Path, command: str) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\nrules:\n  - {name: low, when: perplexty < 2}\n")
    for source, expected in (("bad.yaml", "bad.yaml:3:"), ("gone.yaml", "gone.yaml: there is no such file")):
        done = run(command, source, cwd=tmp_path)
        assert done.returncode == 2
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_a_short_demo_prints_the_alert_log_one_table_and_the_cause(tmp_path: Path) -> None:
    done = run("demo", "--seeds", "1", "--epochs", "4", "--log-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for expected in (
        "step     30  CRITICAL      quantizer: collapsed: perplexity 1.00 < 1.5",
        "times the latents' norm",
        "reset_codes #1: 256 of 256 codes placed",
        "FAILED",
        "fallback_tokenizer #2",
        "RECOVERED",
        "Handwritten digits, 4 epochs, mean of 1 seeds",
        "Root cause, as the readings show it",
    ):
        assert expected in done.stdout
    assert "% reset_codes recovered 1x without VQ: the same" in " ".join(done.stdout.split())  # of the last arm
    assert (tmp_path / "guarded-0" / "collapse_guard" / "events.jsonl").exists()


def test_the_console_script_is_this_command_line() -> None:
    """The same commands through typer's own runner, in this process."""
    from typer.testing import CliRunner

    from collapse_guard.cli import app

    runner = CliRunner()
    assert runner.invoke(app, ["check", "default"]).exit_code == 0
    assert runner.invoke(app, ["check", "nothing.yaml"]).exit_code == 2
    shown = runner.invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert "demo" in shown.output
