"""Programs that show collapse_guard on real data."""

from __future__ import annotations

from . import zoo
from .ablation_arms import ABLATION_ARMS, Bypassed
from .ablation_looks import LookRun
from .ablation_plot import draw_ablation
from .ablation_report import ablation_as_markdown, ablation_table, conclude_ablation
from .ablation_runs import AblationRun, measure_ablation, run_ablation_arm
from .bench_ablation import run_ablation, tell_story
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
from .diagnosis_cost import COST_BOUND, DiagnosisCost, cost_as_markdown, measure_cost
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
    "DiagnosisCost",
    "DiagnosisRun",
    "DigitsAutoencoder",
    "DigitsClassifier",
    "EvaluationCase",
    "LargeSearch",
    "LookRun",
    "ReferenceQuantizer",
    "RefitLine",
    "ScalingFit",
    "Scenario",
    "SyncCounter",
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
    "diagnosis_as_markdown",
    "digits_loaders",
    "draw_ablation",
    "engine_readings",
    "fits_as_markdown",
    "large_as_markdown",
    "look_at",
    "measure_ablation",
    "measure_assignments",
    "measure_cost",
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
    "upkeep_as_markdown",
    "zoo",
]
