"""The collapse zoo: scenarios in which codebooks collapse, or do not, and what rescues them."""

from __future__ import annotations

from .arms import ARMS, Arm, arm_named
from .cell import CellResult, run_cell
from .collapses import COLLAPSES
from .controls import CONTROLS
from .scenario import Scenario

__all__ = ["ARMS", "COLLAPSES", "CONTROLS", "SCENARIOS", "Arm", "CellResult", "Scenario", "arm_named", "run_cell"]

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (*COLLAPSES, *CONTROLS)}
"""Name -> scenario."""
