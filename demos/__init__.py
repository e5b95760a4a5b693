"""Programs that show collapse_guard on real data."""

from __future__ import annotations

from .bench_engine import DERIVED_POLICY, engine_readings
from .digits import DigitsClassifier, digits_loaders
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
    "ArmResult",
    "Assignment",
    "BenchFit",
    "DigitsClassifier",
    "ReferenceQuantizer",
    "ScalingFit",
    "assignments_as_markdown",
    "digits_loaders",
    "engine_readings",
    "fits_as_markdown",
    "measure_assignments",
    "measure_fits",
    "measure_scaling",
    "read_fits",
    "read_lines",
    "run_arm",
    "run_reference",
    "scaling_as_markdown",
]
