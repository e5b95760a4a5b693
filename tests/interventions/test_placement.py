"""Where codes go beside those that live: spread out, distinct, and the same for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from collapse_guard import discover
from collapse_guard.interventions.placement import beside_the_living, place_beside, scale_counts
from tests import quantizers


def islands(n: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    return centres[torch.arange(n) % 4] + torch.randn(n, 2, generator=generator)


def test_new_codes_go_to_the_islands_that_no_living_code_serves() -> None:
    living = torch.tensor([[0.0, 0.0], [50.0, 0.0]])
    placed = place_beside(living, islands(), 2, source="kmeans", seed=3)
    assert sorted(placed.round(decimals=-1).tolist()) == [[0.0, 50.0], [50.0, 50.0]]


@pytest.mark.parametrize("source", ["kmeans", "reservoir"])
@pytest.mark.parametrize("latents", [islands(4), torch.ones(30, 2), torch.zeros(30, 2)], ids=["few", "ones", "zeros"])
def test_repeated_latents_give_distinct_codes(latents: torch.Tensor, source: Any) -> None:
    for living in (torch.empty(0, 2), latents[:1]):
        placed = place_beside(living, latents, 12, source=source, seed=1)
        assert placed.shape == (12, 2)
        assert len(torch.unique(torch.cat([living, placed]), dim=0)) == 12 + len(living)
        assert bool(placed.isfinite().all())


def test_a_seed_decides_every_bit_and_no_global_stream_is_touched() -> None:
    before = torch.random.get_rng_state()
    first, second = (place_beside(torch.empty(0, 2), islands(), 9, source="kmeans", seed=5) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_counts_keep_their_total_and_none_starts_near_death() -> None:
    counts = scale_counts(torch.tensor([90, 10, 0, 0]), torch.tensor([5.0, 5.0, 5.0, 5.0]), 0.5)
    torch.testing.assert_close(counts, torch.tensor([18.0, 2.5, 2.5, 2.5]))
    broken = scale_counts(torch.tensor([3, 1]), torch.tensor([float("nan"), 1.0]), 0.5)
    torch.testing.assert_close(broken, torch.tensor([3.0, 1.0]))


def test_a_broken_count_is_not_handed_on_to_the_codes_that_are_placed() -> None:
    for broken in (torch.nan, torch.inf, -1.0):
        module = quantizers.Plain(8, 2)
        (view,) = discover(module).views
        assert view.ema_count is not None
        view.ema_count.get().fill_(1.0)[3] = 100 * broken
        _, counts = beside_the_living(view, torch.tensor([3]), islands(), source="kmeans", refill=0.5, seed=0)
        assert counts is not None
        assert counts.tolist() == [pytest.approx(0.5 * 300 / 8)]


def test_of_a_vector_that_is_there_many_times_a_draw_takes_one() -> None:
    padded = torch.cat([islands(40), torch.zeros(400, 2)])
    placed = place_beside(torch.empty(0, 2), padded, 41, source="reservoir", seed=1)
    assert sorted(placed.tolist()) == sorted(torch.unique(padded, dim=0).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_what_rounding_has_left_of_tokens_that_a_coarser_code_was_placed_on_is_drawn_once(seed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left_over = torch.randn(200, 4, generator=generator)
    left_over[torch.randperm(200, generator=generator)[:100]] *= 1e-7
    placed = place_beside(torch.empty(0, 4), left_over, 64, source="reservoir", seed=seed)
    assert int((placed.norm(dim=-1) < 1e-2).sum()) <= 1
