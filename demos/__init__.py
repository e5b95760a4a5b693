"""Programs that show collapse_guard on real data."""

from __future__ import annotations

from .bench_engine import DERIVED_POLICY, engine_readings
from .bench_evaluation import run_case as run_evaluation_case
from .bench_upkeep import UPKEEP_ARMS, UpkeepRun, read_upkeep_runs, run_upkeep_arm, upkeep_as_markdown
from .digits import DigitsClassifier, digits_loaders
from .evaluation_cases import CASES as EVALUATION_CASES
from .evaluation_cases import HEALTHY as HEALTHY_EVALUATIONS
from .evaluation_cases import Case as EvaluationCase
from .evaluation_cases import CaseQuantizer, DigitsAutoencoder
from .evaluation_modes import LOOKS, look_at
from .kmeans_cells import BenchFit, measure_fits, read_fits
from .kmeans_data import BENCH_DATA
from .kmeans_methods import BENCH_METHODS
from .kmeans_report import assignments_as_markdown, fits_as_markdown, scaling_as_markdown
from .kmeans_scaling import ASSIGNMENTS, Assignment, ScalingFit, measure_assignments, measure_scaling, read_lines
from .quantizer import ReferenceQuantizer
from .reference import ARMS, ArmResult, run_arm, run_reference

__all__ = [
    "ARMS",
    "ASSIGNMENTS",
    "BENCH_DATA",
    "BENCH_METHODS",
    "DERIVED_POLICY",
    "EVALUATION_CASES",
    "HEALTHY_EVALUATIONS",
    "LOOKS",
    "UPKEEP_ARMS",
    "ArmResult",
    "Assignment",
    "BenchFit",
    "CaseQuantizer",
    "DigitsAutoencoder",
    "DigitsClassifier",
    "EvaluationCase",
    "ReferenceQuantizer",
    "ScalingFit",
    "UpkeepRun",
    "assignments_as_markdown",
    "digits_loaders",
    "engine_readings",
    "fits_as_markdown",
    "look_at",
    "measure_assignments",
    "measure_fits",
    "measure_scaling",
    "read_fits",
    "read_lines",
    "read_upkeep_runs",
    "run_arm",
    "run_evaluation_case",
    "run_reference",
    "run_upkeep_arm",
    "scaling_as_markdown",
    "upkeep_as_markdown",
]
