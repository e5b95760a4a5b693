"""All scenarios by name."""

from __future__ import annotations

from .collapses import COLLAPSES
from .controls import CONTROLS
from .fresh import FRESH
from .scenario import Scenario

__all__ = ["SCENARIOS"]

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (*COLLAPSES, *FRESH, *CONTROLS)}
"""Name -> scenario."""
