"""Every class under the contract, by package."""

from __future__ import annotations

from . import dac, described, diffusers, diveq, encodec, fixed, lucidrains, nsvq, snac, taming, transformers_images

__all__ = ["CASES"]

CASES = (
    *lucidrains.CASES,
    *encodec.CASES,
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
