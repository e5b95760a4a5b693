"""The nearest code of each latent, against loops."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from collapse_guard.kmeans import assign, nearest_errors, precision, search
from tests.checkout import ROOT, prelude
from tests.kmeans.samples import METRICS, blobs, distances_by_loop, normal


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
        points, codebook = normal(n, 5), normal(200, 5, seed=1)
        first, second, near, far = search.Comparison(points).nearest_two(codebook)
        assert torch.equal(first, search.Comparison(points).nearest(codebook))
        distances = np.square(points.double().numpy()[:, None] - codebook.double().numpy()[None]).sum(-1)
        assert (first != second).all()
        ordered = np.sort(distances, axis=1)
        assert near.numpy() == pytest.approx(ordered[:, 0], abs=1e-5)
        assert far.numpy() == pytest.approx(ordered[:, 1], abs=1e-5)

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
            with precision.full_precision_before_2_9():
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

    def test_inside_a_training_step_no_library_is_loaded(self) -> None:
        """What reads a codebook of 8192 codes, or 262,144, asks for torch alone."""
        program = prelude() + (
            "import torch\n"
            "from collapse_guard import Guard\n"
            "from collapse_guard.demos.quantizer import ReferenceQuantizer\n"
            "torch.manual_seed(0)\n"
            "guard = Guard('observe', console=False)\n"
            "model = ReferenceQuantizer(8192, 8, repaired=True)\n"
            "guard.attach(model, [])\n"
            "for _ in range(60):\n"
            "    model(torch.randn(1, 512, 8))\n"
            "    guard.step()\n"
            "print('faiss' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == "False"


class TestNearestErrors:
    @pytest.mark.parametrize("metric", METRICS)
    @given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 8), st.integers(0, 10**6))
    def test_they_are_those_of_the_nearest_row(
        self, metric: Literal["l2", "cosine"], N: int, K: int, D: int, seed: int
    ) -> None:
        latents, codebook = normal(N, D, seed=seed), normal(K, D, seed=seed + 1)
        chosen = distances_by_loop(latents, codebook, metric).argmin(axis=1)
        expected = ((latents.double() - codebook.double()[chosen]) ** 2).sum(dim=1)
        torch.testing.assert_close(nearest_errors(latents, codebook, metric).double(), expected, rtol=1e-4, atol=1e-5)

    def test_a_row_that_overflows_is_never_the_nearest(self) -> None:
        latents = torch.tensor([[1.0], [1e10]])
        codebook = torch.tensor([[-1e30], [torch.nan], [1e30], [torch.inf], [3.0]])
        assert nearest_errors(latents, codebook).tolist() == [4.0, pytest.approx(1e20)]
        assert not nearest_errors(latents, codebook[:4]).isfinite().any()

    def test_a_row_of_zeros_has_no_direction(self) -> None:
        codebook = torch.tensor([[0.0, 0.0], [-1.0, 0.0]])
        assert nearest_errors(torch.tensor([[1.0, 0.0]]), codebook, "cosine").tolist() == [4.0]

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        latents, codebook = normal(50, 4, seed=1), normal(9, 4, seed=2)
        whole = nearest_errors(latents, codebook)
        monkeypatch.setattr(search, "_BLOCK", 9 * 7)
        torch.testing.assert_close(nearest_errors(latents, codebook), whole)
