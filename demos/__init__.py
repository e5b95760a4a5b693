"""Programs that show collapse_guard on real data."""

from __future__ import annotations

from .bench_diagnosis import DiagnosisRun, diagnosis_as_markdown, read_diagnosis_runs, run_diagnosis
from .bench_engine import DERIVED_POLICY, engine_readings
from .bench_upkeep import (
    UPKEEP_ARMS,
    ControlRun,
    UpkeepRun,
    control_as_markdown,
    run_control,
    run_upkeep_arm,
    upkeep_as_markdown,
)
from .digits import DigitsClassifier, digits_loaders
from .kmeans_cells import BenchFit, measure_fits, read_lines
from .kmeans_data import BENCH_DATA
from .kmeans_methods import BENCH_METHODS
from .kmeans_plot import quality_over_time
from .kmeans_refit import REFITS, RefitLine, measure_refits
from .kmeans_report import (
    assignments_as_markdown,
    fits_as_markdown,
    large_as_markdown,
    refits_as_markdown,
    scaling_as_markdown,
)
from .kmeans_scaling import ScalingFit, measure_scaling
from .kmeans_search import ASSIGNMENTS, LARGE_DATA, Assignment, LargeSearch, measure_assignments, measure_large
from .quantizer import ReferenceQuantizer
from .reference import ARMS, ArmResult, run_arm, run_reference
from .scenarios import FAULTS, SOUND, Course, Scenario

__all__ = [
    "ARMS",
    "ASSIGNMENTS",
    "BENCH_DATA",
    "BENCH_METHODS",
    "DERIVED_POLICY",
    "FAULTS",
    "LARGE_DATA",
    "REFITS",
    "SOUND",
    "UPKEEP_ARMS",
    "ArmResult",
    "Assignment",
    "BenchFit",
    "ControlRun",
    "Course",
    "DiagnosisRun",
    "DigitsClassifier",
    "LargeSearch",
    "ReferenceQuantizer",
    "RefitLine",
    "ScalingFit",
    "Scenario",
    "UpkeepRun",
    "assignments_as_markdown",
    "control_as_markdown",
    "diagnosis_as_markdown",
    "digits_loaders",
    "engine_readings",
    "fits_as_markdown",
    "large_as_markdown",
    "measure_assignments",
    "measure_fits",
    "measure_large",
    "measure_refits",
    "measure_scaling",
    "quality_over_time",
    "read_diagnosis_runs",
    "read_lines",
    "refits_as_markdown",
    "run_arm",
    "run_control",
    "run_diagnosis",
    "run_reference",
    "run_upkeep_arm",
    "scaling_as_markdown",
    "upkeep_as_markdown",
]
