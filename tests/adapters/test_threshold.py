"""The threshold below which quantizers replace codes by themselves: where it is, what it comes to, set and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import discover
from tests.contract import encodec, moshi

D, K = 8, 32


def test_a_threshold_in_tokens_comes_to_a_share_of_even_use_and_keeps_its_kind() -> None:
    vq: Any = VectorQuantize(dim=D, codebook_size=K, threshold_ema_dead_code=2)
    leaf = vq._codebook
    (view,) = discover(vq).views
    assert view.threshold is not None
    assert view.replacement_share(64) == 1.0
    assert view.replacement_share(16) == 4.0
    saved = view.threshold.save()
    view.threshold.set(0.5)
    assert (leaf.threshold_ema_dead_code, leaf.reset_cluster_size) == (0.5, 0.5)
    view.threshold.restore(saved)
    assert (leaf.threshold_ema_dead_code, leaf.reset_cluster_size) == (2, 2)
    assert type(leaf.threshold_ema_dead_code) is int


@pytest.mark.parametrize("is_cosine", [False, True])
def test_the_share_tells_what_is_replaced(is_cosine: bool) -> None:
    """Counts of evenly used codes lie around their even use: a share of 2 replaces nearly all, 0.1 hardly any."""
    replaced = []
    for share in (2.0, 0.1):
        torch.manual_seed(0)
        options = {"decay": 0.95, "threshold_ema_dead_code": 4, "use_cosine_sim": is_cosine}
        vq: Any = VectorQuantize(dim=D, codebook_size=K, **options)
        (view,) = discover(vq).views
        assert view.threshold is not None
        view.threshold.set(share * 256 / K)
        shares = []
        for _ in range(120):
            vq(torch.randn(1, 256, D))  # a code that was replaced has just the count of one
            shares.append(float((vq._codebook.cluster_size[0] == vq._codebook.reset_cluster_size).float().mean()))
        replaced.append(sum(shares[60:]) / 60)
    assert replaced[0] > 0.7
    assert replaced[1] < 0.02


def test_a_refill_count_of_its_own_is_kept_in_proportion() -> None:
    leaf: Any = VectorQuantize(dim=D, codebook_size=K, threshold_ema_dead_code=2)._codebook
    leaf.reset_cluster_size = 6
    (view,) = discover(leaf_owner(leaf)).views
    assert view.threshold is not None
    view.threshold.set(0.2)
    assert leaf.reset_cluster_size == pytest.approx(0.6)


def leaf_owner(leaf: nn.Module) -> Any:
    owner: Any = VectorQuantize(dim=D, codebook_size=K, threshold_ema_dead_code=2)
    owner._codebook = leaf
    return owner


def test_levels_have_thresholds_of_their_own_and_a_quantizer_that_replaces_nothing_has_none() -> None:
    views = discover(ResidualVQ(dim=D, num_quantizers=2, codebook_size=K, threshold_ema_dead_code=2)).views
    assert len({view.threshold.place for view in views if view.threshold is not None}) == 2
    (view,) = discover(VectorQuantize(dim=D, codebook_size=K)).views
    assert (view.threshold, view.replacement_share(10)) == (None, None)


def test_levels_of_one_codebook_that_a_beam_counts_together_have_none() -> None:
    residual = ResidualVQ(dim=D, num_quantizers=2, codebook_size=K, threshold_ema_dead_code=2, beam_size=2,
                          shared_codebook=True)  # fmt: skip
    assert [view.threshold for view in discover(residual).views] == [None]


def test_what_the_guard_keeps_out_replaces_nothing() -> None:
    (view,) = discover(VectorQuantize(dim=D, codebook_size=K, threshold_ema_dead_code=2)).views
    view.take_over()
    assert view.replacement_share(16) == 0.0
    view.give_back()
    assert view.replacement_share(16) == 4.0
    view.freeze()
    assert view.replacement_share(16) == 0.0


def test_encodec_overwrites_what_it_replaces_so_that_no_threshold_matters() -> None:
    """Its codebook is the same bit for bit whatever the threshold: the forward goes on to write its average over it."""
    tables: list[Tensor] = []
    for threshold in (0, 1000):
        torch.manual_seed(0)
        leaf: Any = encodec.core.EuclideanCodebook(D, K, kmeans_init=False, threshold_ema_dead_code=threshold)
        generator = torch.Generator().manual_seed(1)
        for _ in range(20):
            leaf(torch.randn(1, 64, D, generator=generator))
        tables.append(leaf.embed.clone())
        (view,) = discover(nn.ModuleDict({"vq": leaf})).views
        assert view.threshold is None
        assert "overwritten" in view.lacks["threshold"]
    assert torch.equal(*tables)


def test_moshis_threshold_is_the_share_itself_however_many_tokens_there_are() -> None:
    views = discover(moshi.started(moshi.vq.ResidualVectorQuantizer(dimension=8, n_q=2, bins=16), 50)).views
    assert [view.replacement_share(tokens) for view, tokens in zip(views, (1, 1e6), strict=True)] == [0.1, 0.1]
    view = views[0]
    assert view.threshold is not None
    view.threshold.set(0.05)
    assert view.module.threshold_usage_ratio == 0.05
