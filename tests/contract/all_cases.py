"""Every class under the contract, by package."""

from __future__ import annotations

from . import audiocraft, diveq, encodec, fixed, lucidrains, moshi, nsvq, speechtokenizer, transformers_codecs

__all__ = ["CASES"]

CASES = (
    *lucidrains.CASES,
    *encodec.CASES,
    *audiocraft.CASES,
    *speechtokenizer.CASES,
    *moshi.CASES,
    *transformers_codecs.CASES,
    *diveq.CASES,
    *nsvq.CASES,
    *fixed.CASES,
)
