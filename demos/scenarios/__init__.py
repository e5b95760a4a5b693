"""Small trainings in which one thing goes wrong, or nothing: what the guard is measured on.

A scenario is declared, not programmed: a name, what goes wrong, data, a quantizer and at most one tampering. Each runs
in a second or two on one core. `faults` lists those that go wrong, `sound` those that do not; `course` trains one.
"""

from __future__ import annotations

from .course import Course, Scenario
from .faults import FAULTS
from .sound import SOUND

__all__ = ["FAULTS", "SOUND", "Course", "Scenario"]
