"""Diagnosis: why a codebook is in trouble, with evidence in numbers, how sure that is, and what to do.

`memory` keeps a few marks of each codebook, `facts` gathers what is known at one reading, `examiners` holds who looks
at it for what, and `clinic` brings them together for a guard. Everything here reads; nothing writes to the model and
nothing decides.
"""

from __future__ import annotations

from .clinic import Clinic
from .examiners import EXAMINERS, Examiner, diagnose
from .facts import Facts
from .memory import Mark, Memory
from .pulse import Beat, Pulse

__all__ = ["EXAMINERS", "Beat", "Clinic", "Examiner", "Facts", "Mark", "Memory", "Pulse", "diagnose"]
