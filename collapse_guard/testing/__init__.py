"""Collapses on demand: to rehearse a policy before a real one comes, and to test what a program does when one does.

    from collapse_guard.testing import Injection, inject

    with inject(model, Injection("scale", at=30)):
        train(model)

Nothing of this is loaded by a guarded run.
"""

from __future__ import annotations

from .injection import KINDS, Fired, Injection, Injector, inject
from .recorder import Recorder
from .rehearsal import Rehearsal, rehearse

__all__ = ["KINDS", "Fired", "Injection", "Injector", "Recorder", "Rehearsal", "inject", "rehearse"]
