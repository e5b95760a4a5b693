"""Programs that show collapse_guard on real data."""

from __future__ import annotations

from .bench_engine import DERIVED_POLICY, engine_readings
from .digits import DigitsClassifier, digits_loaders
from .quantizer import ReferenceQuantizer
from .reference import ARMS, ArmResult, run_arm, run_reference

__all__ = [
    "ARMS",
    "DERIVED_POLICY",
    "ArmResult",
    "DigitsClassifier",
    "ReferenceQuantizer",
    "digits_loaders",
    "engine_readings",
    "run_arm",
    "run_reference",
]
