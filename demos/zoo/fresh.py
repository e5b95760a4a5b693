"""Collapses that were added when the policy had been tuned, to be run once, under a policy that is not touched again.

They come from what users of these packages report, were written without a look at the policy, and judged by the arms
that have no guard. None nearly copies a scenario of another part. Whoever tunes on them moves them to `collapses` or
`late` and adds others.
"""

from __future__ import annotations

from .draws import class_then_all
from .mistakes import invert, raise_commitment, round_codes
from .scenario import KMEANS, OWN, Scenario
from .starts import lift, start_from_latents, start_small

__all__ = ["FRESH"]

FRESH: tuple[Scenario, ...] = (
    Scenario(
        "uncentred-cosine",
        "latents have a large part in common, as embeddings have: to a cosine codebook all of them point the same way",
        K=256,
        options={"use_cosine_sim": True},
        own=OWN,
        start=lift(3.0),
        healthy=OWN,
        is_fresh=True,
    ),
    Scenario(
        "first-batch-sorted",
        "the first batch, which k-means starts from, is of one class of ten: codes for the others are missing",
        data="digits",
        D=32,
        options={"decay": 0.99, **KMEANS},
        own=OWN,
        healthy={"kmeans_init": False},
        healthy_start=start_from_latents,
        draw=class_then_all(at=0, until=1),
        is_fresh=True,
    ),
    Scenario(
        "tiny-latents",
        "a pretrained encoder's latents were scaled to a fiftieth: each step of Adam moves latents and codes far",
        data="sequences",
        family="taming",
        K=512,
        batch=24,
        start=start_small(0.02),
        healthy_start=start_from_latents,
        is_fresh=True,
    ),
    Scenario(
        "rising-commitment",
        "a schedule that should lower the commitment weight raises it, by a fiftieth in each of 300 steps",
        data="sequences",
        family="encodec",
        K=512,
        D=16,
        batch=24,
        onset=163,
        options={"kmeans_init": False, "threshold_ema_dead_code": 0},
        own=OWN,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=raise_commitment(1.02, until=463),
        is_fresh=True,
    ),
    Scenario(
        "three-bit-codes",
        "a resume brings a learnable codebook that was kept in three bits: most of 1024 codes are copies of others",
        data="little",
        family="diffusers",
        K=1024,
        onset=241,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=round_codes(3, at=241),
        is_fresh=True,
    ),
    Scenario(
        "inverted-scans",
        "a model is trained on with negatives of its items: to the first of 2 residual levels all of them are one code",
        data="digits",
        family="rvq",
        K=64,
        D=16,
        batch=128,
        onset=208,
        options={"num_quantizers": 2, "decay": 0.99, **KMEANS},
        own={"num_quantizers": 2, **OWN},
        disturb=invert(at=208),
        is_fresh=True,
    ),
)
