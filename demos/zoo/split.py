"""Which scenarios the default policy may be tuned on, and which are held out to judge it by.

The names and the seed were written down before the first result. A scenario that is added later belongs to the tuned
part once it is no longer fresh, so that the held-out part stays what it was.
"""

from __future__ import annotations

import random

__all__ = ["HELD_OUT", "is_held_out"]

_SEED = 9
_COLLAPSES = (
    "artificial-reshape",
    "batchnorm-eval",
    "commitment-40",
    "commitment-400",
    "diffusers-start",
    "encodec-replacement",
    "encoder-jump",
    "fast-ema",
    "frozen-codebook",
    "large-codebook",
    "nan-batch",
    "narrow-cosine",
    "padded-tokens",
    "reference-ema",
    "residual-4",
    "residual-8",
    "slow-drift",
    "start-far-away",
    "start-too-large",
    "start-too-small",
    "taming-start",
    "two-optimizers",
)
_CONTROLS = (
    "class-sorted",
    "cosine-healthy",
    "data-shift",
    "few-modes",
    "four-codes",
    "plain-ema",
    "repaired-ema",
    "residual-healthy",
    "small-batches",
    "warm-up",
)


def _third(names: tuple[str, ...], seed: int) -> frozenset[str]:
    """Draw a third of the names, rounded down."""
    return frozenset(random.Random(seed).sample(names, len(names) // 3))


HELD_OUT: frozenset[str] = _third(_COLLAPSES, _SEED) | _third(_CONTROLS, _SEED)
"""Names of the scenarios that nothing is tuned on: a third of the collapses and of the healthy controls."""


def is_held_out(scenario: str) -> bool:
    """Whether a scenario belongs to the held-out part."""
    return scenario in HELD_OUT
