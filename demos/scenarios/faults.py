"""The scenarios in which one thing goes wrong: for each cause one of each family.

Each entry says what is wrong and no more; everything else is as in the sound scenarios.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from collapse_guard.policies import Cause

from .course import Scenario
from .data import Blobs, Padded, Sheet
from .quantizers import EmaQuantizer, EmaResidualQuantizer, residual_quantize, vector_quantize
from .tampering import (
    accelerate,
    cramp_pieces,
    forget_the_factor,
    grow,
    jump,
    normalise,
    place_codes,
    poison,
    prefill_unscaled,
)

__all__ = ["FAULTS"]

HOME, LIBRARY = "home-made EMA", "vector-quantize-pytorch"
_K, _D = 64, 16


def _home(K: int = _K, **options: Any) -> Callable[[], nn.Module]:
    return lambda: EmaQuantizer(K, _D, **options)


def _library(K: int = _K, **options: Any) -> Callable[[], nn.Module]:
    return lambda: vector_quantize(K, _D, **{"kmeans_init": True, **options})


def _pair(
    cause: Cause, says: str, home: Callable[[], nn.Module], library: Callable[[], nn.Module], **options: Any
) -> tuple[Scenario, Scenario]:
    """Return the same fault in both families; an option that differs is a tuple, home-made first."""
    made = []
    for place, (family, quantizer) in enumerate(((HOME, home), (LIBRARY, library))):
        own = {key: value[place] if isinstance(value, tuple) else value for key, value in options.items()}
        own = {"data": Sheet(), **own}
        short = "home" if family == HOME else "library"
        name = f"{cause.value}/{short}"
        made.append(Scenario(name=name, family=family, says=says, cause=cause, quantizer=quantizer, **own))
    return made[0], made[1]


FAULTS: tuple[Scenario, ...] = (
    *_pair(
        Cause.RUNAWAY_CODEBOOK,
        "the smoothed cluster size is not multiplied back by n",
        _home(unscaled=True),
        _library(),
        tamper=(None, forget_the_factor),
    ),
    *_pair(
        Cause.SHRINKING_CODEBOOK,
        "after a k-means start the moving sums lack the counts",
        _home(start="kmeans_unscaled", decay=0.99),
        _library(kmeans_init=False, decay=0.99),
        data=Sheet(sequences=64),
        tamper=(None, prefill_unscaled),
        steps=(30, 120),
    ),
    *_pair(
        Cause.MISPLACED_CODEBOOK,
        "the codes begin as unit vectors far from the latents; or thirty times too long",
        _home(start="normal", offset=4.0),
        _library(kmeans_init=False),
        tamper=(None, place_codes(scale=30.0)),
    ),
    *_pair(
        Cause.UNFITTED_CODEBOOK,
        "k-means starts from a first batch that is of a corner of the data",
        _home(decay=0.99, start="kmeans"),
        _library(decay=0.99),
        data=Sheet(first=0.1, dimension=4),
        learning_rate=1e-4,
    ),
    *_pair(
        Cause.CODEBOOK_LEFT_BEHIND,
        "a jump of the latents, or their steady growth, under a decay of 0.999",
        _home(decay=0.999),
        _library(decay=0.999),
        tamper=(jump(60, 12.0), grow(50, 1.08)),
    ),
    *_pair(
        Cause.ENCODER_COLLAPSE,
        "a commitment weight a hundred times too large, to codes that begin short",
        _home(commitment_weight=100.0, start="normal", scale=0.05),
        _library(commitment_weight=100.0, kmeans_init=False),
        tamper=(None, place_codes(scale=0.05)),
    ),
    *_pair(
        Cause.STARVATION,
        "a thousand codes and 64 tokens a step, and nothing brings dead codes back",
        _home(1024),
        _library(1024),
        data=Sheet(sequences=4),
    ),
    *_pair(
        Cause.FORGETFUL_AVERAGES,
        "as many codes and as few tokens, and a decay of 0.8 forgets a code before its next token comes",
        _home(1024, decay=0.8),
        _library(1024, decay=0.8),
        data=Sheet(sequences=4),
    ),
    *_pair(
        Cause.NO_GRADIENT,
        "the straight-through estimator is missing; or the decoder is given vectors looked up by codes",
        _home(straight_through=False),
        _library(),
        through=("output", "codes"),
    ),
    *_pair(Cause.NON_FINITE, "a NaN in the encoder from step 60 on", _home(), _library(), tamper=poison(60)),
    *_pair(
        Cause.EXPLODING_GRADIENTS,
        "the learning rate rises by a fifth in each step, without clipping",
        _home(),
        _library(),
        tamper=accelerate(40, 1.2),
        steps=160,
    ),
    *_pair(
        Cause.ARTIFICIAL_RESHAPE,
        "the encoder's 32 features are cut into two latents of 16",
        _home(),
        _library(),
        pieces=2,
        tamper=cramp_pieces,
    ),
    *_pair(
        Cause.STARVED_LEVEL,
        "the first level of a residual codes all there is",
        lambda: EmaResidualQuantizer(3, 128, _D, start="kmeans"),
        lambda: residual_quantize(3, 128, _D),
        data=Blobs(modes=24, noise=0.01),
        codebook="quantizer.layers.1",
    ),
    *_pair(
        Cause.PADDED_TOKENS,
        "seven of ten positions are padding, and nothing masks them",
        _home(),
        _library(),
        data=Padded(),
    ),
    *_pair(
        Cause.FEW_MODES,
        "the data has three modes: nothing is wrong",
        _home(),
        _library(),
        data=Blobs(modes=3, noise=0.02),
    ),
    *_pair(
        Cause.REPLACEMENT_FAILS,
        "dead codes are replaced by far noise; or expire at a count that so few tokens cannot give",
        _home(256, restart="noise"),
        _library(512, threshold_ema_dead_code=2),
        data=(Sheet(), Sheet(sequences=4)),
    ),
    # A home-made quantizer has no setting that would tell: of the library alone.
    _pair(
        Cause.METRIC_CHANGED,
        "from step 60 on latents and codes are normalised, as a resume with another configuration would have it",
        _home(),
        _library(decay=0.99),
        tamper=normalise(60),
    )[1],
)
"""For each cause one of each family, home-made first, where there is one."""
