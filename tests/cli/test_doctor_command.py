"""`collapse-guard doctor`: what is found in a model and what a policy could do there, without training it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import run

MODELS = """
import torch
from torch import nn
from vector_quantize_pytorch import FSQ, ResidualVQ, VectorQuantize
from collapse_guard import GenericVQ


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rvq = ResidualVQ(dim=8, codebook_size=16, num_quantizers=3)
        self.fsq = FSQ([5, 4, 3])


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantizer = nn.Module()
        self.quantizer.rows = nn.Parameter(torch.randn(10, 4))


def plain():
    return VectorQuantize(dim=8, codebook_size=16)


def described():
    return Own(), {"quantizer": GenericVQ(table="rows", codes=lambda output: output)}


def misdescribed():
    return Own(), {"quantizer": GenericVQ(table="columns", codes=lambda output: output)}


def linear():
    return nn.Linear(3, 3)


def number():
    return 7


def fails():
    raise RuntimeError(":boom: [red]no data")


constant = 3
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODELS)
    return tmp_path


def test_a_quantizer_that_every_rung_can_act_on_is_shown_and_exits_with_0(models: Path) -> None:
    done = run("doctor", "mine:plain", cwd=models)
    assert done.returncode == 0, done.stderr
    assert "policy default, mode act" in done.stdout
    lines = done.stdout[done.stdout.index("What the ladders") :].splitlines()
    assert lines == [
        "What the ladders of policy default can do here:",
        "  collapsed",
        "    1. decay_commitment: yes",
        "    2. disable_normalisation: not needed",
        "       model: its search does not normalise, as far as its settings tell",
        "    3. reset_codes: yes",
        "    4. fallback_tokenizer: yes",
        "  astray",
        "    1. reset_codes: yes",
        "    2. fallback_tokenizer: yes",
        "  evaluation_only",
        "    1. eval_fix: yes",
        "  reshaped",
        "    1. restore_layout: yes",
        "  cut_off",
        "    1. bridge_gradient: yes",
        "  unspread",
        "    1. reset_codes: yes",
        "    2. fast_ema: yes",
        "    3. take_over_updates: yes",
        "    4. fallback_tokenizer: yes",
        "  collapsing",
        "    1. decay_commitment: yes",
        "    2. reset_codes: yes",
        "    3. reset_codes: yes",
        "    4. decay_commitment: yes",
        "    5. fallback_tokenizer: yes",
        "  outgrown",
        "    1. raise_commitment: yes",
        "    2. upkeep: yes",
        "  fallen",
        "    1. disable_normalisation: not needed",
        "    2. take_over_updates: yes",
        "    3. reset_codes: yes",
        "    4. take_over_updates: yes",
        "    5. fallback_tokenizer: yes",
        "  misled",
        "    1. take_over_updates: yes",
        "    2. fallback_tokenizer: yes",
        "  unused",
        "    1. decay_commitment: yes",
        "    2. reset_codes: yes",
        "    3. take_over_updates: yes",
        "  unfitted",
        "    1. reset_codes: yes",
        "    2. take_over_updates: yes",
        "  half_repaired",
        "    1. upkeep: yes",
        "  restless",
        "    1. ease_replacement: not needed",
        "       model: this quantizer replaces no codes by itself",
        "  overheated",
        "    1. cool_sampling: not needed",
        "       model: this quantizer draws no codes at random",
        "  hasty",
        "    1. slow_ema: yes",
        "    2. reset_codes: yes",
        "  overcommitted",
        "    1. decay_commitment: yes",
        "  outweighed",
        "    1. decay_commitment: yes",
        "  stale_moments",
        "    1. restart_optimizer: yes",
        "  set_back",
        "    1. restart_optimizer: yes",
        "  standing",
        "    1. take_over_updates: yes",
    ]


def test_what_no_rung_can_repair_is_named_and_exits_with_1(models: Path) -> None:
    (models / "mine.yaml").write_text(
        "version: 1\nname: mine\nrules:\n"
        "  - {name: low, when: perplexity < 2, ladder: [alert, reset_codes]}\n"
        "  - {name: told, when: perplexity < 3}\n"
        "  - {name: deep, when: perplexity < 4, codebooks: ['rvq.*'], ladder: [decay_commitment]}\n"
    )
    done = run("doctor", "mine.py:Mixed", "--policy", "mine.yaml", cwd=models)
    assert done.returncode == 1
    assert done.stdout.count("a fixed grid: look at the encoder") == 1
    lines = done.stdout[done.stdout.index("What the ladders") :].splitlines()
    assert lines[1:] == [
        "  low",
        "    1. alert: yes",
        "    2. reset_codes: yes on rvq.layers.0-2; no on fsq",
        "    repairs nothing on fsq: there it can only tell",
        "  deep, on rvq.layers.0-2",
        "    1. decay_commitment: yes",
    ]


def test_json_holds_codebooks_ladders_and_bytes(models: Path) -> None:
    done = run("doctor", "mine:Mixed", "--format", "json", cwd=models)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    names = [book["name"] for book in report["codebooks"]]
    assert names == ["rvq.layers.0", "rvq.layers.1", "rvq.layers.2", "fsq"]
    # 4096 latents of 8 float32, a code, a forward and a flag each, 18 counters and 16 sums
    assert report["codebooks"][0]["bytes"] == 4096 * (8 * 4 + 2 * 8 + 4 + 1) + (18 + 16) * 8
    by_rule = {ladder["rule"]: ladder for ladder in report["ladders"]}
    assert by_rule["collapsed"]["powerless_on"] == ["fsq"]
    assert by_rule["non_finite"]["rungs"] == []
    assert list(by_rule["collapsed"]["rungs"][0]["refused"]) == ["fsq"]


def test_a_model_without_a_quantizer_is_told_what_is_recognised_and_exits_with_1(models: Path) -> None:
    done = run("doctor", "mine:linear", cwd=models)
    assert done.returncode == 1
    assert "mine:linear: found no quantizer to guard in Linear." in done.stdout
    assert "vector-quantize-pytorch: VectorQuantize" in done.stdout
    assert "GenericVQ(table=" in done.stdout


def test_a_factory_may_return_descriptions_with_the_model(models: Path) -> None:
    done = run("doctor", "mine:described", "--policy", "observe", cwd=models)
    assert "explicit" in done.stdout
    assert "commitment: GenericVQ(commitment=...) was not given" in done.stdout
    wrong = run("doctor", "mine:misdescribed", cwd=models)
    assert wrong.returncode == 2
    assert "a description does not fit the model: quantizer has no tensor 'columns'; it has: rows" in wrong.stderr


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mine", "mine: expected MODULE:FACTORY"),
        ("mine:absent", "mine has no 'absent'; it has: FSQ"),
        ("mine:constant", "constant cannot be called (int)"),
        ("mine:number", "expected a torch.nn.Module, or (module, descriptions), got int"),
        ("mine:fails", "fails() raised RuntimeError: :boom: [red]no data"),
        ("mine:VectorQuantize", "FACTORY takes no arguments: wrap it in a function"),
        ("theirs:build", "importing theirs raised ModuleNotFoundError: No module named 'theirs'"),
        ("theirs.py:build", "there is no file theirs.py"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line_and_exits_with_2(models: Path, target: str, said: str) -> None:
    done = run("doctor", target, cwd=models)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
