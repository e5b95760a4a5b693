"""Plain records for the start, a resume and the end of a run: what is watched, and what came of it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from collapse_guard.policies import Policy, PolicyEngine, absences_in, idle_rules

from .adapters import CAPABILITIES, CodebookView, Unrecognised
from .interventions import ladders_on
from .ledger import Ledger
from .post import Post
from .watch import Watch

__all__ = [
    "describe_resume",
    "describe_start",
    "describe_unrecognised",
    "describe_views",
    "describe_without_epoch",
    "describe_without_loss",
    "summarise",
]

_OF_THE_LOSS = ("loss", "commitment_share")  # fields that a reading has only where the loop names its loss
_SHOWN = ("step", "perplexity", "ceiling", "usage", "norm_ratio", "relative_error")


def describe_start(policy: Policy, post: Post, log: Path | None) -> dict[str, Any]:
    """Return the begin of the story: what decides, what is watched, and what the policy can not do on it.

    Args:
        policy: as it runs. post: that the guard has taken. log: the file that is written, if any is.
    """
    views = post.views
    return {
        "policy": policy.name,
        "policy_source": policy.source,
        "mode": policy.mode,
        "policy_fingerprint": policy.fingerprint(),
        "policy_as_run": policy.model_dump(mode="json", by_alias=True),
        "environment": _environment(),
        "ranks": post.ranks.size,
        "log": str(log) if log is not None else None,
        "codebooks": describe_views(views),
        "unrecognised": describe_unrecognised(post.unrecognised),
        "idle_rules": _idle_rules(policy, views),
        "powerless": {each.rule: list(books) for each in ladders_on(policy, views) if (books := each.powerless_on)},
    }


def describe_resume(policy: Policy, state: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    """Return how the story goes on: from which run, under which policy, and what is in force.

    Args:
        policy: as it runs. state: that was loaded. ledger: as it was restored.
    """
    return {
        "policy": policy.name,
        "policy_changed": state["policy"]["fingerprint"] != policy.fingerprint(),
        "policy_before": state["policy"],
        "in_force": ledger.in_force(),
        "continues": state.get("run"),
    }


def describe_views(views: Sequence[CodebookView]) -> list[dict[str, Any]]:
    """Return one record per codebook: what it is, how that is known, what it supports or not, and its level."""
    return [
        {
            "name": view.name,
            "K": view.K,
            "D": view.D,
            "adapter": view.adapter,
            "confidence": view.confidence.value,
            "kind": view.kind,
            "metric": view.metric,
            "supports": [capability for capability in CAPABILITIES if view.why_not(capability) is None],
            "lacks": dict(view.lacks),
            "group": view.group,
            "level": view.level,
        }
        for view in views
    ]


def describe_unrecognised(items: Sequence[Unrecognised]) -> list[dict[str, str]]:
    """Return one record per candidate that is not watched: name, confidence, reason, its table, and what to write."""
    return [
        {
            "name": item.name,
            "confidence": item.confidence.value,
            "reason": item.reason,
            "table": item.table,
            "advice": item.advice,
        }
        for item in items
    ]


def summarise(ledger: Ledger, watch: Watch, engine: PolicyEngine) -> dict[str, Any]:
    """Return the end of the story: per codebook first and last numbers and health, and every intervention."""
    codebooks = [
        {
            "name": name,
            "K": probe.view.K,
            "health": engine.health(name).value,
            "is_watched": probe.is_recording,
            "first": first and first.excerpt(*_SHOWN),
            "last": last and last.excerpt(*_SHOWN),
            "evaluated": shown and shown.excerpt(*_SHOWN, "eval_to_train"),
        }
        for name, probe in watch.probes.items()
        for first, last, shown in [(watch.first.get(name), watch.readings.get(name), watch.evaluated.get(name))]
    ]
    interventions = [entry.as_dict() for entry in ledger.entries]
    told = {"interventions": interventions, "in_force": ledger.in_force(), "withdrawn": dict(ledger.withdrawn)}
    return {"codebooks": codebooks, **told}


def describe_without_epoch(policy: Policy) -> str:
    """Say what becomes of the rules in a loop that does not say its epoch; empty where none counts epochs."""
    lacks = absences_in(policy, lambda name: name != "epoch")
    what = "; ".join(map(str, lacks))
    return f"{what}. Say it: guard.step(epoch=...), or count in steps" if lacks else ""


def describe_without_loss(policy: Policy) -> str:
    """Say what becomes of the rules in a loop that does not name its loss; empty where none can do less without."""
    told: dict[str, list[str]] = {}
    for each in absences_in(policy, lambda name: name not in _OF_THE_LOSS):
        for consequence in each.consequences:
            told.setdefault(consequence, []).append(each.rule)
    what = "; ".join(f"{', '.join(rules)}: {consequence}" for consequence, rules in told.items())
    where = "guard.step(loss=loss), or CollapseGuard(loss=...) with the name of a metric that training_step logs"
    return f"readings have no loss to show. Without it, {what}. Name it: {where}" if told else ""


def _environment() -> dict[str, str]:
    """Return the versions that a run depends on and the kind of platform; no path and no host name."""
    import collapse_guard

    versions = {"collapse_guard": collapse_guard.__version__, "torch": str(torch.__version__)}
    return versions | {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}


def _idle_rules(policy: Policy, views: Sequence[CodebookView]) -> list[dict[str, Any]]:
    """Return the rules that exist on none of the codebooks, as plain data."""
    idle = idle_rules(policy, (view.name for view in views))
    return [{"rule": rule.name, "codebooks": list(rule.codebooks)} for rule in idle]
