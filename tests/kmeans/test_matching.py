"""Ids that survive a refit: the best order is found, and found again by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from collapse_guard.kmeans import assign, match, match_codes, matching


def blobs(K: int, seed: int, *, D: int = 3, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 6 * torch.randn(K, D, generator=generator)
    return centres, (centres.repeat_interleave(n, 0) + torch.randn(K * n, D, generator=generator))


def kept(old: Tensor, new: Tensor, latents: Tensor, order: Tensor) -> int:
    return int((assign(latents, old) == assign(latents, new[order])).sum())


@given(st.integers(2, 6), st.integers(0, 10_000), st.floats(0.0, 4.0))
def test_no_order_keeps_more_ids(K: int, seed: int, drift: float) -> None:
    centres, latents = blobs(K, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    new = (centres + drift * torch.randn(centres.shape, generator=generator))[torch.randperm(K, generator=generator)]
    order = match_codes(centres, new, latents)
    assert sorted(order.tolist()) == list(range(K))
    best = max(kept(centres, new, latents, torch.tensor(each)) for each in itertools.permutations(range(K)))
    assert kept(centres, new, latents, order) == best


def test_a_shuffled_codebook_gets_its_own_order_back() -> None:
    centres, latents = blobs(50, 0)
    shuffle = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    order = match_codes(centres, centres[shuffle], latents)
    assert torch.equal(centres[shuffle][order], centres)


def test_codes_that_no_latent_uses_are_matched_by_distance() -> None:
    old = torch.tensor([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]])
    new = torch.tensor([[203.0, 0.0], [0.1, 0.0], [98.0, 0.0]])
    assert match_codes(old, new, torch.zeros(5, 2)).tolist() == [1, 2, 0]
    assert match_codes(old, new, torch.zeros(0, 2)).tolist() == [1, 2, 0]


def test_cosine_ids_are_matched_by_direction() -> None:
    old = torch.eye(3)
    new = torch.tensor([[0.0, 0.0, 9.0], [5.0, 0.1, 0.0], [0.0, 0.2, 0.0]])
    assert match_codes(old, new, torch.eye(3), "cosine").tolist() == [1, 2, 0]


def test_large_codebooks_match_mutual_favourites_first(monkeypatch: pytest.MonkeyPatch) -> None:
    centres, latents = blobs(60, 1)
    generator = torch.Generator().manual_seed(2)
    new = (centres + 0.3 * torch.randn(centres.shape, generator=generator))[torch.randperm(60, generator=generator)]
    best = match_codes(centres, new, latents)
    monkeypatch.setattr(matching, "EXACT_UP_TO", 10)
    near = match_codes(centres, new, latents)
    assert sorted(near.tolist()) == list(range(60))
    assert kept(centres, new, latents, near) >= 0.99 * kept(centres, new, latents, best)
    collapsed = 1000 * torch.randn(60, 3, generator=generator)
    collapsed[7] = 0.0  # takes every latent, so that there is hardly a pair to match
    order = match_codes(collapsed, new, latents)
    assert sorted(order.tolist()) == list(range(60))
    assert kept(collapsed, new, latents, order) == int(assign(latents, new).bincount().max())


def test_rows_without_a_number_had_no_latents() -> None:
    centres, latents = blobs(6, 0)
    old = centres[[3, 0, 1, 5, 2, 4]]
    old[2] = torch.nan
    matching = match(old, centres, latents)
    assert sorted(matching.order.tolist()) == list(range(6))
    assert matching.order[[0, 1, 3, 4, 5]].tolist() == [3, 0, 5, 2, 4]
    assert matching.tokens == len(latents)
    nothing = match(torch.full_like(old, torch.nan), centres, latents)
    assert sorted(nothing.order.tolist()) == list(range(6))
    assert nothing.changed == len(latents)


def test_codebooks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected two codebooks of one shape \(K, D\), got \(3, 2\) and \(4, 2\)"):
        match_codes(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(5, 2))


def test_the_number_of_kept_ids_is_that_of_a_plain_recount() -> None:
    centres, latents = blobs(8, 5)
    new = centres.flip(0) + 0.5
    matched = match(centres, new, latents)
    order = matched.order.numpy()
    distances = np.square(latents.double().numpy()[:, None] - centres.double().numpy()).sum(-1)
    moved = np.square(latents.double().numpy()[:, None] - new.double().numpy()[order]).sum(-1)
    assert (distances.argmin(1) == moved.argmin(1)).mean() > 0.9
    assert (matched.changed, matched.tokens) == (int((distances.argmin(1) != moved.argmin(1)).sum()), len(latents))
