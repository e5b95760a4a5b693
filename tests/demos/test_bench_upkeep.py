"""The upkeep bench: arms see the same data, and the table says what the runs hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from collapse_guard.demos import (
    ControlRun,
    UpkeepRun,
    control_as_markdown,
    run_control,
    run_upkeep_arm,
    upkeep_as_markdown,
)

RUN = UpkeepRun("own 0.8", 512, 0, 1200, 0.004, 300.0, 0.7, 10.0, [])


def test_the_table_pairs_seeds_and_takes_the_better_decay_of_each_kind() -> None:
    runs = []
    for seed, worse in ((0, 0.0), (1, 0.001)):
        for arm, error in (("own 0.8", 0.004), ("own 0.99", 0.005), ("guard 0.8", 0.004), ("guard 0.99", 0.003)):
            runs.append(replace(RUN, arm=arm, seed=seed, error=error + worse, usage=0.9 if "guard" in arm else 0.7))
    runs.append(replace(RUN, arm="guard 0.8", seed=2, error=0.001))  # without its pair
    row = upkeep_as_markdown(runs).splitlines()[-1]
    ratios = [0.003 / 0.004, 0.004 / 0.005]
    mean, half = sum(ratios) / 2, 12.71 * abs(ratios[1] - ratios[0]) / 2**0.5 / 2**0.5
    assert row == f"| 512 | 2 | {mean:.3f} +- {half:.3f} | 0.00350 / 0.00450 | 300 / 300 | 90.0% / 70.0% | 0.99 / 0.8 |"


def test_a_cell_without_a_pair_is_left_out() -> None:
    assert "512" not in upkeep_as_markdown([RUN, replace(RUN, arm="own 0.99")])


@pytest.mark.parametrize("arm", ["guard 0.8", "own 0.8"])
def test_a_run_is_the_same_again_and_lies_in_range(arm: str) -> None:
    torch.set_num_threads(1)
    first, again = (run_upkeep_arm(arm, 32, 0, 45) for _ in range(2))
    assert replace(first, cpu_seconds=0.0) == replace(again, cpu_seconds=0.0)
    assert 0 < first.error < 1
    assert 1 <= first.perplexity <= 32
    assert 0 < first.usage <= 1


def test_the_control_is_a_healthy_run_and_its_table_says_what_was_done() -> None:
    run = run_control("default", 0, epochs=2)
    assert run.interventions == ["reset_codes inconclusive"]  # `unused`: nothing is wrong but the start
    assert 0 < run.usage < 1
    tended = ControlRun("upkeep", 0, 0.5, 10.0, 0.25, ["upkeep inconclusive"])
    text = control_as_markdown([replace(tended, seed=1, accuracy=0.75), tended, replace(run, accuracy=0.5)])
    assert "| upkeep | 2 | 0.625 (0.500-0.750) | 10.0 | 25.0% | upkeep inconclusive |" in text
    assert "| default | 1 | 0.500 (0.500-0.500) |" in text
