"""Plain records for the start and the end of a run: what is watched, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collapse_guard.policies import Health, Reading

from .adapters import CAPABILITIES, CodebookView
from .ledger import Ledger

__all__ = ["describe_views", "summarise"]


def describe_views(views: Sequence[CodebookView]) -> list[dict[str, Any]]:
    """Return one record per codebook: name, K, D, adapter, kind, metric, what it supports and why not the rest."""
    return [
        {
            "name": view.name,
            "K": view.K,
            "D": view.D,
            "adapter": view.adapter,
            "kind": view.kind,
            "metric": view.metric,
            "supports": [capability for capability in CAPABILITIES if view.why_not(capability) is None],
            "lacks": dict(view.lacks),
        }
        for view in views
    ]


def summarise(
    ledger: Ledger, first: Mapping[str, Reading], last: Mapping[str, Reading], health: Mapping[str, Health]
) -> dict[str, Any]:
    """Return the end of the story: per codebook first and last numbers and health, and every intervention."""
    codebooks = [
        {
            "name": name,
            "K": reading.K,
            "health": health[name].value if name in health else "unknown",
            "first": _numbers(first.get(name)),
            "last": _numbers(reading),
        }
        for name, reading in last.items()
    ]
    return {"codebooks": codebooks, "interventions": [entry.as_dict() for entry in ledger.entries]}


def _numbers(reading: Reading | None) -> dict[str, Any] | None:
    if reading is None:
        return None
    names = ("step", "perplexity", "ceiling", "usage", "norm_ratio", "relative_error")
    return {name: getattr(reading, name) for name in names}
