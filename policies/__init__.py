"""What decides: policies in YAML, and the engine that applies them to readings.

Plain Python: this package imports neither torch nor Lightning, touches no tensor and reads no clock. It turns numbers
(`Reading`) into records (`Decision`); carrying them out is the business of `collapse_guard`.
"""

from __future__ import annotations

from .absence import absences_in, idle_rules
from .actions import (
    Action,
    Alert,
    CoolSampling,
    DecayCommitment,
    EaseReplacement,
    EvalFix,
    FallbackTokenizer,
    RaiseCommitment,
    ResetCodes,
    SaveCheckpoint,
    StopTraining,
    Upkeep,
    action_named,
    actions,
    register_action,
)
from .announced import announced_actions
from .cases import Case, load_cases
from .causes import LEADING, Cause, Diagnosis
from .columns import Columns, columns_of, listed
from .condition import Comparison, Condition
from .coordination import levels_text
from .decisions import Decision, DecisionKind, Health, Outcome, Skip
from .duration import Duration
from .engine import PolicyEngine
from .errors import PolicyError, Problem
from .explain import explain_policy
from .group import taken_together
from .json_schema import policy_json_schema
from .lineage import Lineage, Segment, counts, current_history
from .lint import Finding, lint_policy, position_in
from .loader import load_policy, policy_text, preset_names, preset_tests
from .reading import NUMERIC_FIELDS, Reading
from .recording import Recording, recordings_of_events
from .remedies import (
    BridgeGradient,
    ClipGradients,
    DisableNormalisation,
    FastEma,
    FreezeEncoder,
    LowerLr,
    RaiseCodebookLr,
    RestartOptimizer,
    RestoreLayout,
    Rollback,
    ScaleLossWeight,
    SlowEma,
    Substitute,
    TakeOverUpdates,
)
from .replay import LIMITS as REPLAY_LIMITS
from .replay import Replay, replay
from .replay import compare as compare_replays
from .schema import Budget, Clear, Cooldown, LossBound, Policy, Rule, Rung, Sample, Verify
from .states import Phase
from .table import recording_of_rows
from .trial import Difference, try_case

__all__ = [
    "LEADING",
    "NUMERIC_FIELDS",
    "REPLAY_LIMITS",
    "Action",
    "Alert",
    "BridgeGradient",
    "Budget",
    "Case",
    "Cause",
    "Clear",
    "ClipGradients",
    "Columns",
    "Comparison",
    "Condition",
    "CoolSampling",
    "Cooldown",
    "DecayCommitment",
    "Decision",
    "DecisionKind",
    "Diagnosis",
    "Difference",
    "DisableNormalisation",
    "Duration",
    "EaseReplacement",
    "EvalFix",
    "FallbackTokenizer",
    "FastEma",
    "Finding",
    "FreezeEncoder",
    "Health",
    "Lineage",
    "LossBound",
    "LowerLr",
    "Outcome",
    "Phase",
    "Policy",
    "PolicyEngine",
    "PolicyError",
    "Problem",
    "RaiseCodebookLr",
    "RaiseCommitment",
    "Reading",
    "Recording",
    "Replay",
    "ResetCodes",
    "RestartOptimizer",
    "RestoreLayout",
    "Rollback",
    "Rule",
    "Rung",
    "Sample",
    "SaveCheckpoint",
    "ScaleLossWeight",
    "Segment",
    "Skip",
    "SlowEma",
    "StopTraining",
    "Substitute",
    "TakeOverUpdates",
    "Upkeep",
    "Verify",
    "absences_in",
    "action_named",
    "actions",
    "announced_actions",
    "columns_of",
    "compare_replays",
    "counts",
    "current_history",
    "explain_policy",
    "idle_rules",
    "levels_text",
    "lint_policy",
    "listed",
    "load_cases",
    "load_policy",
    "policy_json_schema",
    "policy_text",
    "position_in",
    "preset_names",
    "preset_tests",
    "recording_of_rows",
    "recordings_of_events",
    "register_action",
    "replay",
    "taken_together",
    "try_case",
]
