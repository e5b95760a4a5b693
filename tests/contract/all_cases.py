"""Every class under the contract, by package."""

from __future__ import annotations

from . import encodec, lucidrains

__all__ = ["CASES"]

CASES = (*lucidrains.CASES, *encodec.CASES)
