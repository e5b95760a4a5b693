"""Codes that jump, against what Lloyd's algorithm alone, scikit-learn and FAISS reach."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from collapse_guard.kmeans import assign, fit_codebook, search
from collapse_guard.kmeans.budget import Allowance, Budget
from collapse_guard.kmeans.relocation import Refinement, refine
from collapse_guard.kmeans.search import Comparison
from tests.kmeans.samples import BACKENDS, blobs, distances_by_loop, normal


def refined(latents: Tensor, table: Tensor, passes: int, *, relocate: bool) -> tuple[Refinement, Allowance]:
    allowance = Allowance(Budget(passes))
    return refine(Comparison(latents), table, "l2", allowance, relocate=relocate), allowance


class TestRelocation:
    def test_a_code_that_shares_its_blob_jumps_to_the_two_blobs_of_another(self) -> None:
        """No Lloyd step can do this: the blobs lie far apart."""
        latents, centres = blobs(4, 50, 6), 10 * normal(4, 6)
        bad = torch.stack([centres[0] + 0.05, centres[0] - 0.05, centres[1], (centres[2] + centres[3]) / 2])
        stuck, _ = refined(latents, bad, 20, relocate=False)
        freed, _ = refined(latents, bad, 20, relocate=True)
        assert (stuck.moved, freed.moved) == (0, 1)
        best = distances_by_loop(latents, centres, "l2").min(axis=1).sum()
        assert distances_by_loop(latents, stuck.table, "l2").min(axis=1).sum() > 10 * best
        assert distances_by_loop(latents, freed.table, "l2").min(axis=1).sum() < 1.1 * best

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_every_one_of_many_blobs_gets_its_code(self, backend: Literal["faiss", "sklearn", "torch"]) -> None:
        """A start by chance, however clever, leaves some of 100 blobs without a code."""
        fitted = fit_codebook(blobs(100, 40, 8), 100, backend=backend, budget=40)
        assert fitted.counts.tolist() == [40] * 100

    def test_the_error_is_never_above_that_of_lloyd_alone(self) -> None:
        latents = normal(4000, 8)
        start = latents[:128].clone()
        with_jumps, without = (refined(latents, start, 60, relocate=each)[0] for each in (True, False))
        errors = [
            float(search.squared_errors(latents, each.table, assign(latents, each.table)).mean())
            for each in (with_jumps, without)
        ]
        assert errors[0] < errors[1]

    def test_the_passes_are_a_bound(self) -> None:
        latents = normal(3000, 8)
        for passes in (1, 2, 3, 5, 9):
            _, allowance = refined(latents, latents[:64], passes, relocate=True)
            assert 0 < allowance.spent <= passes

    def test_a_warm_start_is_not_relocated(self) -> None:
        latents = blobs(20, 30, 4)
        assert fit_codebook(latents, 20, init=latents[:20]).moved == 0

    def test_codes_that_a_moving_encoder_left_behind_go_where_they_are_needed(self) -> None:
        """Two blobs of three have moved away: codes follow them, and the codes of the third keep to it."""
        latents = blobs(3, 100, 4, spread=1.0)
        old = fit_codebook(latents, 24, seed=1).codebook
        codes = assign(latents, old)
        third = assign(latents, 10 * normal(3, 4)) == 2
        drifted = torch.where(third.unsqueeze(-1), latents, latents + 60)
        new = fit_codebook(drifted, 24, init=old, budget=5)
        kept = torch.unique(codes[third])
        assert set(kept.tolist()) <= set(assign(drifted[third], new.codebook).tolist())
        assert (new.counts > 0).all()
        assert new.moved > 0

    def test_a_warm_refit_follows_a_drift_at_least_as_well_as_faiss_does_in_as_many_steps(self) -> None:
        """FAISS splits large codes for those left without a point, in every step; so must we, and by the error.

        Once they were refilled after the last step only, with the worst served latents: a codebook of outliers.
        """
        import faiss

        latents = blobs(40, 50, 8, spread=3.0)
        old = fit_codebook(latents, 128).codebook
        drifted = latents * 0.5 + 4 * normal(1, 8, seed=9)
        rival = faiss.Kmeans(8, 128, niter=5, min_points_per_centroid=1, max_points_per_centroid=len(latents))
        rival.train(drifted.numpy(), init_centroids=old.numpy())
        theirs = torch.from_numpy(rival.centroids)
        error = float(search.squared_errors(drifted, theirs, assign(drifted, theirs)).sum())
        assert fit_codebook(drifted, 128, init=old, budget=5).inertia < error
