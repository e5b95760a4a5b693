"""Collapses that were added when the policy had been tuned, to be run once, under a policy that is not touched again.

They come from what users of these packages report, were written without a look at the policy, and judged by the arms
that have no guard. None nearly copies a scenario of another part. Whoever tunes on them moves them to `collapses` or
`late` and adds others.
"""

from __future__ import annotations

from .disturbances import average_replicas, lose_counts, lose_second_moments, restart_alike
from .scenario import KMEANS, OWN, Scenario
from .starts import dummy_forward, start_from_latents

__all__ = ["FRESH"]

_AT = 150
_HEADS = {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True, "use_cosine_sim": True}

FRESH: tuple[Scenario, ...] = (
    Scenario(
        "dummy-forward",
        "a forward of zeros that only counted parameters has run k-means: a cosine codebook for each head, all copies",
        D=16,
        options={**_HEADS, **KMEANS},
        own={**_HEADS, **OWN},
        start=dummy_forward,
        is_fresh=True,
    ),
    Scenario(
        "no-commitment",
        "the commitment weight of 2 residual levels is not passed on: latents slowly outgrow the codes",
        family="rvq",
        batch=128,
        lr=5e-4,
        options={"num_quantizers": 2, "decay": 0.99, "commitment_weight": 0.0, **KMEANS},
        own={"num_quantizers": 2, **OWN},
        healthy={"commitment_weight": 0.25},
        is_fresh=True,
    ),
    Scenario(
        "half-an-optimizer",
        "a resume brings Adam's first moments back and not its second: a learnable codebook is thrown about",
        family="taming",
        K=1024,
        onset=_AT,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=lose_second_moments(at=_AT),
        is_fresh=True,
    ),
    Scenario(
        "home-made-restart",
        "six times a restart of little used codes of a learnable codebook puts all of them on one latent",
        family="diffusers",
        K=512,
        onset=_AT,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=restart_alike(every=50, until=400),
        is_fresh=True,
    ),
    Scenario(
        "lost-counts",
        "a resume lacks encodec's EMA counts, and has the sums: every code grows, and what no token meets flies off",
        family="encodec",
        K=256,
        batch=512,
        onset=_AT,
        options={"kmeans_init": False, "threshold_ema_dead_code": 0},
        own=OWN,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=lose_counts(at=_AT),
        is_fresh=True,
    ),
    Scenario(
        "averaged-replicas",
        "the codebooks of 16 processes are averaged, whose codes had come to stand in another order in each",
        K=256,
        onset=_AT,
        options={"decay": 0.99, **KMEANS},
        own=OWN,
        disturb=average_replicas(16, at=_AT),
        is_fresh=True,
    ),
)
