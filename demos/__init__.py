"""Programs that show collapse_guard on real data.

Each is loaded with the first name of it that is asked for: a worker of the zoo needs no Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import zoo
    from .ablation_arms import ABLATION_ARMS, Bypassed
    from .ablation_looks import LookRun
    from .ablation_plot import draw_ablation
    from .ablation_report import ablation_as_markdown, ablation_table, conclude_ablation
    from .ablation_runs import AblationRun, measure_ablation, run_ablation_arm
    from .bench_ablation import run_ablation, tell_story
    from .bench_callbacks import Turns, mean_of_cycle, time_callbacks
    from .bench_diagnosis import DiagnosisRun, diagnosis_as_markdown, read_diagnosis_runs, run_diagnosis
    from .bench_engine import DERIVED_POLICY, engine_readings
    from .bench_evaluation import run_case as run_evaluation_case
    from .bench_log import LogCost, log_costs_as_markdown, measure_log, write_long_log
    from .bench_overhead import time_models
    from .bench_upkeep import (
        UPKEEP_ARMS,
        ControlRun,
        UpkeepRun,
        control_as_markdown,
        run_control,
        run_upkeep_arm,
        upkeep_as_markdown,
    )
    from .diagnosis_cost import COST_BOUND, DiagnosisCost, cost_as_markdown, measure_cost
    from .digits import DigitsClassifier, digits_loaders
    from .evaluation_cases import CASES as EVALUATION_CASES
    from .evaluation_cases import HEALTHY as HEALTHY_EVALUATIONS
    from .evaluation_cases import Case as EvaluationCase
    from .evaluation_cases import CaseQuantizer, DigitsAutoencoder
    from .evaluation_modes import LOOKS, look_at
    from .kmeans_cells import BenchFit, append_line, measure_fits, read_lines
    from .kmeans_data import BENCH_DATA, photo_windows
    from .kmeans_device import DeviceFit, device_fits_as_markdown, measure_device_fits
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
    from .overhead_device import DeviceLine, own_cost, time_arms
    from .overhead_models import Small as SmallModel
    from .overhead_report import device_as_markdown, overhead_as_markdown
    from .quantizer import ReferenceQuantizer
    from .reference import ARMS, ArmResult, run_arm, run_reference
    from .scenarios import FAULTS, SOUND, Course, Scenario
    from .sync_counter import SyncCounter

__all__ = [
    "ABLATION_ARMS",
    "ARMS",
    "ASSIGNMENTS",
    "BENCH_DATA",
    "BENCH_METHODS",
    "COST_BOUND",
    "DERIVED_POLICY",
    "EVALUATION_CASES",
    "FAULTS",
    "HEALTHY_EVALUATIONS",
    "LARGE_DATA",
    "LOOKS",
    "REFITS",
    "SOUND",
    "UPKEEP_ARMS",
    "AblationRun",
    "ArmResult",
    "Assignment",
    "BenchFit",
    "Bypassed",
    "CaseQuantizer",
    "ControlRun",
    "Costs",
    "Course",
    "DeviceFit",
    "DeviceLine",
    "DiagnosisCost",
    "DiagnosisRun",
    "DigitsAutoencoder",
    "DigitsClassifier",
    "EvaluationCase",
    "LargeSearch",
    "LogCost",
    "LookRun",
    "ReferenceQuantizer",
    "RefitLine",
    "ScalingFit",
    "Scenario",
    "SmallModel",
    "SyncCounter",
    "Turns",
    "UpkeepRun",
    "ablation_as_markdown",
    "ablation_table",
    "append_line",
    "assignments_as_markdown",
    "conclude_ablation",
    "control_as_markdown",
    "cost_as_markdown",
    "cost_of_guarding",
    "count_syncs",
    "device_as_markdown",
    "device_fits_as_markdown",
    "diagnosis_as_markdown",
    "digits_loaders",
    "draw_ablation",
    "engine_readings",
    "fits_as_markdown",
    "large_as_markdown",
    "log_costs_as_markdown",
    "look_at",
    "mean_of_cycle",
    "measure_ablation",
    "measure_assignments",
    "measure_cost",
    "measure_device_fits",
    "measure_fits",
    "measure_large",
    "measure_log",
    "measure_refits",
    "measure_scaling",
    "one_hot_perplexity",
    "overhead_as_markdown",
    "own_cost",
    "photo_windows",
    "quality_over_time",
    "read_diagnosis_runs",
    "read_lines",
    "refits_as_markdown",
    "run_ablation",
    "run_ablation_arm",
    "run_arm",
    "run_control",
    "run_diagnosis",
    "run_evaluation_case",
    "run_reference",
    "run_upkeep_arm",
    "scaling_as_markdown",
    "tell_story",
    "time_arms",
    "time_callbacks",
    "time_models",
    "upkeep_as_markdown",
    "write_long_log",
    "zoo",
]

_MODULES = {
    "ablation_arms": "ABLATION_ARMS Bypassed",
    "ablation_looks": "LookRun",
    "ablation_plot": "draw_ablation",
    "ablation_report": "ablation_as_markdown ablation_table conclude_ablation",
    "ablation_runs": "AblationRun measure_ablation run_ablation_arm",
    "bench_ablation": "run_ablation tell_story",
    "bench_callbacks": "Turns mean_of_cycle time_callbacks",
    "bench_diagnosis": "DiagnosisRun diagnosis_as_markdown read_diagnosis_runs run_diagnosis",
    "bench_engine": "DERIVED_POLICY engine_readings",
    "bench_evaluation": "run_evaluation_case=run_case",
    "bench_log": "LogCost log_costs_as_markdown measure_log write_long_log",
    "bench_overhead": "time_models",
    "bench_upkeep": "UPKEEP_ARMS ControlRun UpkeepRun "
    "control_as_markdown run_control run_upkeep_arm upkeep_as_markdown",
    "diagnosis_cost": "COST_BOUND DiagnosisCost cost_as_markdown measure_cost",
    "digits": "DigitsClassifier digits_loaders",
    "evaluation_cases": "EVALUATION_CASES=CASES HEALTHY_EVALUATIONS=HEALTHY "
    "EvaluationCase=Case CaseQuantizer DigitsAutoencoder",
    "evaluation_modes": "LOOKS look_at",
    "kmeans_cells": "BenchFit append_line measure_fits read_lines",
    "kmeans_data": "BENCH_DATA photo_windows",
    "kmeans_device": "DeviceFit device_fits_as_markdown measure_device_fits",
    "kmeans_methods": "BENCH_METHODS",
    "kmeans_plot": "quality_over_time",
    "kmeans_refit": "REFITS RefitLine measure_refits",
    "kmeans_report": "assignments_as_markdown fits_as_markdown "
    "large_as_markdown refits_as_markdown scaling_as_markdown",
    "kmeans_scaling": "ScalingFit measure_scaling",
    "kmeans_search": "ASSIGNMENTS LARGE_DATA Assignment LargeSearch measure_assignments measure_large",
    "overhead_costs": "Costs cost_of_guarding count_syncs one_hot_perplexity",
    "overhead_device": "DeviceLine own_cost time_arms",
    "overhead_models": "SmallModel=Small",
    "overhead_report": "device_as_markdown overhead_as_markdown",
    "quantizer": "ReferenceQuantizer",
    "reference": "ARMS ArmResult run_arm run_reference",
    "scenarios": "FAULTS SOUND Course Scenario",
    "sync_counter": "SyncCounter",
}
"""Module -> the names that it has, where they are called otherwise there as `name=its name`."""

_PLACES = {
    name: (module, its_name or name)
    for module, names in _MODULES.items()
    for name, _, its_name in (each.partition("=") for each in names.split())
}


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
