"""Interventions: what can be done to a codebook, each as a transaction that is verified or undone."""

from __future__ import annotations

from .base import Intervention, InterventionError, Site, Transaction
from .catalogue import INTERVENTIONS, find_intervention
from .holds import Hold, StepHold
from .parts import CodebookPart, HoldPart, KnobPart, Part, tensors_of
from .support import LadderSupport, RungSupport, ladders_on

__all__ = [
    "INTERVENTIONS",
    "CodebookPart",
    "Hold",
    "HoldPart",
    "Intervention",
    "InterventionError",
    "KnobPart",
    "LadderSupport",
    "Part",
    "RungSupport",
    "Site",
    "StepHold",
    "Transaction",
    "find_intervention",
    "ladders_on",
    "tensors_of",
]
