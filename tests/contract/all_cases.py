"""Every class under the contract, by package."""

from __future__ import annotations

from . import diffusers, diveq, encodec, fixed, lucidrains, nsvq, taming, transformers_images

__all__ = ["CASES"]

CASES = (
    *lucidrains.CASES,
    *encodec.CASES,
    *diveq.CASES,
    *nsvq.CASES,
    *fixed.CASES,
    *taming.CASES,
    *diffusers.CASES,
    *transformers_images.CASES,
)
