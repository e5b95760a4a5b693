"""Where each rule stands on a codebook, as far as the events of a log tell, and the thresholds that it looks at.

The log says when a rule begins to count, fires, acts, ends and gives up. What it leaves out, that a rule which counted
has stopped, follows from the next reading where the policy is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from collapse_guard.policies import (
    Phase,
    PolicyError,
    Reading,
    Rule,
    load_policy,
    preset_names,
)

__all__ = ["Bound", "PolicyFacts", "Standing", "facts_of", "number"]

_HELD = re.compile(r": (\d+) of (\d+) readings$")
_STATED = re.compile(r"\bperplexity [\d.e+-]+ < ([\d.]+)")


def number(value: object) -> float | None:
    """Return a finite number as a float, and `None` for anything else that a log may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if result - result == 0 else None


@dataclass(frozen=True, slots=True, order=True)
class Bound:
    """A perplexity below which a rule is concerned.

    Attributes:
        value: of the perplexity. rule: its name. severity: `info`, `warning` or `critical`.
    """

    value: float
    rule: str
    severity: str


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """What a policy says that its run's events do not repeat.

    Attributes:
        rules: by name; empty where the policy as run is not to be had.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)

    def bounds(self, codebook: str) -> list[Bound]:
        """Return the perplexities that rules of this codebook compare with, lowest first."""
        return sorted(
            Bound(each.threshold, rule.name, rule.severity)
            for rule in self.rules.values()
            if rule.applies_to(codebook)
            for each in rule.when.comparisons()
            if each.field == "perplexity" and each.function == "value" and each.sign in ("<", "<=")
        )

    def names(self, codebook: str) -> list[str]:
        """Return the rules that exist on a codebook."""
        return [rule.name for rule in self.rules.values() if rule.applies_to(codebook)]


def facts_of(attached: Mapping[str, Any]) -> PolicyFacts:
    """Return what is known of the policy of a run: written in its log, or read again from where it came from.

    A file that has changed since is not the policy as run, which its fingerprint shows; nothing is taken from it.
    """
    written, source = attached.get("policy_as_run"), attached.get("policy_source")
    is_there = isinstance(source, str) and (source in preset_names() or Path(source).is_file())
    for place in (written if isinstance(written, Mapping) else None, source if is_there else None):
        try:
            policy = load_policy(place) if place is not None else None
        except (PolicyError, OSError, ValueError, LookupError, TypeError):
            continue
        if policy is not None and policy.fingerprint() == attached.get("policy_fingerprint"):
            return PolicyFacts({rule.name: rule for rule in policy.rules})
    return PolicyFacts()


def stated_bound(record: Mapping[str, Any]) -> Bound | None:
    """Return the bound that the reason of a `pending` or `alert` states, for logs whose policy is not to be had."""
    found = _STATED.search(str(record.get("reason")))
    value = number(float(found[1])) if found and found[1].count(".") < 2 and found[1] != "." else None
    return None if value is None else Bound(value, str(record.get("rule")), str(record.get("severity")))


@dataclass(frozen=True, slots=True)
class Standing:
    """One rule on one codebook.

    Attributes:
        phase: where it stands. since: step since when.
        held, hold: PENDING: readings that it has held, of how many; 0 where unknown.
        until: VERIFYING and COOLING: step at which that is over at the latest, if the policy says it in steps.
        what: VERIFYING: action and number of the intervention.
        waits: why it does not go on, as the latest skip says.
        pauses: cooldowns so far.
    """

    phase: Phase
    since: int
    held: int = 0
    hold: int = 0
    until: int | None = None
    what: str = ""
    waits: str = ""
    pauses: int = 0

    def text(self, step: int) -> str:
        """Say it in a few words, at a step."""
        if self.phase is Phase.PENDING:
            return f"pending {self.held}/{self.hold}" if self.hold else "pending"
        if self.phase is Phase.VERIFYING:
            span = f", {max(0, step - self.since)} of {self.until - self.since} steps" if self.until else ""
            return f"verifying {self.what}{span}"
        if self.phase is Phase.COOLING:
            left = f", {max(0, self.until - step)} of {self.until - self.since} steps left" if self.until else ""
            return f"cooling{left}"
        return self.phase.value if self.phase is Phase.ARMED else f"{self.phase.value} since step {self.since}"


def after_event(
    before: Standing | None, record: Mapping[str, Any], member: Mapping[str, Any], step: int, rule: Rule | None
) -> Standing | None:
    """Return where a rule stands after an event that names it; `None` where the event does not move it.

    Args:
        before: where it stood. record: the event. member: what the event says of this codebook.
        rule: as the policy has it, if it is known.
    """
    event, pauses = record.get("event"), before.pauses if before else 0
    if event == "pending":
        found = _HELD.search(str(record.get("reason")))
        held, hold = (int(found[1]), int(found[2])) if found else (0, 0)
        return Standing(Phase.PENDING, step, held, hold, pauses=pauses)
    if event == "alert":
        return Standing(Phase.FIRING, step, pauses=pauses)
    if event == "intervention" and member.get("result", record.get("result")) == "applied":
        what = f"{record.get('action')} #{record.get('attempt')}"
        return Standing(Phase.VERIFYING, step, until=_after(step, _within(rule)), what=what, pauses=pauses)
    if event == "outcome":
        if member.get("outcome", record.get("outcome")) == "failed":
            return Standing(Phase.FIRING, step, pauses=pauses)
        return Standing(Phase.COOLING, step, until=_after(step, _pause(rule, pauses)), pauses=pauses + 1)
    if event == "withdrawn":
        return Standing(Phase.WITHDRAWN, step, pauses=pauses)
    if event == "cleared":
        return Standing(Phase.ARMED, step, pauses=pauses)
    if event == "exhausted":
        return Standing(Phase.EXHAUSTED, step, pauses=pauses)
    if event == "skip":
        there = before or Standing(Phase.ARMED, step)
        reason = str(record.get("reason"))
        return replace(there, waits=reason)
    return None


def after_reading(standing: Standing, record: Mapping[str, Any], step: int, rule: Rule | None) -> Standing:
    """Return where a rule stands after a reading that no event of the rule has followed yet."""
    phase, pauses = standing.phase, standing.pauses
    if phase is Phase.COOLING and standing.until is not None and step >= standing.until:
        return Standing(Phase.ARMED, step, pauses=pauses)
    if phase is Phase.WITHDRAWN and _holds(rule, record) is False:
        return Standing(Phase.ARMED, step, pauses=pauses)
    if phase in (Phase.PENDING, Phase.FIRING) and _is_untroubled(record, rule):
        return Standing(Phase.ARMED, step, pauses=pauses)
    if phase is Phase.PENDING and step > standing.since:
        holds = _holds(rule, record)
        if holds is False:
            return Standing(Phase.ARMED, step, pauses=pauses)
        if holds:
            return replace(standing, held=min(standing.held + 1, standing.hold))
    if phase is Phase.ARMED and standing.waits and _holds(rule, record) is False:
        return Standing(Phase.ARMED, step, pauses=pauses)
    return standing


def _is_untroubled(record: Mapping[str, Any], rule: Rule | None) -> bool:
    """Whether the health at a reading rules out that the rule holds or is at work."""
    health = record.get("health")
    if rule is None or rule.severity == "info":
        return False
    return health == "healthy" or (health == "degraded" and rule.severity == "critical")


def _holds(rule: Rule | None, record: Mapping[str, Any]) -> bool | None:
    if rule is None:
        return None
    try:
        return rule.when.compile()(Reading.from_dict(dict(record)))
    except (TypeError, ValueError, AttributeError):  # an older schema, or a field that is no number
        return None


def _after(step: int, steps: int | None) -> int | None:
    return None if steps is None else step + steps


def _within(rule: Rule | None) -> int | None:
    within = rule.verify.within if rule else None
    return within.count if within is not None and within.unit == "steps" else None


def _pause(rule: Rule | None, pauses: int) -> int | None:
    if rule is None or rule.cooldown.for_.unit != "steps":
        return None
    try:
        return int(rule.cooldown.for_.count * rule.cooldown.growth**pauses)
    except OverflowError:
        return None
