"""What a finer level codes is what coarser codes leave over: when that shrinks, the encoder need not have collapsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from collapse_guard.demos import zoo
from collapse_guard.diagnosis import Mark
from collapse_guard.diagnosis.encoder import collapsed_encoder
from tests.diagnosis.case import facts_of
from tests.policies.series import reading

K, D = 64, 4


@pytest.mark.parametrize(("spread_left", "is_named"), [(1.0, False), (0.01, True)])
def test_a_finer_level_without_spread_names_the_encoder_only_if_that_has_lost_it_too(
    spread_left: float, is_named: bool
) -> None:
    noise = torch.randn(256, D, generator=torch.Generator().manual_seed(0))
    facts = facts_of(
        reading(120, 1.0, "rvq.1", K=K, D=D, level=1, group="rvq", ceiling=64.0, perplexity_ratio=0.02, top_share=1.0),
        0.01 * noise,
        table=noise[:K],
        marks=_marks(noise, 0.01),
    )
    assert collapsed_encoder(facts) is not None  # as far as this level alone can tell
    found = collapsed_encoder(replace(facts, coarsest=_marks(noise, spread_left)))
    assert (found is not None) is is_named


def test_deep_levels_that_died_at_once_are_reset_after_the_coarser_ones_and_the_commitment_is_left_alone() -> None:
    torch.set_num_threads(1)
    run = zoo.run_cell(zoo.SCENARIOS["residual-8"], zoo.ARMS["default"], 2, steps=100)
    reset = [int(book.rpartition(".")[2]) for _, book, action, _ in run.interventions if action == "reset_codes"]
    assert reset == [1, 2, 3, 4, 5, 6, 7]
    assert {action for _, _, action, _ in run.interventions} <= {"reset_codes", "restart_optimizer"}


def _marks(noise: Tensor, spread_left: float) -> Sequence[Mark]:
    """Marks of latents whose spread falls to a share of what it was; their mean stays."""
    return [_mark(10, noise), _mark(60, noise), _mark(120, spread_left * noise)]


def _mark(step: int, latents: Tensor) -> Mark:
    away = latents + 1.0
    power = away.square().sum(dim=-1)
    variance = (away - away.mean(dim=0)).square().sum(dim=-1).mean()
    sums = torch.cat([torch.stack([power.sqrt().median(), variance, power.mean()]), away.mean(dim=0)])
    return Mark(step=step, codes=away[:8], latents=sums)
