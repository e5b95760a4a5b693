"""Codebooks from latents, against loops and against the properties that k-means must have."""

from __future__ import annotations

import doctest
import random
import subprocess
import sys
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from collapse_guard.kmeans import Budget, assign, backends, fit, fit_codebook, search
from tests.checkout import ROOT, prelude
from tests.kmeans.samples import BACKENDS, METRICS, blobs, distances_by_loop, distinct_count, normal, same


@pytest.mark.parametrize("backend", BACKENDS)
class TestEveryBackend:
    @pytest.mark.parametrize("metric", METRICS)
    def test_counts_and_inertia_are_those_of_the_codebook(
        self, backend: Literal["faiss", "sklearn", "torch"], metric: Literal["l2", "cosine"]
    ) -> None:
        latents = normal(400, 6)
        fitted = fit_codebook(latents, 24, backend=backend, metric=metric)
        distances = distances_by_loop(latents, fitted.codebook, metric)
        assert fitted.counts.tolist() == np.bincount(distances.argmin(axis=1), minlength=24).tolist()
        assert fitted.inertia == pytest.approx(distances.min(axis=1).sum(), rel=1e-5)
        assert (fitted.distinct, fitted.backend) == (24, backend)
        assert fitted.codebook.dtype == torch.float32
        assert fitted.counts.dtype == torch.int64

    def test_codes_stand_at_the_means_of_their_latents(self, backend: Literal["faiss", "sklearn", "torch"]) -> None:
        """What makes it k-means: run to convergence, each code is the mean of the latents nearest to it."""
        latents = normal(500, 3)
        fitted = fit_codebook(latents, 8, backend=backend, budget=300)
        nearest = distances_by_loop(latents, fitted.codebook, "l2").argmin(axis=1)
        means = np.stack([latents.numpy()[nearest == k].mean(axis=0) for k in range(8)])
        assert fitted.codebook.numpy() == pytest.approx(means, abs=0.02)

    def test_cosine_codes_have_length_one_and_point_where_their_latents_point(
        self, backend: Literal["faiss", "sklearn", "torch"]
    ) -> None:
        latents = blobs(6, 50, 5) * normal(300, 1, seed=7).abs()
        fitted = fit_codebook(latents, 6, backend=backend, metric="cosine")
        assert fitted.codebook.norm(dim=1).numpy() == pytest.approx(np.ones(6), abs=1e-6)
        angles = distances_by_loop(latents, fitted.codebook, "cosine").min(axis=1)
        assert angles.max() < 0.1

    @pytest.mark.parametrize("metric", METRICS)
    def test_a_seed_fixes_every_bit(
        self, backend: Literal["faiss", "sklearn", "torch"], metric: Literal["l2", "cosine"]
    ) -> None:
        latents = normal(2000, 8)
        first, second, other = (
            fit_codebook(latents, 64, backend=backend, metric=metric, seed=seed) for seed in (3, 3, 4)
        )
        assert same(first, second)
        assert not same(first, other)

    def test_no_other_generator_or_thread_setting_is_touched_and_nothing_is_printed(
        self, backend: Literal["faiss", "sklearn", "torch"], capfd: pytest.CaptureFixture[str]
    ) -> None:
        def state() -> list[object]:
            numpys: Any = np.random.get_state()
            threads = [torch.get_num_threads(), faiss.omp_get_max_threads()]
            return [torch.get_rng_state().tolist(), numpys[1].tolist(), numpys[2], random.getstate(), *threads]

        import faiss

        before = state()
        fit_codebook(normal(80, 4, seed=1), 64, backend=backend)
        fit_codebook(torch.ones(5, 4), 16, backend=backend, init=torch.zeros(16, 4))
        assert state() == before
        assert capfd.readouterr() == ("", "")

    def test_a_warm_start_keeps_the_indices(self, backend: Literal["faiss", "sklearn", "torch"]) -> None:
        """Latents that drift a little keep their codes, whatever the order of the codebook."""
        latents = blobs(20, 30, 4)
        old = fit_codebook(latents, 20, backend=backend, budget=50).codebook
        old = old[torch.randperm(20, generator=torch.Generator().manual_seed(5))]
        drifted = latents + 0.3
        new = fit_codebook(drifted, 20, backend=backend, init=old).codebook
        assert torch.equal(assign(drifted, new), assign(latents, old))

    @pytest.mark.parametrize("metric", METRICS)
    def test_a_broken_warm_start_still_ends_in_a_whole_codebook(
        self, backend: Literal["faiss", "sklearn", "torch"], metric: Literal["l2", "cosine"]
    ) -> None:
        init = normal(32, 4, seed=2)
        init[:8] = float("nan")
        init[8:16] = init[8]
        init[16:20] = 1e30
        init[20:24] = 0
        fitted = fit_codebook(normal(500, 4), 32, backend=backend, metric=metric, init=init)
        assert fitted.codebook.isfinite().all()
        assert (distinct_count(fitted.codebook), fitted.distinct) == (32, 32)

    def test_every_code_is_backed_when_latents_repeat(self, backend: Literal["faiss", "sklearn", "torch"]) -> None:
        """70 distinct latents, 50 times each, for 64 codes: seeding alone leaves some of them empty."""
        fitted = fit_codebook(normal(70, 8).repeat(50, 1), 64, backend=backend)
        assert (fitted.distinct, distinct_count(fitted.codebook)) == (64, 64)

    def test_offset_and_scale_of_the_latents_carry_over_to_the_codebook(
        self, backend: Literal["faiss", "sklearn", "torch"]
    ) -> None:
        latents = blobs(12, 40, 4)
        plain = fit_codebook(latents, 12, backend=backend)
        moved = fit_codebook(latents * 8 + 4096, 12, backend=backend)
        assert torch.equal(moved.counts, plain.counts)
        assert moved.codebook.numpy() == pytest.approx(plain.codebook.numpy() * 8 + 4096, abs=0.01)

    def test_one_code_is_the_mean(self, backend: Literal["faiss", "sklearn", "torch"]) -> None:
        latents = normal(300, 5)
        fitted = fit_codebook(latents, 1, backend=backend)
        assert fitted.codebook.numpy() == pytest.approx(latents.mean(dim=0, keepdim=True).numpy(), abs=1e-6)
        assert fitted.inertia == pytest.approx(float((latents - latents.mean(dim=0)).square().sum()), rel=1e-5)

    def test_one_dimension_is_as_good_as_any(self, backend: Literal["faiss", "sklearn", "torch"]) -> None:
        latents = torch.tensor([[0.0], [0.2], [5.0], [5.2], [9.0], [9.2]]).repeat(10, 1)
        fitted = fit_codebook(latents, 3, backend=backend)
        assert sorted(fitted.codebook.flatten().tolist()) == pytest.approx([0.1, 5.1, 9.1], abs=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types_give_a_float32_codebook(
        self, backend: Literal["faiss", "sklearn", "torch"], dtype: torch.dtype
    ) -> None:
        latents = normal(300, 5).to(dtype)
        assert same(fit_codebook(latents, 16, backend=backend), fit_codebook(latents.float(), 16, backend=backend))

    @pytest.mark.parametrize("metric", METRICS)
    def test_latents_that_mean_nothing_are_left_out(
        self, backend: Literal["faiss", "sklearn", "torch"], metric: Literal["l2", "cosine"]
    ) -> None:
        """The rest gives the codebook that it would give alone."""
        latents = normal(300, 5)
        broken = latents.clone().repeat_interleave(2, dim=0)
        broken[1::4] = float("nan")
        broken[3::4, 2] = float("inf")
        broken[5] = 1e30
        fitted = fit_codebook(broken, 16, backend=backend, metric=metric)
        assert same(fitted, fit_codebook(latents, 16, backend=backend, metric=metric))
        assert int(fitted.counts.sum()) == 300


@pytest.mark.parametrize("metric", METRICS)
class TestFewerDistinctLatentsThanCodes:
    def test_every_latent_is_a_code_and_the_rest_stand_beside_them(self, metric: Literal["l2", "cosine"]) -> None:
        latents = normal(30, 8)
        fitted = fit_codebook(latents.repeat(4, 1), 100, metric=metric)
        expected = torch.nn.functional.normalize(latents) if metric == "cosine" else latents
        assert fitted.codebook[:30].numpy() == pytest.approx(expected.numpy(), abs=1e-6)
        assert fitted.counts.tolist() == [4] * 30 + [0] * 70
        assert (fitted.distinct, fitted.iterations, distinct_count(fitted.codebook)) == (30, 0, 100)
        assert fitted.inertia == pytest.approx(0, abs=1e-9)

    def test_surplus_rows_stand_close_but_not_too_close(self, metric: Literal["l2", "cosine"]) -> None:
        latents = normal(10, 8)
        fitted = fit_codebook(latents, 64, metric=metric)
        rows = torch.nn.functional.normalize(latents) if metric == "cosine" else latents
        spread = float((rows - rows.mean(dim=0)).square().sum(dim=1).mean().sqrt())
        gaps = np.sqrt(distances_by_loop(fitted.codebook[10:], fitted.codebook[:10], "l2").min(axis=1))
        assert 0.5 * 0.01 * spread < gaps.min() <= gaps.max() < 0.03 * max(spread, 1)

    @pytest.mark.parametrize("value", [3.0, -1e-20, 1e15])
    @pytest.mark.parametrize(("D", "K"), [(8, 64), (2, 512)])
    def test_constant_latents_give_distinct_rows(
        self, metric: Literal["l2", "cosine"], value: float, D: int, K: int
    ) -> None:
        fitted = fit_codebook(torch.full((100, D), value), K, metric=metric)
        assert (fitted.distinct, distinct_count(fitted.codebook)) == (1, K)
        assert fitted.counts.tolist() == [100] + [0] * (K - 1)
        assert fitted.codebook.isfinite().all()
        assert (fitted.codebook[1:] != 0).any(dim=1).all()

    def test_a_warm_start_keeps_the_codes_that_fit(self, metric: Literal["l2", "cosine"]) -> None:
        """Three latents near codes 7, 2 and 2: the nearest to a code keeps it, the other takes the first free one."""
        init = torch.nn.functional.normalize(normal(10, 4))
        latents = torch.stack([init[7] * 1.01 + 0.001, init[2] + 0.002, init[2] + 0.05])
        fitted = fit_codebook(latents, 10, metric=metric, init=init)
        assert assign(latents, fitted.codebook, metric).tolist() == [7, 2, 0]
        assert (fitted.distinct, distinct_count(fitted.codebook)) == (3, 10)


class TestArguments:
    @pytest.mark.parametrize(("value", "K"), [(0.0, 4096), (3.0, 512), (-1e-20, 512)])
    @pytest.mark.parametrize("D", [1, 8])
    def test_one_constant_latent_leaves_room_for_every_code(self, D: int, value: float, K: int) -> None:
        """Even in one dimension, and at zero."""
        fitted = fit_codebook(torch.full((3, D), value), K)
        assert (fitted.distinct, distinct_count(fitted.codebook)) == (1, K)

    def test_opposite_directions_have_no_mean_but_get_a_code(self) -> None:
        latents = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).repeat(5, 1)
        fitted = fit_codebook(latents, 1, metric="cosine")
        assert fitted.codebook.norm(dim=1).item() == pytest.approx(1)

    def test_auto_is_faiss_and_without_it_sklearn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert fit_codebook(normal(50, 2), 4).backend == "faiss"
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert fit_codebook(normal(50, 2), 4).backend == "sklearn"

    def test_a_faiss_without_starts_of_its_own_gets_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import faiss

        monkeypatch.delattr(faiss, "ClusteringInitMethod_AFK_MC2")
        latents = blobs(16, 20, 4)
        fitted = fit_codebook(latents, 16, backend="faiss")
        assert same(fitted, fit_codebook(latents, 16, backend="faiss"))
        assert fitted.counts.min() > 0

    def test_spread_points_are_far_apart(self) -> None:
        """k-means++ finds all of ten far blobs; ten draws at random would find them once in three thousand tries."""
        latents = blobs(10, 100, 4, spread=0.001)
        drawn = backends.spread_out(latents, 10, seed=0)
        assert len(set(assign(drawn, fit_codebook(latents, 10).codebook).tolist())) == 10

    @pytest.mark.parametrize(
        ("shape", "K", "options", "message"),
        [
            ((4, 3, 2), 4, {}, r"expected shape \(N, D\).* got \(4, 3, 2\); flatten .*reshape\(-1, D\)"),
            ((4, 0), 4, {}, r"got \(4, 0\)"),
            ((4, 2), 0, {}, "at least 1 code, got 0"),
            ((4, 2), 2, {"metric": "dot"}, "expected one of l2, cosine, got 'dot'"),
            ((4, 2), 2, {"backend": "cuml"}, "expected auto, faiss, sklearn, torch, got 'cuml'"),
            ((4, 2), 2, {"budget": 0}, "budget: expected at least 1 iteration, got 0"),
            ((4, 1), 3, {"metric": "cosine"}, 'two directions, got K=3; use metric "l2"'),
            ((4, 2), 2, {"init": torch.zeros(3, 2)}, r"shape \(2, 2\), got \(3, 2\)"),
            ((0, 2), 2, {}, "none of the 0 can be used .*wait until the probe holds finite latents"),
        ],
    )
    def test_arguments_out_of_range_are_refused_with_the_next_move(
        self, shape: tuple[int, ...], K: int, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            fit_codebook(torch.ones(shape), K, **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("value", "metric"), [(float("nan"), "l2"), (float("inf"), "cosine"), (0.0, "cosine")])
    def test_no_usable_latent_says_what_to_do(self, value: float, metric: Literal["l2", "cosine"]) -> None:
        with pytest.raises(ValueError, match=r"none of the 7 can be used .*wait until"):
            fit_codebook(torch.full((7, 3), value), 4, metric=metric)

    def test_gradients_are_neither_needed_nor_kept(self) -> None:
        fitted = fit_codebook(normal(50, 3).requires_grad_(), 4, init=normal(4, 3).requires_grad_())
        assert not fitted.codebook.requires_grad

    def test_the_arguments_stay_as_they_were(self) -> None:
        latents, init = normal(50, 3), normal(60, 3, seed=1)
        before = latents.clone(), init.clone()
        fit_codebook(latents, 60, init=init)
        fit_codebook(latents, 10, init=init[:10])
        fit_codebook(latents, 10, init=init[:10], metric="cosine")
        assert torch.equal(latents, before[0])
        assert torch.equal(init, before[1])


def test_a_backend_is_loaded_when_it_is_used() -> None:
    program = prelude() + (
        "import torch\n"
        "from collapse_guard.kmeans import fit_codebook\n"
        "loaded = [name in sys.modules for name in ('faiss', 'sklearn')]\n"
        "fit_codebook(torch.ones(3, 2), 2)\n"
        "fit_codebook(torch.arange(8.0)[:, None], 2, backend='faiss')\n"
        "print(loaded, 'faiss' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[False, False] True False\n"


@pytest.mark.parametrize("module", [fit, search])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch})  # type: ignore[arg-type]
    assert (result.attempted > 0, result.failed) == (True, 0)


class TestWeights:
    def test_a_latent_counts_as_often_as_its_weight(self) -> None:
        latents = blobs(6, 20, 4)
        weights = torch.randint(0, 4, (120,), generator=torch.Generator().manual_seed(0)).float()
        repeated = latents.repeat_interleave(weights.long(), dim=0)
        weighed = fit_codebook(latents, 6, weights=weights, init=latents[:6], budget=50)
        plain = fit_codebook(repeated, 6, init=latents[:6], budget=50)
        torch.testing.assert_close(weighed.codebook, plain.codebook, rtol=1e-4, atol=1e-4)
        assert weighed.inertia == pytest.approx(plain.inertia, rel=1e-4)

    @pytest.mark.parametrize(
        "weights", [torch.ones(3), torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([1.0, torch.inf, 1.0, 1.0])]
    )
    def test_weights_that_mean_nothing_are_refused(self, weights: Tensor) -> None:
        with pytest.raises(ValueError, match=r"weights: expected \(4,\) finite numbers from 0"):
            fit_codebook(normal(4, 2), 2, weights=weights)

    @pytest.mark.parametrize("scale", [2.0**-140, 2.0**120, 2.0**-1070, 2.0**1000])
    def test_the_unit_of_the_weights_does_not_matter(self, scale: float) -> None:
        latents, weights = blobs(6, 20, 4), torch.arange(120.0, dtype=torch.float64) % 4
        plain, scaled = (fit_codebook(latents, 6, weights=each) for each in (weights, weights * scale))
        assert same(plain, scaled)
        assert scaled.inertia / scale == pytest.approx(plain.inertia, rel=0.1)  # of 2^-1070 few bits are left

    def test_latents_of_weight_zero_alone_are_none(self) -> None:
        with pytest.raises(ValueError, match=r"none of the 4 can be used .*weight 0"):
            fit_codebook(normal(4, 2), 2, weights=torch.zeros(4))


def test_what_is_no_tensor_of_real_numbers_is_refused_with_the_next_move() -> None:
    for latents in (np.zeros((4, 2)), [[1.0]], torch.zeros(4, 2, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"expected a tensor of real numbers, got .*as_tensor"):
            fit_codebook(latents, 2)  # type: ignore[arg-type]


def test_a_thin_sample_says_so() -> None:
    few, enough = fit_codebook(normal(311, 2), 8), fit_codebook(normal(312, 2), 8)
    assert (few.is_thin, enough.is_thin) == (True, False)
    assert str(few) == f"faiss, 311 latents, few for 8 codes, error {few.inertia / 311:.4g}"
    assert str(enough) == f"faiss, 312 latents, error {enough.inertia / 312:.4g}"


class TestBudget:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("iterations", [1, 2, 3, 7, 30])
    def test_no_more_iterations_than_allowed(
        self, backend: Literal["faiss", "sklearn", "torch"], iterations: int
    ) -> None:
        """Also where the first rounds look at a part of the latents."""
        for n in (300, 2000):
            assert 1 <= fit_codebook(normal(n, 4), 16, backend=backend, budget=iterations).iterations <= iterations

    def test_the_first_iterations_of_a_larger_budget_are_not_wasted(self) -> None:
        latents = normal(8000, 8)
        errors = [fit_codebook(latents, 64, budget=iterations).inertia for iterations in (1, 4, 40)]
        assert errors == sorted(errors, reverse=True)

    def test_no_seconds_are_left_after_the_start(self) -> None:
        """A bound that is over before the first iteration leaves the start, a whole codebook."""
        fitted = fit_codebook(normal(2000, 4), 32, budget=Budget(iterations=500, seconds=1e-9))
        assert fitted.iterations <= 2
        assert fitted.distinct == 32

    def test_seconds_that_are_not_reached_change_nothing(self) -> None:
        latents = normal(2000, 4)
        assert same(fit_codebook(latents, 32), fit_codebook(latents, 32, budget=Budget(seconds=3600)))

    @pytest.mark.parametrize(("iterations", "seconds"), [(0, None), (-1, None), (5, 0.0), (5, -1.0), (5, float("nan"))])
    def test_a_budget_that_allows_nothing_is_refused(self, iterations: int, seconds: float | None) -> None:
        with pytest.raises(ValueError, match="budget: expected"):
            Budget(iterations, seconds)


class TestInit:
    def test_random_latents_are_a_start_too(self) -> None:
        latents = normal(3000, 6)
        fitted = fit_codebook(latents, 32, init="random")
        assert same(fitted, fit_codebook(latents, 32, init="random"))
        assert not same(fitted, fit_codebook(latents, 32))
        assert fitted.distinct == 32

    def test_an_unknown_start_names_those_there_are(self) -> None:
        with pytest.raises(ValueError, match=r"expected k-means\+\+, random or a \(K, D\) tensor, got 'pca'"):
            fit_codebook(normal(50, 2), 4, init="pca")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**63, np.int64(7)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_whole_number_is_a_seed(backend: Literal["faiss", "sklearn", "torch"], seed: int) -> None:
    assert fit_codebook(normal(100, 3), 8, backend=backend, seed=seed).distinct == 8
    assert fit_codebook(torch.ones(4, 3), 8, backend=backend, seed=seed).distinct == 1


def test_tokens_in_turn_are_all_seen_by_the_first_rounds() -> None:
    """Every other latent is of another kind, as tokens of an image are: a part taken at regular steps misses one."""
    latents = blobs(16, 400, 4)
    codes = assign(latents, fit_codebook(latents, 16).codebook)
    in_turn = latents[codes.argsort(stable=True).view(16, 400).T.flatten()]
    assert fit_codebook(in_turn, 16).counts.tolist() == [400] * 16


def test_a_mean_of_a_million_latents_keeps_its_digits() -> None:
    latents = normal(1_000_000, 1) + 1
    fitted = fit_codebook(latents, 1)
    assert fitted.codebook.item() == pytest.approx(latents.double().mean().item(), abs=2e-6)
