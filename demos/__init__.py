"""Programs that show collapse_guard on real data."""

from __future__ import annotations

from .bench_diagnosis import DiagnosisRun, diagnosis_as_markdown, read_diagnosis_runs, run_diagnosis
from .bench_engine import DERIVED_POLICY, engine_readings
from .bench_upkeep import UPKEEP_ARMS, UpkeepRun, read_upkeep_runs, run_upkeep_arm, upkeep_as_markdown
from .digits import DigitsClassifier, digits_loaders
from .kmeans_cells import BenchFit, measure_fits, read_fits
from .kmeans_data import BENCH_DATA
from .kmeans_methods import BENCH_METHODS
from .kmeans_report import assignments_as_markdown, fits_as_markdown, scaling_as_markdown
from .kmeans_scaling import ASSIGNMENTS, Assignment, ScalingFit, measure_assignments, measure_scaling, read_lines
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
    "SOUND",
    "UPKEEP_ARMS",
    "ArmResult",
    "Assignment",
    "BenchFit",
    "Course",
    "DiagnosisRun",
    "DigitsClassifier",
    "ReferenceQuantizer",
    "ScalingFit",
    "Scenario",
    "UpkeepRun",
    "assignments_as_markdown",
    "diagnosis_as_markdown",
    "digits_loaders",
    "engine_readings",
    "fits_as_markdown",
    "measure_assignments",
    "measure_fits",
    "measure_scaling",
    "read_diagnosis_runs",
    "read_fits",
    "read_lines",
    "read_upkeep_runs",
    "run_arm",
    "run_diagnosis",
    "run_reference",
    "run_upkeep_arm",
    "scaling_as_markdown",
    "upkeep_as_markdown",
]
