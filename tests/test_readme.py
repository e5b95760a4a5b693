"""The README is true: its Python runs, its YAML loads, its console blocks are what the demo prints."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from collapse_guard import read_events
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders
from collapse_guard.policies import load_policy
from tests.checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)

    class LitModel(DigitsClassifier):
        def __init__(self) -> None:
            torch.manual_seed(0)
            super().__init__(ReferenceQuantizer())

    namespace: dict[str, Any] = {"LitModel": LitModel, "loader": digits_loaders(0)[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning hints at workers and loggers when its defaults are used, as here
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "RECOVERED" in printed or "fallback_tokenizer" in printed
    assert re.search(r"^20 quantizer 1\.0 collapsed$", printed, flags=re.MULTILINE)


class CliModel(DigitsClassifier):
    def __init__(self) -> None:
        super().__init__(ReferenceQuantizer())

    def train_dataloader(self) -> Any:
        return digits_loaders(0)[0]


def test_the_config_of_lightning_cli_trains_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    (text,) = (block for block in blocks("yaml") if block.startswith("trainer:"))
    Path(tmp_path, "train.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "train.yaml", "--trainer.max_steps", "40"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        cli = LightningCLI(CliModel, seed_everything_default=False)
    events = [record["event"] for record in read_events(cli.trainer.log_dir or "")]
    assert (events[0], events[-1]) == ("attached", "summary")
    assert "intervention" in events


def test_the_yaml_block_is_a_valid_policy() -> None:
    (text,) = (block for block in blocks("yaml") if block.startswith("version:"))
    policy = load_policy(yaml.safe_load(text))
    assert [rule.name for rule in policy.rules] == ["collapsed"]


def test_the_console_blocks_are_the_demos_output() -> None:
    for part in ("log", "table"):
        (text,) = re.findall(rf"<!-- demo:{part} -->\n(.*?)<!-- /demo:{part} -->", README, flags=re.DOTALL)
        assert "```text" in text
    for expected in ("CRITICAL", "FAILED", "fallback_tokenizer", "RECOVERED", "Root cause"):
        assert expected in README


def test_the_table_of_supported_classes_is_that_of_the_contract() -> None:
    from tests.contract.support import support_table

    assert f"<!-- support:table -->\n{support_table()}\n<!-- /support:table -->" in README, "run `make support`"


def test_no_machine_path_is_in_the_readme() -> None:
    assert not re.search(r"/(root|home|tmp|work)/", README)


def test_the_view_of_a_run_is_the_one_that_is_drawn() -> None:
    """`python -m tests.cli.test_watch_drawing` draws it anew."""
    screen = (ROOT / "tests" / "cli" / "screens" / "one-80x24.txt").read_text(encoding="utf-8")
    assert screen.rstrip() in [block.rstrip() for block in blocks("text")]
