"""Recognising quantizers that nobody announced: by trials on copies. It says what a module is, and makes no views.

`structure` finds tables, `twins` copies the module and runs the copies, `trace` sees inside one run, `explain` reads
it, `permutation` and `commitment` are experiments on further copies. The module itself is never run and never written.
"""

from __future__ import annotations

from .commitment import find_commitment
from .explain import Doubt, Explanation, Findings, Layout, explain_trials, find_codes, nearest, read_codes
from .structure import Structure, Table, entries_of, look_at
from .twins import Bench, CannotTryError, Trial

__all__ = [
    "Bench",
    "CannotTryError",
    "Doubt",
    "Explanation",
    "Findings",
    "Layout",
    "Structure",
    "Table",
    "Trial",
    "entries_of",
    "explain_trials",
    "find_codes",
    "find_commitment",
    "look_at",
    "nearest",
    "read_codes",
]
