"""What a policy, a checkpoint and an event log cannot do; other claims of docs/security.md are tested elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from collapse_guard import ConsoleSink, Event, Guard, JsonLinesSink, PolicyError, load_policy
from collapse_guard.cli import app
from tests.loops import digits_model, train

HOSTILE = "vq\x1b]0;owned\x07\x1b[2J[bold red]x[/] \u202e<script>alert(1)</script>"


@pytest.mark.parametrize("text", [
    "version: 1\nname: !!python/object/apply:os.system ['touch owned']\n",
    "version: 1\nname: x\nrules:\n  - {name: low, when: \"__import__('os').system('touch owned') < 1\"}\n",
    "version: 1\nname: x\nrules:\n  - {name: low, when: perplexity < 1, ladder: [os.system]}\n",
    "version: 1\nname: x\nrules:\n  - {name: low, when: perplexity < 1, ladder: [{alert: !!python/name:os.system }]}\n",
])  # fmt: skip
def test_a_policy_that_names_code_is_refused_and_nothing_runs(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text)
    with pytest.raises(PolicyError, match=r"bad\.yaml:\d"):
        load_policy("bad.yaml")
    assert not Path("owned").exists()


def test_checkpoints_of_every_phase_load_with_weights_only_and_without_collapse_guard(tmp_path: Path) -> None:
    phases = []
    with Guard("default", console=False) as guard:

        def save(step: int) -> None:
            if step in (0, 5, 25, 40, 79, 95, 135):
                state = guard.state_dict()
                phases.append([entry["result"] for entry in state["ledger"]["entries"]])
                torch.save({"guard": state}, tmp_path / f"{step}.ckpt")

        train(digits_model(), 140, guard, before_step=save)
        torch.save({"guard": guard.state_dict()}, tmp_path / "140.ckpt")
    assert ["applied"] in phases
    assert ["failed", "applied"] in phases
    program = (
        "import sys, torch, pathlib\n"
        "sys.modules['collapse_guard'] = None  # whoever imports it fails\n"
        f"for path in pathlib.Path({str(tmp_path)!r}).glob('*.ckpt'):\n"
        "    print(torch.load(path, weights_only=True)['guard']['schema'])\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"] * 8


def test_names_that_the_model_chose_steer_no_terminal_and_no_page(tmp_path: Path) -> None:
    def event(kind: str, **fields: Any) -> Event:
        return Event(kind, 3, {"codebook": HOSTILE, "rule": HOSTILE, "reason": HOSTILE, "where": HOSTILE, **fields})

    events = [
        event("alert", severity="critical", why=HOSTILE),
        event("fault"),
        event("skip", action=HOSTILE),
        event("resumed", policy=HOSTILE, policy_changed=False, in_force=[]),
        event("exhausted"),
    ]
    screen = io.StringIO()
    sink, log = ConsoleSink(Console(file=screen, force_terminal=True, width=400)), JsonLinesSink(tmp_path)
    for each in events:
        sink.write(each)
        log.write(each)
    log.close()
    shown = screen.getvalue()
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert "[bold red]x[/]" in shown
    for command in (["watch", "--once"], ["report", "--format", "md"]):
        said = CliRunner().invoke(app, [command[0], str(tmp_path), *command[1:]]).output
        assert "\x1b]0;" not in said
        assert "\x1b[2J" not in said
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(page)]).exit_code == 0
    assert "<script>alert(1)" not in page.read_text()
