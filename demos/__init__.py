"""Programs that show collapse_guard on real data.

Each is loaded with the first name of it that is asked for: a worker of the zoo needs no Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import zoo
    from .bench_diagnosis import DiagnosisRun, diagnosis_as_markdown, read_diagnosis_runs, run_diagnosis
    from .bench_engine import DERIVED_POLICY, engine_readings
    from .bench_evaluation import run_case as run_evaluation_case
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
    from .evaluation_cases import CASES as EVALUATION_CASES
    from .evaluation_cases import HEALTHY as HEALTHY_EVALUATIONS
    from .evaluation_cases import Case as EvaluationCase
    from .evaluation_cases import CaseQuantizer, DigitsAutoencoder
    from .evaluation_modes import LOOKS, look_at
    from .kmeans_cells import BenchFit, append_line, measure_fits, read_lines
    from .kmeans_data import BENCH_DATA, photo_windows
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
    from .overhead_costs import Costs, cost_of_guarding, count_syncs, one_hot_perplexity
    from .overhead_report import overhead_as_markdown
    from .quantizer import ReferenceQuantizer
    from .reference import ARMS, ArmResult, run_arm, run_reference
    from .scenarios import FAULTS, SOUND, Course, Scenario
    from .sync_counter import SyncCounter

__all__ = [
    "ARMS",
    "ASSIGNMENTS",
    "BENCH_DATA",
    "BENCH_METHODS",
    "DERIVED_POLICY",
    "EVALUATION_CASES",
    "FAULTS",
    "HEALTHY_EVALUATIONS",
    "LARGE_DATA",
    "LOOKS",
    "REFITS",
    "SOUND",
    "UPKEEP_ARMS",
    "ArmResult",
    "Assignment",
    "BenchFit",
    "CaseQuantizer",
    "ControlRun",
    "Costs",
    "Course",
    "DiagnosisRun",
    "DigitsAutoencoder",
    "DigitsClassifier",
    "EvaluationCase",
    "LargeSearch",
    "ReferenceQuantizer",
    "RefitLine",
    "ScalingFit",
    "Scenario",
    "SyncCounter",
    "UpkeepRun",
    "append_line",
    "assignments_as_markdown",
    "control_as_markdown",
    "cost_of_guarding",
    "count_syncs",
    "diagnosis_as_markdown",
    "digits_loaders",
    "engine_readings",
    "fits_as_markdown",
    "large_as_markdown",
    "look_at",
    "measure_assignments",
    "measure_fits",
    "measure_large",
    "measure_refits",
    "measure_scaling",
    "one_hot_perplexity",
    "overhead_as_markdown",
    "photo_windows",
    "quality_over_time",
    "read_diagnosis_runs",
    "read_lines",
    "refits_as_markdown",
    "run_arm",
    "run_control",
    "run_diagnosis",
    "run_evaluation_case",
    "run_reference",
    "run_upkeep_arm",
    "scaling_as_markdown",
    "upkeep_as_markdown",
    "zoo",
]

_PLACES = {
    "append_line": ("kmeans_cells", "append_line"),
    "ArmResult": ("reference", "ArmResult"),
    "ARMS": ("reference", "ARMS"),
    "Assignment": ("kmeans_search", "Assignment"),
    "ASSIGNMENTS": ("kmeans_search", "ASSIGNMENTS"),
    "assignments_as_markdown": ("kmeans_report", "assignments_as_markdown"),
    "BENCH_DATA": ("kmeans_data", "BENCH_DATA"),
    "BENCH_METHODS": ("kmeans_methods", "BENCH_METHODS"),
    "BenchFit": ("kmeans_cells", "BenchFit"),
    "CaseQuantizer": ("evaluation_cases", "CaseQuantizer"),
    "control_as_markdown": ("bench_upkeep", "control_as_markdown"),
    "ControlRun": ("bench_upkeep", "ControlRun"),
    "cost_of_guarding": ("overhead_costs", "cost_of_guarding"),
    "Costs": ("overhead_costs", "Costs"),
    "count_syncs": ("overhead_costs", "count_syncs"),
    "Course": ("scenarios", "Course"),
    "DERIVED_POLICY": ("bench_engine", "DERIVED_POLICY"),
    "diagnosis_as_markdown": ("bench_diagnosis", "diagnosis_as_markdown"),
    "DiagnosisRun": ("bench_diagnosis", "DiagnosisRun"),
    "digits_loaders": ("digits", "digits_loaders"),
    "DigitsAutoencoder": ("evaluation_cases", "DigitsAutoencoder"),
    "DigitsClassifier": ("digits", "DigitsClassifier"),
    "engine_readings": ("bench_engine", "engine_readings"),
    "EVALUATION_CASES": ("evaluation_cases", "CASES"),
    "EvaluationCase": ("evaluation_cases", "Case"),
    "FAULTS": ("scenarios", "FAULTS"),
    "fits_as_markdown": ("kmeans_report", "fits_as_markdown"),
    "HEALTHY_EVALUATIONS": ("evaluation_cases", "HEALTHY"),
    "large_as_markdown": ("kmeans_report", "large_as_markdown"),
    "LARGE_DATA": ("kmeans_search", "LARGE_DATA"),
    "LargeSearch": ("kmeans_search", "LargeSearch"),
    "look_at": ("evaluation_modes", "look_at"),
    "LOOKS": ("evaluation_modes", "LOOKS"),
    "measure_assignments": ("kmeans_search", "measure_assignments"),
    "measure_fits": ("kmeans_cells", "measure_fits"),
    "measure_large": ("kmeans_search", "measure_large"),
    "measure_refits": ("kmeans_refit", "measure_refits"),
    "measure_scaling": ("kmeans_scaling", "measure_scaling"),
    "one_hot_perplexity": ("overhead_costs", "one_hot_perplexity"),
    "overhead_as_markdown": ("overhead_report", "overhead_as_markdown"),
    "photo_windows": ("kmeans_data", "photo_windows"),
    "quality_over_time": ("kmeans_plot", "quality_over_time"),
    "read_diagnosis_runs": ("bench_diagnosis", "read_diagnosis_runs"),
    "read_lines": ("kmeans_cells", "read_lines"),
    "ReferenceQuantizer": ("quantizer", "ReferenceQuantizer"),
    "RefitLine": ("kmeans_refit", "RefitLine"),
    "REFITS": ("kmeans_refit", "REFITS"),
    "refits_as_markdown": ("kmeans_report", "refits_as_markdown"),
    "run_arm": ("reference", "run_arm"),
    "run_control": ("bench_upkeep", "run_control"),
    "run_diagnosis": ("bench_diagnosis", "run_diagnosis"),
    "run_evaluation_case": ("bench_evaluation", "run_case"),
    "run_reference": ("reference", "run_reference"),
    "run_upkeep_arm": ("bench_upkeep", "run_upkeep_arm"),
    "scaling_as_markdown": ("kmeans_report", "scaling_as_markdown"),
    "ScalingFit": ("kmeans_scaling", "ScalingFit"),
    "Scenario": ("scenarios", "Scenario"),
    "SOUND": ("scenarios", "SOUND"),
    "SyncCounter": ("sync_counter", "SyncCounter"),
    "UPKEEP_ARMS": ("bench_upkeep", "UPKEEP_ARMS"),
    "upkeep_as_markdown": ("bench_upkeep", "upkeep_as_markdown"),
    "UpkeepRun": ("bench_upkeep", "UpkeepRun"),
}
"""Name -> the module that has it, and its name there."""


def __getattr__(name: str) -> Any:
    """Load a program when something of it is first asked for."""
    if name == "zoo":
        return importlib.import_module(".zoo", __name__)
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, its_name = _PLACES[name]
    value = globals()[name] = getattr(importlib.import_module(f".{module}", __name__), its_name)
    return value


def __dir__() -> list[str]:
    """Name what is there, loaded or not."""
    return sorted({*globals(), *__all__})
