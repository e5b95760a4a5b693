"""Records of event logs as the guard writes them, for tests that need a log and no run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from collapse_guard.policies import load_policy

__all__ = ["act", "alert", "attached", "lines", "outcome", "pending", "reading", "write"]

Record = dict[str, Any]


def _record(event: str, step: int, run: str, **fields: Any) -> Record:
    return {"schema": 1, "time": "2026-01-01T00:00:00.000+00:00", "step": step, "event": event, **fields, "run": run}


def attached(*names: str, run: str = "a", K: int = 256) -> Record:
    policy = load_policy("default")
    books = [{"name": name, "K": K, "D": 64, "adapter": "home-made", "kind": "ema", "metric": "l2"} for name in names]
    facts = {"policy_source": "elsewhere.yaml", "policy_fingerprint": policy.fingerprint()}
    written = policy.model_dump(mode="json", by_alias=True)
    return _record("attached", 0, run, policy="default", mode="act", codebooks=books, policy_as_run=written, **facts)


def reading(step: int, perplexity: float | None, codebook: str = "vq", run: str = "a", **fields: Any) -> Record:
    numbers = {"K": 256, "D": 64, "tokens": 640, "perplexity": perplexity, "ceiling": 205.0, "usage": 0.5}
    more = {"perplexity_ratio": (perplexity or 0) / 205, "dead_fraction": 0.5, "top_share": 0.2, "norm_ratio": 1.0}
    odd = {"relative_error": 0.5, "finite_fraction": 1.0, "health": "healthy", "codebook": codebook}
    return _record("reading", step, run, **{**numbers, **more, **odd, **fields})


def pending(step: int, held: str = "1 of 3", rule: str = "collapsing", run: str = "a") -> Record:
    reason = f"perplexity 3.00 < 5: {held} readings"
    return _record("pending", step, run, codebook="vq", rule=rule, severity="warning", reason=reason)


def alert(step: int, codebook: str = "vq", rule: str = "collapsed", run: str = "a") -> Record:
    reason = "perplexity 1.00 < 1.5 for 2 readings"
    return _record("alert", step, run, codebook=codebook, rule=rule, severity="critical", reason=reason)


def act(step: int, codebook: str = "vq", run: str = "a", **fields: Any) -> Record:
    what = {"rule": "collapsed", "attempt": 1, "action": "reset_codes", "result": "applied", "summary": "all placed"}
    return _record("intervention", step, run, **{"codebook": codebook, **what, **fields})


def outcome(step: int, how: str, codebook: str = "vq", run: str = "a", **fields: Any) -> Record:
    what = {"rule": "collapsed", "attempt": 1, "action": "reset_codes", "outcome": how, "reason": "so it was"}
    return _record("outcome", step, run, **{"codebook": codebook, **what, **fields})


def lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write(folder: Path, records: Iterable[Record]) -> Path:
    """Write a log where a run keeps it, and return its path."""
    path = folder / "collapse_guard" / "events.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(records), encoding="utf-8")
    return path
