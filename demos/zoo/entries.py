"""All scenarios by name."""

from __future__ import annotations

from .collapses import COLLAPSES
from .controls import CONTROLS
from .scenario import Scenario

__all__ = ["SCENARIOS"]

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (*COLLAPSES, *CONTROLS)}
"""Name -> scenario."""
