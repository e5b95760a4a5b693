"""The tables of the diagnosis bench, on runs made up by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from collapse_guard.demos import (
    COST_BOUND,
    DiagnosisCost,
    DiagnosisRun,
    cost_as_markdown,
    diagnosis_as_markdown,
    measure_cost,
    read_diagnosis_runs,
)


def run(cause: str, *found: tuple[str, float], seed: int = 1) -> DiagnosisRun:
    return DiagnosisRun(cause or "sound", "home", seed, cause, "inquest", 20, list(found), 0.5)


RUNS = [
    run("starvation", ("starvation", 0.8), ("few_modes", 0.2)),
    run("starvation", ("few_modes", 0.6), ("starvation", 0.5), seed=2),
    run("misplaced_codebook", ("runaway_codebook", 0.4)),
    run("misplaced_codebook"),
    run("", ("few_modes", 0.6)),
    run("", ("few_modes", 0.3), seed=2),
]


def test_runs_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(asdict(each)) + "\n" for each in RUNS))
    assert read_diagnosis_runs(path) == RUNS
    assert read_diagnosis_runs(tmp_path / "none") == []


def test_scores_baselines_and_confusions_are_counted() -> None:
    text = diagnosis_as_markdown(RUNS)
    assert "| all | 4 | 25.0% | 50.0% | 1 of 2 |" in text
    assert "a cause drawn at random | 4 | 50.0% | 100.0% |" in text
    assert "right where a reset is the remedy | 4 | 50.0% |" in text
    assert "| starvation | 1 | 2 | few_modes 1x |" in text
    assert "runaway_codebook 1x, nothing 1x" in text
    assert "2 runs; a cause was claimed with a confidence above 0.5 in 1 of them." in text


def test_the_cost_is_told_as_least_and_median() -> None:
    cost = DiagnosisCost("blown", 512, [0.002, 0.001, 0.004], [0.0001], [0.02, 0.01, 0.03], "starvation")
    cells = ("1.000 ms of 3 (2.000 ms)", "0.100 ms of 1 (0.100 ms)", "10.000 ms of 3 (20.000 ms)")
    assert f"| blown | 512 | {' | '.join(cells)} | starvation |" in cost_as_markdown([cost])


@pytest.mark.slow
def test_a_diagnosis_of_a_large_codebook_is_within_its_bound_and_costs_little_where_nobody_asks() -> None:
    torch.set_num_threads(1)
    for cost in measure_cost(4):
        assert cost.found
        assert min(cost.explain) < COST_BOUND
        assert min(cost.quiet) < COST_BOUND / 50
