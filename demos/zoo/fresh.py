"""Collapses that were added when the policy had been tuned, to be run once, under a policy that is not touched again.

They come from what users of these packages report, were written without a look at the policy, and judged by the arms
that have no guard. None nearly copies a scenario of another part. Whoever tunes on them moves them to `collapses` or
`late` and adds others.
"""

from __future__ import annotations

from .scenario import Scenario

__all__ = ["FRESH"]

FRESH: tuple[Scenario, ...] = ()
