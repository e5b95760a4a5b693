"""Every class under the contract, by package."""

from __future__ import annotations

from . import dac, described, diveq, encodec, fixed, lucidrains, nsvq, snac

__all__ = ["CASES"]

CASES = (
    *lucidrains.CASES,
    *encodec.CASES,
    *dac.CASES,
    *snac.CASES,
    *diveq.CASES,
    *nsvq.CASES,
    *fixed.CASES,
    *described.CASES,
)
