"""The ablation: its arms train, its table and its verdicts say what the runs hold, and the pages are what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from collapse_guard.cli import app
from collapse_guard.demos import (
    ABLATION_ARMS,
    AblationRun,
    Bypassed,
    LookRun,
    ablation_as_markdown,
    ablation_table,
    conclude_ablation,
    draw_ablation,
    measure_ablation,
    read_lines,
    run_ablation_arm,
    tell_story,
)
from tests.checkout import ROOT

NOTES = ROOT / "docs" / "benchmarks"
RUN = AblationRun("reference", "missing", 0, 30, 0.1, [1.0], [1.0], 0.004, [], 5.0)
RUNS = [
    replace(run, seed=seed)
    for seed in (0, 1)
    for run in (
        replace(RUN, arm="without", factor="-", accuracy=0.9, train_perplexity=[], eval_perplexity=[], usage=0.0),
        replace(RUN, accuracy=0.1 + 0.2 * seed),
        replace(RUN, factor="put back", accuracy=0.8, eval_perplexity=[20.0]),
        replace(RUN, arm="C", accuracy=0.88, eval_perplexity=[90.0], interventions=["fallback_tokenizer recovered"]),
        replace(RUN, arm="B", accuracy=0.5, eval_perplexity=[3.0]),
        replace(RUN, arm="clip", accuracy=0.1),
        replace(RUN, arm="clip", factor="put back", accuracy=0.8 + 0.1 * seed),
        replace(RUN, arm="residual", factor="put back", accuracy=0.7, train_perplexity=[2, 3], eval_perplexity=[4, 5]),
    )
]


def test_the_table_has_a_row_for_each_arm_that_was_run() -> None:
    rows = ablation_table(RUNS).splitlines()
    assert len(rows) == 2 + 8
    assert "| without VQ | - | 0.900 (0.900-0.900) | - | - | - |" in rows
    assert "| nothing | missing | 0.200 (0.100-0.300) | 1.0 / 1.0 | 0.4% | - |" in rows
    assert any("C: k-means" in row and row.endswith("| fallback_tokenizer recovered 2x |") for row in rows)
    assert any("residual" in row and "| 2.0, 3.0 / 4.0, 5.0 |" in row for row in rows)


def test_the_verdicts_follow_from_the_runs() -> None:
    first, second, third = conclude_ablation(RUNS).split("\n\n")
    assert "ends at 0.200 (0.100 to 0.300" in first
    assert "put back, is worth +0.600" in first
    assert "in every seed: C: k-means fallback alone (0.880). What these have in common" in second
    assert "in every seed: B: projection 128 -> 64 (0.500)." in second
    assert "or make it worse: gradient clipping (0.100)." in second
    assert (
        "Less accurate in every seed: residual VQ, two levels (-0.100). Neither: gradient clipping (+0.050)." in third
    )
    weak = [replace(run, eval_perplexity=[3.0]) if run.arm == "C" else run for run in RUNS]
    assert "in every seed: none." in conclude_ablation(weak)


@pytest.mark.parametrize(
    ("arm", "factor"),
    [
        ("A", "missing"),
        ("B", "put back"),
        ("C", "missing"),
        ("frozen", "put back"),
        ("fsq", "-"),
        ("residual", "missing"),
    ],
)
def test_arms_train_and_are_measured(arm: str, factor: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = run_ablation_arm(arm, factor, 0, epochs=1, log_dir=tmp_path)
    assert 0 <= run.accuracy <= 1
    assert len(run.eval_perplexity) == len(run.train_perplexity) == (2 if arm == "residual" else 1)
    assert all(1 <= value <= 256 for value in run.eval_perplexity)
    assert 0 < run.usage <= 1
    assert {name.split()[0] for name in run.interventions} == (
        {"fallback_tokenizer"} if arm == "C" else {"freeze_encoder"} if arm == "frozen" else set()
    )


def test_a_bypassed_quantizer_shows_no_codes_and_then_begins() -> None:
    arm = ABLATION_ARMS["warm-up", "put back"]
    assert arm.quantizer is not None
    quantizer = arm.quantizer()
    assert isinstance(quantizer, Bypassed)
    quantizer.steps = 2
    shown = [quantizer(torch.randn(4, 2, 64))[1] for _ in range(3)]
    assert [codes is None for codes in shown] == [True, True, False]
    assert quantizer.eval()(torch.randn(4, 2, 64))[1] is not None


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, *others = ABLATION_ARMS
    assert kept == ("without", "-")
    for factor in reversed(others):  # put back in the reverse order afterwards: that of the tables
        monkeypatch.delitem(ABLATION_ARMS, factor)
    told: list[str] = []
    path = tmp_path / "ablation.jsonl"
    first = measure_ablation(path, seeds=1, epochs=1, log_dir=tmp_path, tell=told.append)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"arm": "without", "fac')  # killed while it wrote
    again = measure_ablation(path, seeds=2, epochs=1, log_dir=tmp_path, tell=told.append)
    assert [run.seed for run in first] == [0]
    assert [run.seed for run in again] == [0, 1]
    assert again[0] == first[0]
    assert len(told) == 2


def test_the_command_line_knows_the_ablation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Path, int, int]] = []

    def pretend(folder: Path, *, seeds: int, epochs: int, log_dir: Path) -> str:
        asked.append((folder, seeds, epochs))
        return "the page"

    monkeypatch.setattr("collapse_guard.demos.run_ablation", pretend)
    result = CliRunner().invoke(app, ["demo", "--ablation", "--seeds", "2", "--log-dir", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, "the page\n")
    assert asked == [(tmp_path, 2, 30)]


def test_the_pages_are_what_the_command_writes() -> None:
    runs, looks = read_lines(NOTES / "ablation.jsonl", AblationRun), read_lines(NOTES / "ablation_looks.jsonl", LookRun)
    assert {(run.arm, run.factor) for run in runs} == set(ABLATION_ARMS)
    assert (NOTES / "ablation.md").read_text(encoding="utf-8") == ablation_as_markdown(runs, looks)
    assert (NOTES / "ablation.svg").read_text(encoding="utf-8") == draw_ablation(runs)
    story = (ROOT / "docs" / "story.md").read_text(encoding="utf-8")
    blocks = {"table": ablation_table(runs), "conclusion": conclude_ablation(runs)}
    assert tell_story(story, blocks) == story
    assert all(block in story for block in blocks.values())
