"""What decides: policies in YAML, and the engine that applies them to readings.

Plain Python: this package imports neither torch nor Lightning, touches no tensor and reads no clock. It turns numbers
(`Reading`) into records (`Decision`); carrying them out is the business of `collapse_guard`.
"""

from __future__ import annotations

from .actions import (
    Action,
    Alert,
    DecayCommitment,
    FallbackTokenizer,
    ResetCodes,
    action_named,
    actions,
    register_action,
)
from .condition import Comparison, Condition
from .decisions import Decision, DecisionKind, Health, Outcome, Skip
from .duration import Duration
from .engine import PolicyEngine
from .errors import PolicyError, Problem
from .loader import load_policy, preset_names
from .reading import NUMERIC_FIELDS, Reading
from .schema import Budget, Clear, Cooldown, LossBound, Policy, Rule, Rung, Sample, Verify
from .states import Phase

__all__ = [
    "NUMERIC_FIELDS",
    "Action",
    "Alert",
    "Budget",
    "Clear",
    "Comparison",
    "Condition",
    "Cooldown",
    "DecayCommitment",
    "Decision",
    "DecisionKind",
    "Duration",
    "FallbackTokenizer",
    "Health",
    "LossBound",
    "Outcome",
    "Phase",
    "Policy",
    "PolicyEngine",
    "PolicyError",
    "Problem",
    "Reading",
    "ResetCodes",
    "Rule",
    "Rung",
    "Sample",
    "Skip",
    "Verify",
    "action_named",
    "actions",
    "load_policy",
    "preset_names",
    "register_action",
]
