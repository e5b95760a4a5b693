"""Collapses that were added when the policy had been tuned, to be run once, under a policy that is not touched again.

They come from what users of these packages report, were written without a look at the policy, and judged by the arms
that have no guard. None nearly copies a scenario of another part. Whoever tunes on them moves them to `collapses` or
`late` and adds others.
"""

from __future__ import annotations

from .disturbances import forget_encoder, restart_decay, unscaled_shard
from .scenario import KMEANS, OWN, Scenario
from .starts import start_from_latents

__all__ = ["FRESH"]

_AT = 150

FRESH: tuple[Scenario, ...] = (
    Scenario(
        "hot-sampling",
        "codes of 3 residual levels are drawn at random in training, at a temperature that nobody lowers",
        family="rvq",
        options={"num_quantizers": 3, "stochastic_sample_codes": True, **KMEANS},
        own={"num_quantizers": 3, **OWN},
        healthy={"stochastic_sample_codes": False},
        is_fresh=True,
    ),
    Scenario(
        "restless-replacement",
        "codes below 2 tokens a step are replaced, and half a token is the uniform share: half of all in each step",
        data="digits",
        K=256,
        D=16,
        tokens=2,
        batch=64,
        options={"threshold_ema_dead_code": 2},  # no `own`: the package's own prevention is the cause
        start=start_from_latents,
        healthy={"threshold_ema_dead_code": 0.02},
        healthy_start=start_from_latents,
        is_fresh=True,
    ),
    Scenario(
        "orthogonal-codes",
        "128 learnable codes of 8 coordinates are to be orthogonal, which no more than 8 can be, at a weight of 10",
        lr=2e-3,
        options={"learnable_codebook": True, "ema_update": False, "orthogonal_reg_weight": 10.0},
        own=OWN,
        start=start_from_latents,
        healthy={"orthogonal_reg_weight": 0.0},
        healthy_start=start_from_latents,
        is_fresh=True,
    ),
    Scenario(
        "restarted-decay",
        "a resume starts the warm-up of encodec's EMA decay anew: 1024 codes are forgotten faster than 48 tokens come",
        family="encodec",
        K=1024,
        D=16,
        batch=48,
        onset=_AT,
        options={"kmeans_init": False, "threshold_ema_dead_code": 0},
        own={"threshold_ema_dead_code": 0.005},
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=restart_decay(at=_AT, decay=0.99),
        is_fresh=True,
    ),
    Scenario(
        "unscaled-shard",
        "for 5 steps one item in 50 has pixels up to 255 where all others have them up to 1: Adam's moments stay huge",
        family="taming",
        K=512,
        onset=_AT,
        start=start_from_latents,
        healthy_start=start_from_latents,
        disturb=unscaled_shard(at=_AT, until=_AT + 5, one_in=50),
        is_fresh=True,
    ),
    Scenario(
        "forgotten-encoder",
        "a resume lacks the encoder, which starts anew; codebook and decoder are those that were trained",
        data="digits",
        family="reference",
        K=256,
        D=16,
        tokens=2,
        batch=64,
        onset=_AT,
        options={"repaired": True, "normalised": False},
        disturb=forget_encoder(at=_AT),
        is_fresh=True,
    ),
)
