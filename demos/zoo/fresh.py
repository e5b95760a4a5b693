"""Collapses that were added when the policy had been tuned, and run once, under a policy that was not touched again.

The part that was held out by a seed has been looked at more than once since, and two of its scenarios have near copies
in the tuned part. None of these has. Whoever tunes on them moves them to `collapses` and adds others.
"""

from __future__ import annotations

from .causes import crowd, lose_codes, lose_level, rescale, shrink, start_from_latents
from .scenario import KMEANS, OWN, Scenario

__all__ = ["FRESH"]

_AT = 150

FRESH: tuple[Scenario, ...] = (
    Scenario(
        "crowded-start",
        "all codes start within a thousandth of the latents' spread around one latent",
        start=crowd,
        own=OWN,
        healthy=OWN,
        is_fresh=True,
    ),
    Scenario(
        "stale-ema",
        "codes start at random, and an EMA decay of 0.9999 hardly moves them",
        options={"decay": 0.9999},
        own=OWN,
        healthy={"decay": 0.95, **OWN},
        is_fresh=True,
    ),
    Scenario(
        "rescaled-latents",
        "latents become ten times as large, and the decoder takes them for it: the codebook is left behind",
        onset=_AT,
        options=KMEANS,
        own=OWN,
        disturb=rescale(10.0, at=_AT),
        is_fresh=True,
    ),
    Scenario(
        "lost-codebook",
        "a learnable codebook is set up anew within 1/K, as by a checkpoint that lacks it",
        family="diffusers",
        K=512,
        onset=_AT,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=lose_codes(at=_AT),
        is_fresh=True,
    ),
    Scenario(
        "decayed-codebook",
        "weight decay meant for other layers takes a fiftieth of a learnable codebook in each step",
        family="taming",
        K=512,
        onset=_AT,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=shrink(0.02),
        is_fresh=True,
    ),
    Scenario(
        "lost-level",
        "the second of 4 residual levels is overwritten with codes at ten times the latents' spread",
        family="rvq",
        onset=_AT,
        options={"num_quantizers": 4, **KMEANS},
        own={"num_quantizers": 4, **OWN},
        healthy={"num_quantizers": 4, **KMEANS},
        disturb=lose_level(1, at=_AT),
        is_fresh=True,
    ),
)
