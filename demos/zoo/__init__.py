"""The collapse zoo: scenarios in which codebooks collapse, or do not, and what rescues them."""

from __future__ import annotations

from .arms import ARMS, Arm, arm_named, blunt_policy, random_policy
from .cell import CellResult, run_cell
from .collapses import COLLAPSES
from .controls import CONTROLS
from .entries import SCENARIOS
from .fresh import FRESH
from .intervals import Interval, mean_of_pairs, median_of_pairs
from .measures import Pairs, fell_at, held_since, is_as_good
from .mistakes import fill_from_first
from .models import FAMILIES, Coder, build_quantizer
from .runner import Study, read_cells, run_study
from .scenario import Run, Scenario
from .split import HELD_OUT
from .starts import write_codes
from .study import current_cells, run_zoo, study_of, write_report

__all__ = [
    "ARMS",
    "COLLAPSES",
    "CONTROLS",
    "FAMILIES",
    "FRESH",
    "HELD_OUT",
    "SCENARIOS",
    "Arm",
    "CellResult",
    "Coder",
    "Interval",
    "Pairs",
    "Run",
    "Scenario",
    "Study",
    "arm_named",
    "blunt_policy",
    "build_quantizer",
    "current_cells",
    "fell_at",
    "fill_from_first",
    "held_since",
    "is_as_good",
    "mean_of_pairs",
    "median_of_pairs",
    "random_policy",
    "read_cells",
    "run_cell",
    "run_study",
    "run_zoo",
    "study_of",
    "write_codes",
    "write_report",
]
