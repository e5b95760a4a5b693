"""A tokenizer that outlives its training run: encoding, decoding, refits with stable ids, files, large codebooks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from collapse_guard.kmeans import KMeansTokenizer, assign, fit_codebook


def patches(n: int = 6000, seed: int = 0) -> Tensor:
    """Return (n, 48) colour patches of 4 x 4 pixels from scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images

    images = [torch.tensor(image).float().permute(2, 0, 1) / 255 for image in load_sample_images().images]
    rows = [image.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).reshape(-1, 48) for image in images]
    every = torch.cat(rows)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:n]]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_ids_are_those_of_the_nearest_codes_in_float64(metric: str) -> None:
    latents = patches(2000)
    tokenizer = KMeansTokenizer.fit(latents, 32, metric=metric)  # type: ignore[arg-type]
    ids = tokenizer.encode(latents.reshape(20, 100, 48))
    assert ids.shape == (20, 100)
    assert ids.dtype is torch.int64
    z, table = latents.double().numpy(), tokenizer.codebook.double().numpy()
    if metric == "cosine":
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
    distances = np.square(z[:, None] - table[None]).sum(-1)
    chosen = distances[np.arange(len(z)), ids.flatten().numpy()]
    np.testing.assert_allclose(chosen, distances.min(1), atol=1e-5)
    assert torch.equal(tokenizer.decode(ids), tokenizer.codebook[ids])


def test_gradients_pass_straight_through() -> None:
    tokenizer = KMeansTokenizer(torch.randn(5, 3))
    latents = torch.randn(2, 4, 3, requires_grad=True)
    quantised, ids = tokenizer(latents)
    torch.testing.assert_close(quantised, tokenizer.decode(ids))
    (2 * quantised).sum().backward()
    assert latents.grad is not None
    assert torch.equal(latents.grad, torch.full_like(latents, 2.0))


def test_latents_without_a_nearest_code_and_ids_without_a_code_are_refused() -> None:
    tokenizer = KMeansTokenizer(torch.randn(5, 3))
    with pytest.raises(ValueError, match="1 of 2 have NaN or Inf"):
        tokenizer.encode(torch.tensor([[0.0, 1.0, 2.0], [0.0, torch.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3\), got \(2, 4\)"):
        tokenizer.encode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="expected 0 to 4, got -1 to 3"):
        tokenizer.decode(torch.tensor([3, -1]))
    with pytest.raises(ValueError, match="expected integers"):
        tokenizer.decode(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="expected \\(K, D\\) finite numbers"):
        KMeansTokenizer(torch.tensor([[torch.inf]]))


def test_a_refit_keeps_ids_that_an_unmatched_refit_shuffles() -> None:
    latents = patches()
    drifted = latents + 0.05 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)) + 0.02
    shares = {}
    for start in ("warm", "fresh"):
        tokenizer = KMeansTokenizer.fit(latents, 64)
        before, old = tokenizer.encode(drifted), tokenizer.codebook.clone()
        refit = tokenizer.refit(drifted, start=start, seed=5)
        after = tokenizer.encode(drifted)
        assert refit.unchanged == pytest.approx(float((before == after).double().mean()))
        assert refit.changed == int((before != after).sum())
        assert (refit.tokens, refit.version, tokenizer.version) == (len(drifted), 2, 2)
        errors = (
            (drifted - old[before]).square().sum(1).mean(),
            (drifted - tokenizer.decode(after)).square().sum(1).mean(),
        )
        assert (refit.error_before, refit.error_after) == pytest.approx([float(error) for error in errors], rel=1e-4)
        assert refit.error_after < refit.error_before
        shares[start] = refit.unchanged
    fresh = fit_codebook(drifted, 64, seed=5).codebook
    unmatched = float((before == assign(drifted, fresh)).double().mean())
    assert shares["warm"] > 0.8
    assert shares["fresh"] > 0.4
    assert unmatched < 0.1


def test_a_refit_leaves_out_latents_that_are_not_finite() -> None:
    latents = patches(500)
    tokenizer = KMeansTokenizer.fit(latents, 8)
    latents[3] = torch.nan
    assert tokenizer.refit(latents).tokens == 499


def test_a_saved_tokenizer_gives_the_same_ids_and_says_where_it_came_from(tmp_path: Path) -> None:
    latents = patches(1000)
    tokenizer = KMeansTokenizer.fit(latents, 16, metric="cosine", seed=4)
    tokenizer.refit(latents + 0.01)
    loaded = KMeansTokenizer.load(tokenizer.save(tmp_path / "deep" / "tokenizer"))
    assert torch.equal(loaded.encode(latents), tokenizer.encode(latents))
    assert torch.equal(loaded.codebook, tokenizer.codebook)
    assert (loaded.metric, loaded.version, loaded.provenance) == ("cosine", 2, tokenizer.provenance)
    description = json.loads((tmp_path / "deep" / "tokenizer" / "tokenizer.json").read_text())
    assert {"K": 16, "D": 48, "metric": "cosine", "version": 2}.items() <= description.items()
    assert description["provenance"]["latents"] == 1000
    assert sorted(path.name for path in (tmp_path / "deep" / "tokenizer").iterdir()) == [
        "codebook.safetensors",
        "tokenizer.json",
    ]


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    place = KMeansTokenizer(torch.randn(4, 2)).save(tmp_path / "one")
    other = KMeansTokenizer(torch.randn(4, 2)).save(tmp_path / "other")
    with pytest.raises(ValueError, match="expected a directory with tokenizer"):
        KMeansTokenizer.load(tmp_path)
    (place / "codebook.safetensors").write_bytes((other / "codebook.safetensors").read_bytes())
    with pytest.raises(ValueError, match="is not the file that tokenizer"):
        KMeansTokenizer.load(place)
    (place / "tokenizer.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="expected format 1, got 99"):
        KMeansTokenizer.load(place)
    for broken in ("{", "[]", "3", '{"kind": 1}'):
        (place / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match="is no description of a tokenizer"):
            KMeansTokenizer.load(place)
    description = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(description | {"K": 5}))
    with pytest.raises(ValueError, match=r"got K, D = \(5, 2\)"):
        KMeansTokenizer.load(other)


def test_a_write_that_fails_leaves_the_old_tokenizer(tmp_path: Path) -> None:
    place = KMeansTokenizer(torch.ones(2, 2)).save(tmp_path)
    with pytest.raises(TypeError):
        KMeansTokenizer(torch.zeros(2, 2), provenance={"made by": object()}).save(place)
    assert torch.equal(KMeansTokenizer.load(place).codebook, torch.ones(2, 2))


def large(K: int = 3000, D: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(100, D, generator=generator)
    codebook = centres[torch.randint(100, (K,), generator=generator)] + torch.randn(K, D, generator=generator)
    latents = codebook[torch.randint(K, (6000,), generator=generator)] + 0.3 * torch.randn(6000, D, generator=generator)
    return codebook, latents


def test_the_approximate_index_states_the_recall_that_it_has(tmp_path: Path) -> None:
    codebook, latents = large()
    tokenizer = KMeansTokenizer(codebook)
    settings = tokenizer.build_index(latents, recall=0.95).settings
    exact = tokenizer.encode(latents, search="exact")
    found = tokenizer.encode(latents)
    assert settings.recall >= 0.95
    assert settings.probes < settings.cells
    assert float((found == exact).double().mean()) == pytest.approx(settings.recall, abs=0.02)
    loaded = KMeansTokenizer.load(tokenizer.save(tmp_path))
    assert loaded.index is not None
    assert loaded.index.settings == settings
    assert torch.equal(loaded.encode(latents), found)


def test_a_recall_of_one_is_reached_and_all_searches_agree() -> None:
    codebook, latents = large(K=400)
    tokenizer = KMeansTokenizer(codebook, metric="cosine")
    assert tokenizer.build_index(latents, recall=1.0).settings.recall == 1.0
    agree = tokenizer.encode(latents) == tokenizer.encode(latents, search="exact")
    assert float(agree.double().mean()) >= 0.999
    with pytest.raises(ValueError, match="expected latents to measure on"):
        tokenizer.build_index(latents[:0])


def test_a_refit_measures_the_index_anew() -> None:
    codebook, latents = large(K=400)
    tokenizer = KMeansTokenizer(codebook)
    first = tokenizer.build_index(latents)
    tokenizer.refit(latents + 0.1, iterations=3)
    assert tokenizer.index is not None
    assert tokenizer.index is not first
    agree = tokenizer.encode(latents) == tokenizer.encode(latents, search="exact")
    assert float(agree.double().mean()) >= 0.98
