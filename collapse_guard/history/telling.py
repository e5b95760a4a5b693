"""A story in words and tables: five lines, the ledger of interventions, the codebooks. Plain data, no markup."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from collapse_guard.policies import LEADING

from .story import Series, Story, number, visible

__all__ = ["as_data", "compared", "five_lines"]


_MOST_IN_FORCE = 3
"""Interventions still in force that the five lines name."""

_MOST_COMPARED = 16
"""Codebooks of a run whose ends are compared."""


def five_lines(story: Story) -> list[tuple[str, str]]:
    """Return what collapsed, why, what was done, whether it held and what it cost, each with its heading."""
    alerts = story.of("alert")
    first = alerts[0] if alerts else {}
    what = "No alert in this log."
    if alerts:
        others = story.counts["alert"] - 1
        more = f"; {others} more alert{'' if others == 1 else 's'}" if others else ""
        who, when = _get(first, "codebook"), _get(first, "step")
        what = f"{who} at step {when}: {_get(first, 'rule')}, {_get(first, 'reason')}{more}."
    why = _get(first, "why") if first.get("why") else "The log names no cause."
    top = next(iter(_records(first.get("causes"))), {})
    if number(top.get("confidence")) >= LEADING and top.get("advice"):  # never so of NaN
        line = f" ({_get(top, 'line')})" if top.get("line") else ""
        why = f"{why}. {_get(top, 'cause')}: {_get(top, 'advice')}{line}."
    return [
        ("What", what),
        ("Why", why),
        ("Done", _done(story)),
        ("Held", _held(story)),
        ("Cost", _cost(story)),
    ]


def as_data(story: Story) -> dict[str, Any]:
    """Return the whole story as plain data for JSON and for templates; texts have control characters written out."""
    policy = story.attached.get("policy_as_run")
    return {
        "run": story.run,
        "runs_in_log": story.runs,
        "lines_skipped": story.skipped,
        "left_out": story.dropped,
        "events": dict(story.counts),
        "story": {name.lower(): text for name, text in five_lines(story)},
        "codebooks": [_numbers(name, series, story.evaluated.get(name)) for name, series in story.series.items()],
        "adapters": [_adapter(each) for each in _records(story.attached.get("codebooks"))],
        "ledger": _ledger(story),
        "policy": _deep(policy) if isinstance(policy, Mapping) else None,
        "policy_name": _get(story.attached, "policy"),
        "policy_fingerprint": _get(story.attached, "policy_fingerprint"),
        "mode": _get(story.attached, "mode"),
        "environment": _mapping(story.attached.get("environment")),
        "faults": [{name: _get(each, name) for name in ("step", "where", "reason")} for each in story.of("fault")],
    }


def compared(stories: Mapping[str, Story]) -> list[list[str]]:
    """Return rows of what may differ between runs: what it is, then the value of each run, a difference marked.

    The first row names the runs; the last column says `differs` or nothing.
    """
    columns = [_facts(story) for story in stories.values()]
    names = list(dict.fromkeys(name for facts in columns for name in facts))
    rows = [["", *stories, ""]]
    for name in names:
        values = [facts.get(name, "-") for facts in columns]
        rows.append([name, *values, "differs" if len(set(values)) > 1 else ""])
    return rows


def _facts(story: Story) -> dict[str, str]:
    """Return what a comparison looks at, by name; the end of each of the first codebooks, too."""
    data = as_data(story)
    outcomes = [_get(each, "outcome") for each in story.of("outcome")]
    steps = max((series.steps[-1] for series in story.series.values()), default=math.nan)
    share = number(story.summary.get("guard_share"))
    facts = {
        "policy": f"{data['policy_name'] or 'unknown'} ({data['policy_fingerprint'] or 'unknown'})",
        "mode": data["mode"] or "unknown",
        "last step read": _short(steps),
        "alerts": str(story.counts["alert"]),
        "interventions": str(story.counts["intervention"]),
        "recovered, failed": f"{outcomes.count('recovered')}, {outcomes.count('failed')}",
        "faults": str(story.counts["fault"]),
        "share of time": "unknown" if math.isnan(share) else f"{share:.1%}",
    }
    facts |= {str(name): str(version) for name, version in data["environment"].items()}
    for book in data["codebooks"][:_MOST_COMPARED]:
        facts[f"{book['name']}: health"] = book["health"] or "unknown"
        facts[f"{book['name']}: lowest perplexity"] = f"{book['lowest']['perplexity']} (step {book['lowest']['step']})"
        facts[f"{book['name']}: last perplexity"] = book["last"]["perplexity"]
        facts[f"{book['name']}: last usage"] = book["last"]["usage"]
    return facts


def _done(story: Story) -> str:
    acts = _ledger(story)
    if not acts:
        return "Nothing: no intervention in this log."
    shown = [f"{each['action']} at step {each['step']} ({each['outcome']})" for each in acts[:6]]
    count = story.counts["intervention"]
    more = f", and {count - len(shown)} more" if count > len(shown) else ""
    return f"{', '.join(shown)}{more}."


def _held(story: Story) -> str:
    if not story.series:
        return "Unknown: no reading in this log."
    names = sorted(story.series, key=lambda name: story.series[name].health == "healthy")  # those in trouble first
    parts = []
    for name in names[:3]:
        series = story.series[name]
        at = f"perplexity {_short(series.values['perplexity'][-1])}, usage {_short(series.values['usage'][-1])}"
        if name in story.evaluated:
            at += f", perplexity in evaluation {_short(story.evaluated[name].values['perplexity'][-1])}"
        parts.append(f"{name} {series.health or 'of unknown health'} at step {_short(series.steps[-1])} ({at})")
    healthy = sum(each.health == "healthy" for each in story.series.values())
    count = f"; {healthy} of {len(names)} codebooks healthy" if len(names) > 3 else ""
    return f"{'; '.join(parts)}{count}.{_in_force(story)}"


def _in_force(story: Story) -> str:
    """Say what the run needs to stay as it is, as its summary tells: a healthy codebook may be a stand-in."""
    standing = _records(story.summary.get("in_force"))
    parts = []
    for item in standing[:_MOST_IN_FORCE]:
        since = f"since step {_get(item, 'step')}"
        if item.get("meaning"):
            parts.append(f"{_get(item, 'action')} for {_get(item, 'codebook')} {since}: {_get(item, 'meaning')}")
        else:
            parts.append(f"{_get(item, 'codebook')} stands on the codebook of {_get(item, 'action')} {since}")
    more = f"; and {len(standing) - _MOST_IN_FORCE} more" if len(standing) > _MOST_IN_FORCE else ""
    return f" In force: {'; '.join(parts)}{more}." if parts else ""


def _cost(story: Story) -> str:
    share, seconds = number(story.summary.get("guard_share")), number(story.summary.get("guard_seconds"))
    if math.isnan(share):
        return "Unknown: the log has no summary; the run goes on or was cut off."
    faults = story.counts["fault"]
    return f"{share:.1%} of the run's time in the guard ({seconds:.1f} s); {faults} fault{'' if faults == 1 else 's'}."


def _ledger(story: Story) -> list[dict[str, Any]]:
    """Return the interventions with what became of them; a level of a residual is a row of its own."""
    ends = {
        (str(each.get("attempt")), _get(part, "codebook")): part
        for each in story.of("outcome")
        for part in _parts(each)
    }
    rows = []
    for act in story.of("intervention"):
        for part in _parts(act):
            end = ends.get((str(act.get("attempt")), _get(part, "codebook")), {})
            words = {
                name: _get(part, name)
                for name in ("step", "codebook", "rule", "attempt", "action", "summary", "result")
            }
            outcome = _get(end, "outcome") or words["result"] or "unknown"
            undone = ", undone" if end.get("undone") else ""
            facts = {"outcome": f"{outcome}{undone}", "reason": _get(end, "reason")}
            before, after = _mapping(end.get("before")), _mapping(end.get("after"))
            manifest = _records(part.get("manifest"))
            more = {"before": before, "after": after, "manifest": [_deep(each) for each in manifest]}
            sketch = part.get("sketch")
            rows.append(words | facts | more | ({"sketch": sketch} if isinstance(sketch, Mapping) else {}))
    return rows


def _parts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    members = _records(record.get("members"))
    return [{**record, **each} for each in members] or [dict(record)]


def _numbers(name: str, series: Series, evaluated: Series | None) -> dict[str, Any]:
    known = [
        (value, step) for value, step in zip(series.values["perplexity"], series.steps, strict=True) if value == value
    ]
    lowest = min(known, default=(math.nan, math.nan))
    return {
        "name": name,
        "readings": len(series.steps),
        "health": series.health,
        "first": {key: _short(values[0]) for key, values in series.values.items()},
        "lowest": {"perplexity": _short(lowest[0]), "step": _short(lowest[1])},
        "last": {key: _short(values[-1]) for key, values in series.values.items()},
        "evaluation": None
        if evaluated is None
        else {
            "readings": len(evaluated.steps),
            "step": _short(evaluated.steps[-1]),
            "last": {key: _short(values[-1]) for key, values in evaluated.values.items()},
        },
    }


def _adapter(record: Mapping[str, Any]) -> dict[str, Any]:
    words = {name: _get(record, name) for name in ("name", "K", "D", "adapter", "kind", "metric", "confidence")}
    supports = record.get("supports")
    listed = ", ".join(visible(each) for each in supports) if isinstance(supports, list) else ""
    lacks = record.get("lacks")
    missing = (
        "; ".join(f"{visible(key)}: {visible(why)}" for key, why in lacks.items()) if isinstance(lacks, dict) else ""
    )
    return words | {"supports": listed, "lacks": missing}


def _records(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _get(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return visible(json.dumps(value) if isinstance(value, (dict, list)) else value)


def _mapping(value: Any) -> dict[str, Any]:
    return {visible(key): _deep(item) for key, item in value.items()} if isinstance(value, Mapping) else {}


def _deep(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {visible(key): _deep(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_deep(item) for item in value]
    return visible(value) if isinstance(value, str) else value


def _short(value: float) -> str:
    return (
        f"{value:.4g}"
        if math.isfinite(value) and abs(value) < 1e4
        else "no number"
        if math.isnan(value)
        else f"{value:.0f}"
    )
