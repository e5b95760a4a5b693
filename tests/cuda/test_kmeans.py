"""k-means where the latents are: nothing of them goes to the host, and the same seed gives the same codebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from collapse_guard.kmeans import KMeansTokenizer, assign, fit_codebook, totals
from collapse_guard.kmeans.totals import whole_totals


def blobs(n: int, device: torch.device, *, centres: int = 64, D: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = 3 * torch.randn(centres, D, generator=generator)
    rows = places[torch.randint(centres, (n,), generator=generator)] + torch.randn(n, D, generator=generator)
    return rows.to(device)


class HostCopies(TorchDispatchMode):
    """Counts what is copied from a device to the host, in numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given = [each for each in args if isinstance(each, Tensor)]
        if isinstance(output, Tensor) and not output.is_cuda and any(each.is_cuda for each in given):
            self.numbers += output.numel()
        return output


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("weighed", [False, True], ids=["alike", "weighed"])
@pytest.mark.parametrize("init", ["k-means++", "random", "warm"])
def test_the_same_seed_gives_the_same_codebook(device: torch.device, metric: Any, weighed: bool, init: str) -> None:
    points = blobs(3000, device)
    weights = torch.rand(3000, generator=torch.Generator().manual_seed(2)).to(device) if weighed else None
    start: Any = points[:48].clone() if init == "warm" else init
    fits = [
        fit_codebook(points, 48, backend="torch", metric=metric, seed=3, weights=weights, init=start) for _ in range(3)
    ]
    assert fits[0].codebook.device.type == device.type
    assert all(torch.equal(each.codebook, fits[0].codebook) for each in fits)
    assert all(torch.equal(each.counts, fits[0].counts) for each in fits)


@pytest.mark.usefixtures("deterministic")
def test_weighed_latents_are_fitted_under_deterministic_algorithms(device: torch.device) -> None:
    points = blobs(2000, device)
    fit = fit_codebook(points, 32, backend="torch", weights=torch.rand(2000).to(device) + 0.1)
    assert bool(fit.codebook.isfinite().all())


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("K", [64, 300])
def test_a_fit_is_as_good_as_on_the_cpu(cuda: torch.device, metric: Any, K: int) -> None:
    """The draws differ, so the codebooks do; over three seeds the error is the same within two per cent."""
    here, there = (
        np.mean([fit_codebook(blobs(9000, each), K, backend="torch", metric=metric, seed=s).inertia for s in range(3)])
        for each in (torch.device("cpu"), cuda)
    )
    assert there == pytest.approx(here, rel=0.02)


def test_no_latent_is_copied_to_the_host(cuda: torch.device) -> None:
    points = blobs(200_000, cuda, centres=256)
    K = 256
    with HostCopies() as copies:
        fit = fit_codebook(points, K, seed=1)
    assert fit.backend == "torch"
    # What comes over: per round some numbers for each code and each pair of neighbours, and single numbers.
    assert copies.numbers < 0.01 * points.numel()
    assert copies.numbers < 60 * K * fit.iterations


def test_the_nearest_code_is_the_nearest(device: torch.device) -> None:
    points, table = blobs(4000, device) + 50, blobs(500, device, seed=1) + 50
    for metric in ("l2", "cosine"):
        codes = assign(points, table, metric)
        x, c = points.double(), table.double()
        if metric == "cosine":
            x, c = torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(c, dim=1)
        distances = torch.cdist(x, c)
        found = distances.gather(1, codes.unsqueeze(1)).squeeze(1)
        assert bool((found <= distances.min(dim=1).values * (1 + 1e-5) + 1e-9).all()), metric


def test_tf32_and_autocast_change_no_code(cuda: torch.device) -> None:
    points, table = blobs(4000, cuda), blobs(500, cuda, seed=1)
    plain = assign(points, table)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with torch.autocast("cuda", dtype=torch.bfloat16):
            reduced = assign(points, table)
            fit = fit_codebook(points, 32)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert torch.equal(plain, reduced)
    assert fit.codebook.dtype == torch.float32


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_tokenizer_works_and_is_saved_from_its_device(device: torch.device, metric: Any, tmp_path: Path) -> None:
    points = blobs(3000, device)
    tokenizer = KMeansTokenizer.fit(points, 40, metric=metric).to(device)
    ids = tokenizer.encode(points.reshape(3, 1000, -1))
    assert ids.device.type == tokenizer.decode(ids).device.type == device.type
    quantised, again = tokenizer(points)
    assert torch.equal(again, ids.flatten())
    refit = tokenizer.refit(points + 0.01)
    assert refit.unchanged > 0.9
    assert refit.error_after <= refit.error_before * 1.001
    tokenizer.save(tmp_path)
    loaded = KMeansTokenizer.load(tmp_path)
    assert loaded.codebook.device.type == "cpu"
    agree = (loaded.encode(points.cpu()) == tokenizer.encode(points).cpu()).double().mean()
    assert agree > 0.999
    assert quantised.device.type == device.type


def test_totals_are_those_of_numpy_in_any_order(device: torch.device) -> None:
    values = blobs(5000, device) * torch.logspace(-3, 3, 16).to(device)
    codes = torch.randint(50, (5000,), generator=torch.Generator().manual_seed(4)).to(device)
    expected = np.zeros((60, 16))
    np.add.at(expected, codes.cpu().numpy(), values.cpu().double().numpy())
    found = whole_totals(values, codes, 60)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-6, atol=1e-6)
    for seed in range(3):
        order = torch.randperm(5000, generator=torch.Generator().manual_seed(seed)).to(device)
        assert torch.equal(whole_totals(values[order], codes[order], 60), found)
    torch.testing.assert_close(totals(values, codes, 60), found, rtol=1e-4, atol=1e-4)
    assert totals(values[:0], codes[:0], 3).tolist() == [[0.0] * 16] * 3
    assert whole_totals(torch.zeros(4, device=device), codes[:4] % 2, 2).tolist() == [0.0, 0.0]
