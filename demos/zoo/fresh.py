"""Collapses that were added when the policy had been tuned, to be run once, under a policy that is not touched again.

They come from what users of these packages report, were written without a look at the policy, and judged by the arms
that have no guard. None nearly copies a scenario of another part. Whoever tunes on them moves them to `ill_starts`,
`standing` or `late` and adds others.
"""

from __future__ import annotations

from .mistakes import average_sums, clamp_counts, commit_to_all, prefer_few, sort_counts
from .scenario import KMEANS, OWN, Scenario
from .starts import start_from_latents, swap_betas

__all__ = ["FRESH"]

_HEADS = {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True, "decay": 0.99}
_DIVERSE = {"codebook_diversity_loss_weight": 0.1, "codebook_diversity_temperature": 10.0}

FRESH: tuple[Scenario, ...] = (
    Scenario(
        "diversity-by-sign",
        "a bonus for the diversity of codes has the wrong sign: few codes are rewarded; a codebook for each head",
        D=16,
        K=256,
        batch=320,
        options={**_HEADS, **_DIVERSE, **KMEANS},
        own={**_HEADS, **_DIVERSE, **OWN},
        disturb=prefer_few(at=0),
        is_fresh=True,
    ),
    Scenario(
        "swapped-betas",
        "Adam has its two betas in the wrong order: a code that no token meets is thrown far away",
        data="sequences",
        family="taming",
        K=1024,
        D=16,
        batch=8,
        start=swap_betas,
        healthy_start=start_from_latents,
        is_fresh=True,
    ),
    Scenario(
        "averaged-sums",
        "over 4 processes EMA counts are summed and EMA sums averaged: each code goes to a quarter of its mean",
        family="rvq",
        K=64,
        batch=320,
        options={"num_quantizers": 3, "decay": 0.99, **KMEANS},
        own={"num_quantizers": 3, **OWN},
        disturb=average_sums(4, at=0),
        is_fresh=True,
    ),
    Scenario(
        "broadcast-commitment",
        "the commitment broadcasts (n, D) against (n, 1, D): each latent is pulled to the codes of all tokens",
        data="sequences",
        family="diffusers",
        K=512,
        D=16,
        batch=24,
        onset=213,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=commit_to_all(at=213),
        is_fresh=True,
    ),
    Scenario(
        "sorted-counts",
        "a plot of EMA counts sorts them in place, 21 times in 340 steps: each sum is divided by another code's count",
        data="digits",
        family="encodec",
        K=128,
        D=16,
        tokens=2,
        batch=160,
        onset=119,
        options={"kmeans_init": False, "threshold_ema_dead_code": 0},
        own=OWN,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=sort_counts(every=17, until=459),
        is_fresh=True,
    ),
    Scenario(
        "clamped-counts",
        "EMA counts are clamped to one at least: a code with less than a token a step shrinks to zero",
        data="digits",
        family="reference",
        K=256,
        D=32,
        batch=160,
        onset=157,
        options={"repaired": True, "normalised": False},
        disturb=clamp_counts(at=157),
        is_fresh=True,
    ),
)
