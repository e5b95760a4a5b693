"""Programs that show collapse_guard on real data."""

from __future__ import annotations

from . import zoo
from .bench_engine import DERIVED_POLICY, engine_readings
from .bench_upkeep import UPKEEP_ARMS, UpkeepRun, read_upkeep_runs, run_upkeep_arm, upkeep_as_markdown
from .digits import DigitsClassifier, digits_loaders
from .kmeans_cells import BenchFit, append_line, measure_fits, read_fits
from .kmeans_data import BENCH_DATA, photo_windows
from .kmeans_methods import BENCH_METHODS
from .kmeans_report import assignments_as_markdown, fits_as_markdown, scaling_as_markdown
from .kmeans_scaling import ASSIGNMENTS, Assignment, ScalingFit, measure_assignments, measure_scaling, read_lines
from .overhead_costs import Costs, cost_of_guarding, count_syncs, one_hot_perplexity
from .overhead_report import overhead_as_markdown
from .quantizer import ReferenceQuantizer
from .reference import ARMS, ArmResult, run_arm, run_reference
from .sync_counter import SyncCounter

__all__ = [
    "ARMS",
    "ASSIGNMENTS",
    "BENCH_DATA",
    "BENCH_METHODS",
    "DERIVED_POLICY",
    "UPKEEP_ARMS",
    "ArmResult",
    "Assignment",
    "BenchFit",
    "Costs",
    "DigitsClassifier",
    "ReferenceQuantizer",
    "ScalingFit",
    "SyncCounter",
    "UpkeepRun",
    "append_line",
    "assignments_as_markdown",
    "cost_of_guarding",
    "count_syncs",
    "digits_loaders",
    "engine_readings",
    "fits_as_markdown",
    "measure_assignments",
    "measure_fits",
    "measure_scaling",
    "one_hot_perplexity",
    "overhead_as_markdown",
    "photo_windows",
    "read_fits",
    "read_lines",
    "read_upkeep_runs",
    "run_arm",
    "run_reference",
    "run_upkeep_arm",
    "scaling_as_markdown",
    "upkeep_as_markdown",
    "zoo",
]
