"""The collapses of the zoo whose cause strikes in the middle: the codebook starts as well as the twin's."""

from __future__ import annotations

from .disturbances import (
    batch_of_nan,
    drift,
    hasten,
    jump,
    lose_codes,
    lose_level,
    multiply_counts,
    rescale,
    reverse_levels,
    shrink,
    turn,
)
from .draws import class_then_all
from .scenario import KMEANS, OWN, Scenario
from .starts import start_from_latents

__all__ = ["LATE"]

_AT = 150
_HEADS = {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True, "decay": 0.99}

LATE: tuple[Scenario, ...] = (
    Scenario(
        "encoder-jump",
        "the learning rate rises thirtyfold for five steps",
        onset=_AT,
        options=KMEANS,
        own=OWN,
        disturb=jump(at=_AT, steps=5, factor=30.0),
    ),
    Scenario(
        "slow-drift",
        "for 100 steps the latents wander off and leave the codes behind",
        onset=_AT,
        options={"decay": 0.99, **KMEANS},
        own=OWN,
        disturb=drift(0.05, until=_AT + 100),
    ),
    Scenario(
        "nan-batch",
        "some items of one batch are no numbers; the loop skips the step, the EMA does not",
        onset=_AT,
        options=KMEANS,
        own=OWN,
        disturb=batch_of_nan(at=_AT, share=0.1),
    ),
    Scenario(
        "rescaled-latents",
        "latents become ten times as large, and the decoder takes them for it: the codebook is left behind",
        onset=_AT,
        options=KMEANS,
        own=OWN,
        disturb=rescale(10.0, at=_AT),
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
    ),
)
