"""Every class under the contract, by package."""

from __future__ import annotations

from . import (
    audiocraft,
    dac,
    described,
    diffusers,
    diveq,
    encodec,
    fixed,
    lucidrains,
    moshi,
    nsvq,
    snac,
    speechtokenizer,
    taming,
    transformers_codecs,
    transformers_images,
)

__all__ = ["CASES"]

CASES = (
    *lucidrains.CASES,
    *encodec.CASES,
    *audiocraft.CASES,
    *speechtokenizer.CASES,
    *moshi.CASES,
    *transformers_codecs.CASES,
    *dac.CASES,
    *snac.CASES,
    *taming.CASES,
    *diffusers.CASES,
    *transformers_images.CASES,
    *diveq.CASES,
    *nsvq.CASES,
    *fixed.CASES,
    *described.CASES,
)
