"""Codebooks from latents, against loops and against the properties that k-means must have."""

from __future__ import annotations

import doctest
import random
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from collapse_guard.kmeans import CodebookFit, assign, backends, fit, fit_codebook, search
from collapse_guard.kmeans.relocation import refine
from tests.checkout import ROOT, prelude

BACKENDS: list[Literal["faiss", "sklearn", "torch"]] = ["faiss", "sklearn", "torch"]
METRICS: list[Literal["l2", "cosine"]] = ["l2", "cosine"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(codes: int, each: int, D: int, *, spread: float = 0.1, seed: int = 0) -> Tensor:
    """Latents around well separated centres, `each` per centre, in random order."""
    centres = 10 * normal(codes, D, seed=seed)
    latents = centres.repeat_interleave(each, dim=0) + spread * normal(codes * each, D, seed=seed + 1)
    return latents[torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))]


def distances_by_loop(latents: Tensor, codebook: Tensor, metric: str) -> np.ndarray:
    """(N, K) squared distances in float64, one pair at a time; of normalised rows with "cosine"."""
    rows = [np.asarray(values.double().tolist()) for values in (latents, codebook)]
    if metric == "cosine":
        rows = [values / np.linalg.norm(values, axis=1)[:, None] for values in rows]
    return np.array([[float(((z - c) ** 2).sum()) for c in rows[1]] for z in rows[0]])


def distinct_count(codebook: Tensor) -> int:
    return len({tuple(row) for row in codebook.tolist()})


def same(left: CodebookFit, right: CodebookFit) -> bool:
    return torch.equal(left.codebook, right.codebook) and torch.equal(left.counts, right.counts)


class TestAssign:
    @pytest.mark.parametrize("metric", METRICS)
    @given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 8), st.integers(0, 10**6))
    def test_no_other_row_is_nearer(self, metric: Literal["l2", "cosine"], N: int, K: int, D: int, seed: int) -> None:
        latents, codebook = normal(N, D, seed=seed), normal(K, D, seed=seed + 1)
        distances = distances_by_loop(latents, codebook, metric)
        chosen = distances[np.arange(N), assign(latents, codebook, metric).numpy()]
        assert (chosen <= distances.min(axis=1) + 1e-5).all()

    @given(st.lists(st.integers(-8, 8), min_size=1, max_size=20), st.lists(st.integers(-8, 8), min_size=1, max_size=20))
    def test_ties_go_to_the_lowest_index(self, latents: list[int], codebook: list[int]) -> None:
        """On small integers float32 is exact, so latents halfway between two codes and equal codes are true ties."""
        expected = [min(range(len(codebook)), key=lambda k: (abs(z - codebook[k]), k)) for z in latents]
        codes = assign(torch.tensor(latents).float()[:, None], torch.tensor(codebook).float()[:, None])
        assert codes.tolist() == expected

    def test_equal_rows_are_one_code_in_every_block_and_place(self) -> None:
        rows = normal(37, 16)
        codebook = rows[torch.randint(37, (1000,), generator=torch.Generator().manual_seed(0))]
        lowest = {tuple(row): len(codebook) - 1 - k for k, row in enumerate(codebook.flip(0).tolist())}
        codes = assign(normal(20_000, 16, seed=1), codebook)
        assert set(codes.tolist()) <= set(lowest.values())

    def test_the_block_size_does_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        latents, codebook = blobs(50, 20, 8), normal(64, 8)
        whole = assign(latents, codebook)
        monkeypatch.setattr(search, "_BLOCK", 64 * 7)
        assert torch.equal(assign(latents, codebook), whole)
        monkeypatch.setattr(search, "_BLOCK", 1)
        assert torch.equal(assign(latents, codebook), whole)

    def test_memory_stays_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No product of latents and codes holds more entries than a block."""
        shapes: list[int] = []
        addmm = torch.addmm

        def recorded(*args: Tensor, alpha: int) -> Tensor:
            result = addmm(*args, alpha=alpha)
            shapes.append(result.numel())
            return result

        monkeypatch.setattr(torch, "addmm", recorded)
        monkeypatch.setattr(search, "_has_faiss", lambda: False)
        assign(normal(30_000, 2), normal(1000, 2))
        assert max(shapes) <= search._BLOCK < sum(shapes)

    @pytest.mark.parametrize("metric", METRICS)
    def test_large_searches_go_through_faiss_and_find_the_same(
        self, metric: Literal["l2", "cosine"], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        latents, codebook = normal(20_000, 6), normal(256, 6, seed=1)
        latents[3], latents[5] = torch.nan, torch.inf
        codebook[7], codebook[9] = torch.nan, codebook[8]
        through_faiss = assign(latents, codebook, metric)
        monkeypatch.setattr(search, "_has_faiss", lambda: False)
        assert (through_faiss == assign(latents, codebook, metric)).float().mean() > 0.9999
        assert not {7, 9} & set(through_faiss.tolist())
        assert through_faiss[[3, 5]].tolist() == [0, 0]

    @pytest.mark.parametrize("n", [50, 30_000])
    def test_the_two_nearest_are_those_of_a_sorted_search(self, n: int) -> None:
        points, codebook = normal(n, 5) + 100, normal(200, 5, seed=1) + 100
        first, second, near, far = search.nearest_two(points, codebook)
        distances = np.square(points.double().numpy()[:, None] - codebook.double().numpy()[None]).sum(-1)
        assert (first != second).all()
        ordered = np.sort(distances, axis=1)
        assert near.numpy() == pytest.approx(ordered[:, 0], abs=1e-3)
        assert far.numpy() == pytest.approx(ordered[:, 1], abs=1e-3)

    @pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
    def test_a_common_offset_costs_no_precision(self, offset: float) -> None:
        latents, codebook = (normal(500, 8) + offset), (normal(64, 8, seed=1) + offset)
        distances = distances_by_loop(latents, codebook, "l2")
        chosen = distances[np.arange(500), assign(latents, codebook).numpy()]
        assert chosen == pytest.approx(distances.min(axis=1), rel=1e-4, abs=1e-5)

    @pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e15])
    @pytest.mark.parametrize("metric", METRICS)
    def test_the_scale_does_not_matter(self, metric: Literal["l2", "cosine"], scale: float) -> None:
        latents, codebook = blobs(20, 10, 4), blobs(20, 1, 4)
        assert torch.equal(assign(latents * scale, codebook * scale, metric), assign(latents, codebook, metric))

    def test_one_runaway_code_costs_the_others_no_precision(self) -> None:
        """As in the story of codes that grow by a factor of n at each step."""
        latents, codebook = normal(200, 4), normal(16, 4, seed=1)
        runaway = torch.cat([torch.full((1, 4), 1e12), codebook])
        assert torch.equal(assign(latents, runaway), assign(latents, codebook) + 1)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
    def test_a_broken_row_is_never_the_nearest(self, metric: Literal["l2", "cosine"], broken: float) -> None:
        codebook = normal(6, 3)
        codebook[[0, 3], 1] = broken
        latents = normal(300, 3, seed=1)
        whole = torch.tensor([1, 2, 4, 5])
        assert torch.equal(assign(latents, codebook, metric), whole[assign(latents, codebook[whole], metric)])

    def test_a_broken_latent_gets_code_zero(self) -> None:
        latents = torch.tensor([[float("nan"), 1.0], [9.0, 9.0], [float("inf"), 0.0], [float("-inf"), 0.0]])
        assert assign(latents, torch.tensor([[0.0, 0.0], [9.0, 9.0]])).tolist() == [0, 1, 0, 0]

    def test_a_zero_row_has_no_direction(self) -> None:
        codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        assert assign(torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), codebook, "cosine").tolist() == [1, 1]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types_are_compared_in_float32(self, dtype: torch.dtype) -> None:
        latents, codebook = normal(200, 5).to(dtype), normal(30, 5, seed=1).to(dtype)
        assert torch.equal(assign(latents, codebook), assign(latents.float(), codebook.float()))

    def test_autocast_and_matmul_precision_are_off_inside_and_as_before_outside(self) -> None:
        latents, codebook = normal(2000, 64), normal(512, 64, seed=1)
        expected = assign(latents, codebook)
        torch.set_float32_matmul_precision("medium")
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(assign(latents, codebook), expected)
                assert (latents[:2] @ latents[:2].T).dtype == torch.bfloat16
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")

    def test_before_torch_2_9_one_call_sets_the_precision_of_every_backend(self) -> None:
        torch.set_float32_matmul_precision("high")
        try:
            with search._full_precision_before_2_9():
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == "high"
        finally:
            torch.set_float32_matmul_precision("highest")

    def test_no_gradient_is_kept(self) -> None:
        latents = normal(4, 2).requires_grad_()
        assert assign(latents, normal(3, 2).requires_grad_()).requires_grad is False

    def test_no_latents_give_no_codes(self) -> None:
        codes = assign(torch.zeros(0, 4), normal(3, 4))
        assert (codes.shape, codes.dtype) == ((0,), torch.int64)

    @pytest.mark.parametrize(
        ("latents", "codebook", "metric", "message"),
        [
            ((5, 3), (4, 2), "l2", r"got \(5, 3\) and \(4, 2\)"),
            ((5, 3), (0, 3), "l2", r"K and D at least 1, got \(5, 3\) and \(0, 3\)"),
            ((2, 5, 3), (4, 3), "l2", r"got \(2, 5, 3\)"),
            ((5, 3), (4, 3), "dot", "expected one of l2, cosine, got 'dot'"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(
        self, latents: tuple[int, ...], codebook: tuple[int, ...], metric: str, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            assign(torch.zeros(latents), torch.zeros(codebook), metric)  # type: ignore[arg-type]


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
        fitted = fit_codebook(latents, 8, backend=backend, iterations=300)
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

    def test_no_other_generator_is_touched_and_nothing_is_printed(
        self, backend: Literal["faiss", "sklearn", "torch"], capfd: pytest.CaptureFixture[str]
    ) -> None:
        def state() -> list[object]:
            return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]

        before = state()
        fit_codebook(normal(80, 4, seed=1), 64, backend=backend)
        fit_codebook(torch.ones(5, 4), 16, backend=backend, init=torch.zeros(16, 4))
        assert state() == before
        assert capfd.readouterr() == ("", "")

    def test_a_warm_start_keeps_the_indices(self, backend: Literal["faiss", "sklearn", "torch"]) -> None:
        """Latents that drift a little keep their codes, whatever the order of the codebook."""
        latents = blobs(20, 30, 4)
        old = fit_codebook(latents, 20, backend=backend, iterations=50).codebook
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
            ((4, 2), 2, {"iterations": 0}, "iterations: expected at least 1, got 0"),
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


class TestRelocation:
    def test_a_code_that_shares_its_blob_jumps_to_the_two_blobs_of_another(self) -> None:
        """No Lloyd step can do this: the blobs lie far apart."""
        latents, centres = blobs(4, 50, 6), 10 * normal(4, 6)
        bad = torch.stack([centres[0] + 0.05, centres[0] - 0.05, centres[1], (centres[2] + centres[3]) / 2])
        stuck = refine(latents, bad, "l2", passes=20, relocate=False)
        freed = refine(latents, bad, "l2", passes=20, relocate=True)
        assert (stuck.moved, freed.moved) == (0, 1)
        best = distances_by_loop(latents, centres, "l2").min(axis=1).sum()
        assert distances_by_loop(latents, stuck.table, "l2").min(axis=1).sum() > 10 * best
        assert distances_by_loop(latents, freed.table, "l2").min(axis=1).sum() < 1.1 * best

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_every_one_of_many_blobs_gets_its_code(self, backend: Literal["faiss", "sklearn", "torch"]) -> None:
        """A start by chance, however clever, leaves some of 100 blobs without a code."""
        fitted = fit_codebook(blobs(100, 40, 8), 100, backend=backend, iterations=40)
        assert fitted.counts.tolist() == [40] * 100

    def test_the_error_is_never_above_that_of_lloyd_alone(self) -> None:
        latents = normal(4000, 8)
        start = latents[:128].clone()
        with_jumps, without = (refine(latents, start, "l2", passes=60, relocate=each) for each in (True, False))
        errors = [
            float(search.squared_errors(latents, each.table, assign(latents, each.table)).mean())
            for each in (with_jumps, without)
        ]
        assert errors[0] < errors[1]

    def test_the_passes_are_a_bound(self) -> None:
        latents = normal(3000, 8)
        for passes in (1, 2, 3, 5, 9):
            assert refine(latents, latents[:64], "l2", passes=passes, relocate=True).passes <= passes

    def test_a_warm_start_is_not_relocated(self) -> None:
        latents = blobs(20, 30, 4)
        assert fit_codebook(latents, 20, init=latents[:20]).moved == 0


class TestWeights:
    def test_a_latent_counts_as_often_as_its_weight(self) -> None:
        latents = blobs(6, 20, 4)
        weights = torch.randint(0, 4, (120,), generator=torch.Generator().manual_seed(0)).float()
        repeated = latents.repeat_interleave(weights.long(), dim=0)
        weighed = fit_codebook(latents, 6, weights=weights, init=latents[:6], iterations=50)
        plain = fit_codebook(repeated, 6, init=latents[:6], iterations=50)
        torch.testing.assert_close(weighed.codebook, plain.codebook, rtol=1e-4, atol=1e-4)
        assert weighed.inertia == pytest.approx(plain.inertia, rel=1e-4)

    @pytest.mark.parametrize("weights", [torch.ones(3), torch.tensor([1.0, -1.0, 1.0, 1.0])])
    def test_weights_that_mean_nothing_are_refused(self, weights: Tensor) -> None:
        with pytest.raises(ValueError, match=r"weights: expected \(4,\) numbers from 0"):
            fit_codebook(normal(4, 2), 2, weights=weights)


def test_a_thin_sample_says_so() -> None:
    assert fit_codebook(normal(100, 2), 8).is_thin
    assert not fit_codebook(normal(400, 2), 8).is_thin
