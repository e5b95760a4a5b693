"""Replay: what a policy would have decided on a run that is over.

A replay has no counterfactual. The readings are those that were recorded, whatever the policy asks for: an action is
taken for applied, and what it would have changed cannot be known, except where the recorded run asked for the very
same one at the same step; there its answer, refusals included, is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .absence import Absence, absences_in, idle_rules
from .decisions import Decision, DecisionKind
from .engine import PolicyEngine
from .group import taken_together
from .recording import Recording
from .schema import Policy

__all__ = ["LIMITS", "Replay", "compare", "replay"]

LIMITS = (
    "A replay cannot know what an action would have changed: the recorded readings go on as they were, at the steps at "
    "which they were taken, whatever `sample` says, and an action is taken for applied unless the recorded run refused "
    "the same one at the same step. Causes are known where the recorded run looked for them, and nowhere else."
)
"""What has to be said beside every result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The decisions of one policy on one recording.

    Attributes:
        policy: which decided.
        decisions: all of them, in order.
        readings: how many readings were looked at. codebooks: of which codebooks. stages: of training or of evaluation.
        absences: of each rule that looks at fields which the recording does not have.
    """

    policy: Policy
    decisions: tuple[Decision, ...]
    readings: int
    codebooks: tuple[str, ...]
    stages: frozenset[str]
    absences: tuple[Absence, ...]

    def counts(self) -> dict[str, int]:
        """Count what is told aloud: `alert`, `withdrawn`, each action asked for, and each outcome.

        In a policy that observes, what it would have done is counted as `observed <action>`.
        """
        return dict(Counter(label for decision in self.decisions if (label := _label(decision))))

    def idle(self) -> tuple[str, ...]:
        """Return, in a short sentence each, which rules exist on no codebook of the recording, or see no reading."""
        nowhere = idle_rules(self.policy, self.codebooks)
        told = [
            f"{rule.name} exists on no codebook here: none is called {' or '.join(rule.codebooks)}" for rule in nowhere
        ]
        unseen = [rule for rule in self.policy.rules if rule.stage not in self.stages and rule not in nowhere]
        told += [f"{rule.name} sees nothing here: no reading is of stage {rule.stage}" for rule in unseen]
        return tuple(told)

    def still_open(self) -> int:
        """Return how many interventions were being judged when the recording broke off."""
        kinds = Counter(decision.kind for decision in self.decisions)
        return kinds[DecisionKind.ACT] - kinds[DecisionKind.OUTCOME]


def replay(policy: Policy, recording: Recording) -> Replay:
    """Let a policy decide on a recording, step by step."""
    engine = PolicyEngine(policy)
    decisions: list[Decision] = []
    for readings in taken_together(recording.readings):
        _take(engine, recording, engine.observe_together(readings), decisions)
    if recording.end is not None:
        _take(engine, recording, engine.finish(recording.end), decisions)
    stages = frozenset(reading.stage for reading in recording.readings)
    unseen = {rule.name for rule in policy.rules if rule.stage not in stages}
    return Replay(
        policy=policy,
        decisions=tuple(decisions),
        readings=len(recording.readings),
        codebooks=tuple(dict.fromkeys(reading.codebook for reading in recording.readings)),
        stages=stages,
        absences=tuple(each for each in absences_in(policy, recording.knows) if each.rule not in unseen),
    )


def compare(old: Replay, new: Replay) -> list[tuple[str, int, int]]:
    """Return what two replays of a recording count differently or alike: label, old count, new count."""
    before, after = old.counts(), new.counts()
    return [(label, before.get(label, 0), after.get(label, 0)) for label in dict.fromkeys([*before, *after])]


def _take(engine: PolicyEngine, recording: Recording, made: Iterable[Decision], decisions: list[Decision]) -> None:
    """Keep decisions, and answer each ACT among them as the recorded run did, at once and with what follows."""
    for decision in made:
        decisions.append(decision)
        if decision.kind is DecisionKind.ACT:
            refused, postponed = recording.answers_to(decision)
            follow = engine.report_together(decision, refused=refused, postponed=postponed)
            _take(engine, recording, follow, decisions)


def _label(decision: Decision) -> str:
    """Return under which name a decision is counted; empty where it is not."""
    if decision.kind in (DecisionKind.ALERT, DecisionKind.WITHDRAWN):
        return str(decision.kind.value)
    if decision.kind is DecisionKind.ACT:
        return decision.action or ""
    if decision.kind is DecisionKind.OUTCOME and decision.outcome is not None:
        return f"outcome {decision.outcome.value}"
    if decision.kind is DecisionKind.EXHAUSTED:
        return "exhausted"
    if decision.skip is not None and decision.action is not None:
        return f"{decision.skip.value} {decision.action}"
    return ""
