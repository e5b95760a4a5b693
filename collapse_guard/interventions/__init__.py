"""Interventions: what can be done to a codebook, each as a transaction that is verified or undone."""

from __future__ import annotations

from .base import Intervention, InterventionError, Site, Transaction
from .catalogue import INTERVENTIONS, find_intervention
from .parts import Part, tensors_of
from .support import LadderSupport, RungSupport, ladders_on

__all__ = [
    "INTERVENTIONS",
    "Intervention",
    "InterventionError",
    "LadderSupport",
    "Part",
    "RungSupport",
    "Site",
    "Transaction",
    "find_intervention",
    "ladders_on",
    "tensors_of",
]
