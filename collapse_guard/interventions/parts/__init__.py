"""Parts: what an intervention may change, one thing each, and how that is saved, described and put back bit-equal.

A part knows where the thing is, never what it should become. A transaction is a list of parts. What a part saves is
plain data and tensors, so that a resumed run can still undo what was done before it.
"""

from __future__ import annotations

from .codebook import CodebookPart, table_moments, tensors_of
from .part import InterventionError, Part
from .settings import HoldPart, KnobPart, LayoutPart, NormalisationPart, ThresholdPart
from .tensors import TensorsPart

__all__ = [
    "CodebookPart",
    "HoldPart",
    "InterventionError",
    "KnobPart",
    "LayoutPart",
    "NormalisationPart",
    "Part",
    "TensorsPart",
    "ThresholdPart",
    "table_moments",
    "tensors_of",
]
