"""Collapses that were added when the policy had been tuned, to be run once, under a policy that is not touched again.

They come from what users of these packages report, were written without a look at the policy, and judged by the arms
that have no guard. None nearly copies a scenario of another part. Whoever tunes on them moves them to `collapses` or
`late` and adds others.
"""

from __future__ import annotations

from .draws import classes_of_ranks
from .mistakes import cut_gradient, fill_from_first, transpose_sums, turn_down, turn_to_cosine
from .scenario import KMEANS, OWN, Scenario
from .starts import start_from_latents

__all__ = ["FRESH"]

FRESH: tuple[Scenario, ...] = (
    Scenario(
        "early-kmeans",
        "k-means for 2 residual levels on latents of an untrained encoder, which spread and leave the codes behind",
        family="rvq",
        steps=600,
        is_pretrained=False,
        options={"num_quantizers": 2, "decay": 0.99, **KMEANS},
        own={"num_quantizers": 2, **OWN},
        healthy=OWN,
        is_fresh=True,
    ),
    Scenario(
        "cut-gradient",
        "the straight-through estimator is missing: the encoder learns from the commitment alone, and latents contract",
        family="diffusers",
        K=512,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=cut_gradient(at=0),
        is_fresh=True,
    ),
    Scenario(
        "first-rank-only",
        "each of 5 processes reads 2 of 10 classes, and only the first one's tokens reach the EMA that all of them get",
        data="digits",
        D=16,
        tokens=2,
        batch=160,
        options=KMEANS,
        own=OWN,
        disturb=fill_from_first(5, at=0),
        draw=classes_of_ranks(5),
        is_fresh=True,
    ),
    Scenario(
        "transposed-sums",
        "EMA sums are taken over (T, B) and counts over (B, T): all codes move to means of tokens that are not theirs",
        data="sequences",
        K=256,
        D=16,
        batch=32,
        onset=180,
        options={"decay": 0.99, **KMEANS},
        own=OWN,
        disturb=transpose_sums(16, at=180),
        is_fresh=True,
    ),
    Scenario(
        "cosine-by-config",
        "a resume has `use_cosine_sim`, which the run did not have: codes and latents lose their length",
        K=256,
        onset=137,
        options={"decay": 0.99, **KMEANS},
        own=OWN,
        disturb=turn_to_cosine(at=137),
        is_fresh=True,
    ),
    Scenario(
        "quiet-recordings",
        "a model is trained on with recordings a quarter as loud: all latents are near the few codes for silence",
        data="digits",
        family="encodec",
        K=256,
        D=16,
        tokens=2,
        batch=128,
        onset=230,
        options={"kmeans_init": False, "threshold_ema_dead_code": 0},
        own=OWN,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=turn_down(0.25, at=230),
        is_fresh=True,
    ),
)
