"""Evaluation: what codebooks show there, and why it differs from what they show in training.

Readings of stage `eval` from the counts of whole validations, and a comparison of training and evaluation mode on kept
inputs that names what makes the difference. Everything here reads: the model is never run and never written to.
"""

from __future__ import annotations

from .compare import Comparison
from .session import Evaluations
from .state import ModuleState

__all__ = ["Comparison", "Evaluations", "ModuleState"]
