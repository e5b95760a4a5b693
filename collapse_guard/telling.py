"""What the ledger tells: the fields of its events, for one codebook or for several levels of a residual at once.

An event about several levels names the coarsest as its `codebook`, all of them in `codebooks` and `levels`, and holds
what differs between them in `members`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collapse_guard.policies import LEADING, Decision, DecisionKind, Reading, levels_text

from .acting import Deed
from .probe import Probe
from .reasons import explain
from .requests import REQUESTABLE

__all__ = ["TOLD_AS", "fields_of_act", "fields_of_outcome", "fields_of_word"]

TOLD_AS = {
    DecisionKind.PENDING: "pending",
    DecisionKind.ALERT: "alert",
    DecisionKind.SKIP: "skip",
    DecisionKind.CLEARED: "cleared",
    DecisionKind.EXHAUSTED: "exhausted",
    DecisionKind.WITHDRAWN: "withdrawn",
}
"""Events of decisions that ask for nothing."""

_OF_CODES = ("perplexity", "perplexity_ratio", "usage", "norm_ratio", "relative_error")
_OF_THE_QUANTIZER = ("commitment_weight", "decay", "reshaped", "replacement_share", "sampling_ratio", "task_gradient")
_JUDGED_BY = ("step", *_OF_CODES, "loss", *_OF_THE_QUANTIZER, "moment_ratio")


def fields_of_word(decision: Decision, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """Return what a decision that asks for nothing says."""
    fields: dict[str, Any] = _who(decision, probes) | {"rule": decision.rule, "severity": decision.severity}
    if decision.action is not None:
        fields["action"] = decision.action
    fields["reason"] = decision.reason
    if decision.then is not None:
        fields["then"] = decision.then
        if decision.then in REQUESTABLE:
            fields["reason"] += f"; the policy asks for {decision.then} now"
    tells_why = decision.kind in (DecisionKind.ALERT, DecisionKind.WITHDRAWN)
    is_alert = tells_why and decision.before is not None
    if is_alert and decision.before is not None:
        fields |= {"why": _why(decision.before), "reading": decision.before.as_dict()}
        fields |= {"causes": [each.as_dict() for each in decision.before.causes]}
    if decision.members:
        fields["members"] = [
            _place(part) | {"reason": part.reason} | (_seen(part) if is_alert else {}) for part in decision.members
        ]
    return fields


def fields_of_act(
    decision: Decision, deeds: Sequence[Deed], versions: Mapping[str, int], probes: Mapping[str, Probe]
) -> dict[str, Any]:
    """Return what became of an ACT decision."""
    entry = deeds[0].entry
    results = {deed.entry.result for deed in deeds}
    fields = _who(decision, probes) | {
        "rule": decision.rule,
        "attempt": entry.attempt,
        "rung": entry.rung,
        "action": entry.action,
        "params": entry.params,
        "result": next(result for result in ("applied", "postponed", "refused") if result in results),
        "summary": _summary(deeds),
    }
    done = [
        {
            "result": deed.entry.result,
            "summary": deed.summary,
            "codebook_version": versions.get(deed.entry.codebook, 0),
            "manifest": deed.manifest,
        }
        | ({"sketch": deed.sketch} if deed.sketch is not None else {})
        | (deed.entry.intervention.facts if deed.entry.intervention is not None else {})
        for deed in deeds
    ]
    if not decision.members:
        return fields | done[0]
    return fields | {"members": [_place(deed.decision) | each for deed, each in zip(deeds, done, strict=True)]}


def fields_of_outcome(
    decision: Decision, undone: Mapping[str, Sequence[int]], probes: Mapping[str, Probe]
) -> dict[str, Any]:
    """Return how an intervention ended.

    Args:
        undone: numbers of the interventions that were rolled back, by codebook.
    """
    assert decision.outcome is not None
    fields = _who(decision, probes) | {
        "rule": decision.rule,
        "attempt": decision.attempt,
        "rung": decision.rung,
        "action": decision.action,
        "outcome": decision.outcome.value,
        "reason": decision.reason,
        "undone": sorted({number for numbers in undone.values() for number in numbers}, reverse=True),
        "kept": decision.kept,
    }
    if not decision.members:
        return fields | _before_and_after(decision)
    members = [
        _place(part)
        | {"outcome": part.outcome.value if part.outcome else None, "reason": part.reason}
        | {"undone": list(undone.get(part.codebook, ())), "kept": part.kept}
        | _before_and_after(part)
        for part in decision.members
    ]
    return fields | {"members": members}


def _who(decision: Decision, probes: Mapping[str, Probe]) -> dict[str, Any]:
    if not decision.members:
        return {"codebook": decision.codebook}
    size = len({probe.view.level for probe in probes.values() if probe.view.group == decision.group})
    levels = [part.level for part in decision.members]
    return {
        "codebook": decision.codebook,
        "group": decision.group,
        "codebooks": list(decision.codebooks),
        "levels": levels,
        "levels_watched": size,
    }


def _why(reading: Reading) -> str:
    """Say the likeliest cause, if one was found; else what the reading's numbers alone show."""
    top = reading.causes[0] if reading.causes else None
    return top.says if top is not None and top.confidence >= LEADING else explain(reading)


def _place(decision: Decision) -> dict[str, Any]:
    return {"codebook": decision.codebook, "level": decision.level}


def _seen(decision: Decision) -> dict[str, Any]:
    return {"reading": decision.before.as_dict() if decision.before is not None else None}


def _before_and_after(decision: Decision) -> dict[str, Any]:
    return {
        "before": decision.before and decision.before.excerpt(*_JUDGED_BY),
        "after": decision.after and decision.after.excerpt(*_JUDGED_BY),
    }


def _summary(deeds: Sequence[Deed]) -> str:
    """Say what was done where, each thing once, with the numbers of the coarsest level that it was done to."""
    if len(deeds) == 1:
        return deeds[0].summary
    clauses = []
    for result in ("applied", "postponed", "refused"):
        those = [deed for deed in deeds if deed.entry.result == result]
        if those:
            levels = levels_text(deed.decision.level or 0 for deed in those)
            differ = len({deed.summary for deed in those}) > 1
            alike = f" (so {levels_text([those[0].decision.level or 0])}; the others alike)" if differ else ""
            clauses.append(f"{levels} {result}: {those[0].summary}{alike}")
    return "; ".join(clauses) if len(clauses) > 1 else clauses[0].partition(": ")[2]
