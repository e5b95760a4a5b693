"""Every class under the contract, by package."""

from __future__ import annotations

from . import diveq, encodec, fixed, lucidrains, nsvq

__all__ = ["CASES"]

CASES = (*lucidrains.CASES, *encodec.CASES, *diveq.CASES, *nsvq.CASES, *fixed.CASES)
