"""Programs that show collapse_guard on real data."""

from __future__ import annotations

from .digits import DigitsClassifier, digits_loaders
from .quantizer import ReferenceQuantizer
from .reference import ARMS, ArmResult, run_arm, run_reference

__all__ = [
    "ARMS",
    "ArmResult",
    "DigitsClassifier",
    "ReferenceQuantizer",
    "digits_loaders",
    "run_arm",
    "run_reference",
]
