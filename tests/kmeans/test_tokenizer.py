"""A tokenizer that outlives its training run: encoding, decoding, refits with stable ids, files, large codebooks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from collapse_guard import __version__
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_comes_out_are_the_codes_themselves_however_far_the_latents_are(dtype: torch.dtype) -> None:
    """The latent plus its distance from the code would round the code to what the latent's size resolves."""
    tokenizer = KMeansTokenizer(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    latents = (1000 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1))).to(dtype)
    quantised, ids = tokenizer(latents)
    assert torch.equal(quantised, tokenizer.decode(ids).to(dtype))


def test_a_tokenizer_made_under_inference_mode_is_refitted_outside_of_it() -> None:
    latents = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokenizer = KMeansTokenizer.fit(latents, 8)
    assert tokenizer.refit(latents + 0.1).version == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_ids_of_any_integer_type_are_decoded(dtype: torch.dtype) -> None:
    tokenizer = KMeansTokenizer(torch.randn(5, 3))
    assert torch.equal(tokenizer.decode(torch.tensor([4, 0, 2]).to(dtype)), tokenizer.codebook[[4, 0, 2]])
    with pytest.raises(ValueError, match="expected 0 to 4, got 1 to 5"):
        tokenizer.decode(torch.tensor([1, 5]).to(dtype))


def test_what_is_finite_in_float64_alone_is_refused() -> None:
    huge = torch.tensor([[0.0, 1e300, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="1 of 1 have NaN or Inf"):
        KMeansTokenizer(torch.randn(5, 3)).encode(huge)
    with pytest.raises(ValueError, match="finite"):
        KMeansTokenizer(huge)


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
    assert tokenizer.provenance["latents"] == KMeansTokenizer.fit(latents, 8).provenance["latents"] == 499


def test_codes_searched_by_angle_keep_having_a_length_over_a_refit() -> None:
    """What decodes them as they are would otherwise get directions for vectors."""
    generator = torch.Generator().manual_seed(0)
    latents = 5 * torch.randn(800, 4, generator=generator)
    directions = KMeansTokenizer.fit(latents, 16, metric="cosine")
    tokenizer = KMeansTokenizer(5 * directions.codebook, metric="cosine")
    before = (tokenizer.decode(tokenizer.encode(latents)) - latents).square().sum(dim=1).mean()
    tokenizer.refit(latents)
    ids = tokenizer.encode(latents)
    assert (tokenizer.decode(ids) - latents).square().sum(dim=1).mean() <= before
    for code in ids.unique():  # the best length for a direction u is the mean of z.u
        mine, row = latents[ids == code].double(), tokenizer.codebook[code].double()
        assert row.norm() == pytest.approx(float((mine @ (row / row.norm())).mean()), rel=1e-4)
    before_ids = directions.encode(latents + 0.2)
    refit = directions.refit(latents + 0.2, start="fresh", seed=3)
    kept = float((directions.encode(latents + 0.2) == before_ids).double().mean())
    assert refit.unchanged == pytest.approx(kept)
    assert kept > 0.5  # of 16 directions in an order of its own a sixteenth would
    torch.testing.assert_close(directions.codebook.norm(dim=1), torch.ones(16))


def test_a_saved_tokenizer_gives_the_same_ids_and_says_where_it_came_from(tmp_path: Path) -> None:
    latents = patches(1000)
    tokenizer = KMeansTokenizer.fit(latents, 16, metric="cosine", seed=np.int64(4))  # type: ignore[arg-type]
    tokenizer.refit(latents + 0.01)
    loaded = KMeansTokenizer.load(tokenizer.save(tmp_path / "deep" / "tokenizer"))
    assert torch.equal(loaded.encode(latents), tokenizer.encode(latents))
    assert torch.equal(loaded.codebook, tokenizer.codebook)
    assert (loaded.metric, loaded.version, loaded.provenance) == ("cosine", 2, tokenizer.provenance)
    description = json.loads((tmp_path / "deep" / "tokenizer" / "tokenizer.json").read_text())
    assert {"K": 16, "D": 48, "metric": "cosine", "version": 2}.items() <= description.items()
    assert description["written_by"] == f"collapse_guard {__version__}"
    assert description["provenance"]["latents"] == 1000
    tokenizer.refit(latents, start="fresh")
    assert tokenizer.provenance["start"] == "fresh"
    assert tokenizer.provenance["origin"] == loaded.provenance["origin"]
    assert {"seed": 4, "latents": 1000, "backend": "faiss"}.items() <= tokenizer.provenance["origin"].items()
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


@pytest.mark.parametrize(
    ("tensors", "changed", "said"),
    [
        ({"weights": torch.ones(2, 2)}, {}, "not the files of a tokenizer.*KeyError: 'codebook'"),
        ({}, {"version": None}, "not the files of a tokenizer.*TypeError"),
        ({}, {"index": {"cells": 1}}, "not the files of a tokenizer.*TypeError"),
        ({}, {"index": {"cells": 9, "probes": 1, "recall": 1.0, "tried": 4}}, "at most 2 cells, got 9"),
        ({}, {"index": {"cells": 2, "probes": 0, "recall": 1.0, "tried": 4}}, "expected 1 <= probes <= cells"),
        ({"codebook": torch.full((2, 2), torch.nan)}, {}, "finite"),
        ({}, {"metric": "dot"}, "metric 'dot'"),
    ],
)
def test_files_that_belong_together_and_are_no_tokenizer_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], changed: dict[str, object], said: str
) -> None:
    KMeansTokenizer(torch.eye(2)).save(tmp_path)
    numbers = save(tensors or {"codebook": torch.eye(2)})
    (tmp_path / "codebook.safetensors").write_bytes(numbers)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description |= {"sha256": hashlib.sha256(numbers).hexdigest()} | changed
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=said):
        KMeansTokenizer.load(tmp_path)


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
    with pytest.raises(ValueError, match="expected finite latents to measure on"):
        tokenizer.build_index(latents[:0])


def test_codes_that_are_equally_near_are_both_right() -> None:
    """With every code there twice, half of the searches return the other one."""
    codebook, latents = large(K=400)
    twice = KMeansTokenizer(torch.cat([codebook, codebook + 1e-7]))
    settings = twice.build_index(latents, recall=0.95).settings
    assert settings.recall >= 0.95
    assert settings.probes < settings.cells


def test_an_index_that_would_be_slower_than_looking_through_all_is_left_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normal noise has no groups: a recall of 0.99 takes looking through most cells."""
    monkeypatch.setattr("collapse_guard.kmeans.tokenizer.APPROXIMATE_FROM", 4000)
    noise = torch.randn(8000, 16, generator=torch.Generator().manual_seed(0))
    assert KMeansTokenizer.fit(noise, 4000, iterations=1).index is None
    groups = 100 * large(K=8000, D=2)[0]
    assert KMeansTokenizer.fit(groups, 4000, iterations=1).index is not None


def test_a_refit_measures_the_index_anew() -> None:
    codebook, latents = large(K=400)
    tokenizer = KMeansTokenizer(codebook)
    first = tokenizer.build_index(latents)
    tokenizer.refit(latents + 0.1, iterations=3)
    assert tokenizer.index is not None
    assert tokenizer.index is not first
    agree = tokenizer.encode(latents) == tokenizer.encode(latents, search="exact")
    assert float(agree.double().mean()) >= 0.98


def test_an_approximate_search_always_finds_a_code() -> None:
    """Three heaps of codes leave most cells without any, and latents elsewhere fall into those."""
    generator = torch.Generator().manual_seed(0)
    heaps = 100 * torch.randn(3, 4, generator=generator)
    codebook = heaps[torch.randint(3, (1200,), generator=generator)]
    codebook[::100] += torch.randn(12, 4, generator=generator)
    tokenizer = KMeansTokenizer(codebook)
    assert tokenizer.build_index(codebook, recall=0.01).settings.probes == 1
    ids = tokenizer.encode(100 * torch.randn(5000, 4, generator=generator))
    assert 0 <= int(ids.min()) <= int(ids.max()) < 1200


def test_a_recall_is_measured_on_latents_that_have_a_nearest_code() -> None:
    codebook, latents = large(K=400)
    alone = KMeansTokenizer(codebook, metric="cosine").build_index(latents).settings
    broken = torch.cat([latents, torch.full((3000, 16), torch.nan), torch.zeros(3000, 16)])
    among = KMeansTokenizer(codebook, metric="cosine").build_index(broken).settings
    assert among.tried == alone.tried
    assert abs(among.probes - alone.probes) <= 1
    with pytest.raises(ValueError, match="expected finite latents to measure on"):
        KMeansTokenizer(codebook).build_index(broken[6000:9000])


def test_the_recall_that_was_asked_for_is_asked_for_again_after_a_refit() -> None:
    codebook, latents = large(K=400)
    tokenizer = KMeansTokenizer(codebook)
    for recall in (0.9, 0.999):
        tokenizer.build_index(latents, recall=recall)
        tokenizer.refit(latents + 0.1, iterations=2)
        assert tokenizer.index is not None
        assert tokenizer.index.settings.wanted == recall
        assert tokenizer.index.settings.recall >= recall


def test_a_codebook_that_is_loaded_into_a_tokenizer_is_not_searched_by_the_index_of_another() -> None:
    codebook, latents = large(K=400)
    tokenizer, other = KMeansTokenizer(codebook), KMeansTokenizer(codebook.flip(0))
    tokenizer.build_index(latents)
    tokenizer.load_state_dict(tokenizer.state_dict())
    assert tokenizer.index is not None
    tokenizer.load_state_dict(other.state_dict())
    assert torch.equal(tokenizer.encode(latents), other.encode(latents))
