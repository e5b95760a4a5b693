"""What you add to a Trainer. Each file translates one trainer's hooks into calls of a `Guard` and does no more."""

from __future__ import annotations

from .lightning import CollapseGuard

__all__ = ["CollapseGuard"]
