"""Collapses that were added when the policy had been tuned, to be run once, under a policy that is not touched again.

They come from what users of these packages report, were written without a look at the policy, and judged by the arms
that have no guard. None nearly copies a scenario of another part. Whoever tunes on them moves them to `collapses` and
adds others.
"""

from __future__ import annotations

from .disturbances import hasten, multiply_counts, reverse_levels, turn
from .draws import class_then_all
from .scenario import KMEANS, OWN, Scenario
from .starts import enlarge, heat, start_from_latents

__all__ = ["FRESH"]

_AT = 150
_HEADS = {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True, "decay": 0.99}

FRESH: tuple[Scenario, ...] = (
    Scenario(
        "enlarged-codebook",
        "a learnable codebook of 32 codes was made one of 1024 by copies, which no token ever meets",
        family="diffusers",
        K=1024,
        start=enlarge(32),
        healthy_start=start_from_latents,
        is_fresh=True,
    ),
    Scenario(
        "few-for-kmeans",
        "k-means for 1024 codes on a first batch of 128 latents: nearly all codes are copies, and become zero",
        K=1024,
        batch=128,
        options=KMEANS,
        own=OWN,
        healthy={"kmeans_init": False},
        healthy_start=start_from_latents,
        is_fresh=True,
    ),
    Scenario(
        "means-for-sums",
        "encodec's k-means writes means where EMA sums are due: the first step takes nearly all of every code",
        family="encodec",
        K=64,
        batch=2048,
        options={"kmeans_init": True, "threshold_ema_dead_code": 0},
        own=OWN,
        healthy={"kmeans_init": False},
        healthy_start=start_from_latents,
        is_fresh=True,
    ),
    Scenario(
        "hot-codebook",
        "a learnable codebook has a learning rate of its own, three hundred times too high",
        family="taming",
        K=512,
        start=heat(300.0),
        healthy_start=start_from_latents,
        is_fresh=True,
    ),
    Scenario(
        "summed-counts",
        "a resume brings EMA counts that were summed over 64 processes, and sums that were not",
        data="little",
        K=256,
        onset=_AT,
        options=KMEANS,
        own=OWN,
        disturb=multiply_counts(64.0, at=_AT),
        is_fresh=True,
    ),
    Scenario(
        "reversed-levels",
        "a resume brings 3 residual levels back in reverse order",
        data="digits",
        family="rvq",
        D=16,
        batch=128,
        onset=_AT,
        options={"num_quantizers": 3, **KMEANS},
        own={"num_quantizers": 3, **OWN},
        disturb=reverse_levels(at=_AT),
        is_fresh=True,
    ),
    Scenario(
        "turned-latents",
        "encoder and decoder are exchanged for others that know other axes, as of another run; the codebook stays",
        data="sequences",
        family="reference",
        K=256,
        batch=16,
        onset=_AT,
        options={"repaired": True, "normalised": False},
        disturb=turn(at=_AT),
        is_fresh=True,
    ),
    Scenario(
        "stuck-loader",
        "100 batches of one class, and a decay of 0.8 that forgets the codes of all others; a codebook for each head",
        data="digits",
        K=64,
        D=16,
        batch=128,
        onset=_AT,
        options={**_HEADS, **KMEANS},
        own={**_HEADS, **OWN},
        disturb=hasten(0.8, at=_AT),
        draw=class_then_all(at=_AT, until=_AT + 100),
        is_fresh=True,
    ),
)
