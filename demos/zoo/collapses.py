"""The collapses of the zoo: what goes wrong in each, and what its healthy twin has instead.

Those below are there from the start; what strikes in the middle is in `late`. A package's own prevention is what its
users are told to switch on: k-means start and replacement of dead codes. Dead is a code with 0.2 tokens a step, a tenth
of the uniform share where 256 tokens meet 128 codes. The 2 tokens a step that are often recommended would be the
uniform share there.
"""

from __future__ import annotations

from .late import LATE
from .scenario import KMEANS, OWN, Scenario
from .starts import (
    crowd,
    deep_levels_too_large,
    dummy_forward,
    enlarge,
    heat,
    narrow_cone,
    place_shifted,
    start_from_latents,
)

__all__ = ["COLLAPSES"]

_HEADS = {"heads": 2, "codebook_dim": 8, "separate_codebook_per_head": True, "use_cosine_sim": True}

_EARLY: tuple[Scenario, ...] = (
    Scenario(
        "reference-ema",
        "EMA counts normalised and never multiplied back by n: every code grows",
        data="digits",
        family="reference",
        K=256,
        D=64,
        tokens=2,
        batch=32,
        lr=5e-4,
        is_pretrained=False,
        healthy={"repaired": True},
    ),
    Scenario(
        "start-too-small",
        "codes at a hundredth of the latents' spread",
        start=place_shifted(scale=0.01),
        own=OWN,
        healthy=OWN,
    ),
    Scenario(
        "start-too-large",
        "codes at thirty times the latents' spread",
        start=place_shifted(scale=30.0),
        own=OWN,
        healthy=OWN,
    ),
    Scenario(
        "start-far-away",
        "codes twenty spreads away from the latents",
        start=place_shifted(shift=20.0),
        own=OWN,
        healthy=OWN,
    ),
    Scenario(
        "commitment-40",
        "commitment weight 40 times too high",
        options={"commitment_weight": 10.0, **KMEANS},
        own=OWN,
        healthy={"commitment_weight": 0.25, **OWN},
    ),
    Scenario(
        "commitment-400",
        "commitment weight 400 times too high",
        options={"commitment_weight": 100.0, **KMEANS},
        own=OWN,
        healthy={"commitment_weight": 0.25, **OWN},
    ),
    Scenario(
        "fast-ema",
        "EMA decay 0.5 with a learning rate of 1e-2",
        lr=1e-2,
        options={"decay": 0.5},
        own=OWN,
        healthy={"decay": 0.95, **OWN},
    ),
    Scenario(
        "narrow-cosine",
        "codes of a cosine codebook all point the same way",
        options={"use_cosine_sim": True},
        start=narrow_cone,
        own=OWN,
        healthy=OWN,
    ),
    Scenario(
        "large-codebook",
        "8192 codes at random for 2000 patches",
        data="little",
        K=8192,
        steps=600,
        own=OWN,
        healthy_start=start_from_latents,
    ),
    Scenario(
        "residual-4",
        "the deep ones of 4 residual levels start too large and die",
        family="rvq",
        options={"num_quantizers": 4},
        start=deep_levels_too_large,
        own=OWN,
        healthy=OWN,
    ),
    Scenario(
        "residual-8",
        "the deep ones of 8 residual levels start too large and die",
        family="rvq",
        options={"num_quantizers": 8},
        K=64,
        start=deep_levels_too_large,
        own=OWN,
        healthy=OWN,
    ),
    Scenario(
        "frozen-codebook",
        "the codebook was frozen as it started, at random",
        options={"freeze_codebook": True},
        own=None,
        healthy={"freeze_codebook": False, **OWN},
    ),
    Scenario(
        "batchnorm-eval",
        "running statistics hardly move: evaluation sees other latents than training",
        options=KMEANS,
        own=OWN,
        model={"normalise": 1e-5},
        healthy_model={"normalise": 0.1},
    ),
    Scenario(
        "artificial-reshape",
        "channels and positions mixed up by `reshape` where `permute` was due",
        data="sequences",
        batch=48,
        options=KMEANS,
        own=OWN,
        model={"is_reshaped": True},
        healthy_model={"is_reshaped": False},
    ),
    Scenario(
        "padded-tokens",
        "three quarters of the tokens are padding that the quantizer is not told of",
        data="sequences",
        batch=64,
        options=KMEANS,
        own=OWN,
        is_padded=True,
    ),
    Scenario(
        "encodec-replacement",
        "encodec's replacement of dead codes is undone in the same forward",
        family="encodec",
        options={"kmeans_init": False, "threshold_ema_dead_code": 0.2},
        own={"kmeans_init": True},
        healthy=OWN,
    ),
    Scenario(
        "taming-start",
        "taming's learnable codebook starts within 1/K",
        family="taming",
        K=1024,
        healthy_start=start_from_latents,
    ),
    Scenario(
        "diffusers-start",
        "diffusers' learnable codebook starts within 1/K",
        family="diffusers",
        K=512,
        healthy_start=start_from_latents,
    ),
    Scenario(
        "two-optimizers",
        "a VQ-GAN with a discriminator; the codebook starts within 1/K",
        family="taming",
        K=512,
        has_adversary=True,
        healthy_start=start_from_latents,
    ),
    Scenario(
        "crowded-start",
        "all codes start within a thousandth of the latents' spread around one latent",
        start=crowd,
        own=OWN,
        healthy=OWN,
    ),
    Scenario(
        "stale-ema",
        "codes start at random, and an EMA decay of 0.9999 hardly moves them",
        options={"decay": 0.9999},
        own=OWN,
        healthy={"decay": 0.95, **OWN},
    ),
    Scenario(
        "enlarged-codebook",
        "a learnable codebook of 32 codes was made one of 1024 by copies, which no token ever meets",
        family="diffusers",
        K=1024,
        start=enlarge(32),
        healthy_start=start_from_latents,
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
    ),
    Scenario(
        "hot-codebook",
        "a learnable codebook has a learning rate of its own, three hundred times too high",
        family="taming",
        K=512,
        start=heat(300.0),
        healthy_start=start_from_latents,
    ),
    Scenario(
        "dummy-forward",
        "a forward of zeros that only counted parameters has run k-means: a cosine codebook for each head, all copies",
        D=16,
        options={**_HEADS, **KMEANS},
        own={**_HEADS, **OWN},
        start=dummy_forward,
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
    ),
)

COLLAPSES: tuple[Scenario, ...] = (*_EARLY, *LATE)
"""All but the fresh ones."""
