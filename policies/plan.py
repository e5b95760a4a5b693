"""The plan: a policy made ready to decide quickly.

Conditions become plain functions, durations plain numbers, ladders tuples. It is built once per engine, so that
nothing is parsed, validated or described while readings come in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import get_args

from .actions import Action
from .causes import Diagnosis
from .condition import Comparison, Condition, Explainer, Test
from .duration import Duration
from .parts import OfCause
from .past import NOTHING, Derived, Wanted
from .reading import MAY_BE_MISSING, Reading
from .references import inhibitors_first
from .schema import Policy, Rule, Severity
from .states import RuleState

__all__ = ["Plan", "RulePlan", "RungPlan", "unknown_answers"]

_SEVERITIES = get_args(Severity)  # from mild to grave


@dataclass(frozen=True, slots=True)
class RungPlan:
    """One rung.

    Attributes:
        index: place in the ladder, from 0. action: name of the action. params: its parameters.
        description: the action written as a call, by which a failed rung is remembered.
        repeat: tries in a row. within: how long each may take. budget: tries on one codebook, or `None` for no bound.
        on: the causes for which it is meant; `None`: any.
    """

    index: int
    action: str
    params: Action
    description: str
    repeat: int
    within: Duration
    budget: int | None
    on: OfCause | None = None

    def is_spent(self, state: RuleState) -> bool:
        """Whether the rung has had all its tries on a codebook."""
        return self.budget is not None and state.spent.get(self.description, 0) >= self.budget

    def fits(self, state: RuleState, causes: Sequence[Diagnosis]) -> bool:
        """Whether it is meant for what was found; a rung that is being repeated is, whatever shows meanwhile."""
        is_begun = state.tries > 0 and state.tried == self.description
        return self.on is None or is_begun or self.on.among(causes) is not None


@dataclass(frozen=True, slots=True)
class RulePlan:
    """One rule.

    Attributes:
        stage: whose readings it looks at.
        when, success: the conditions, for messages. holds, clears, succeeds: the conditions, compiled.
        why_holds, why_clears, why_succeeds: what of each of them is true, in words.
        hold: readings that `when` must hold. clear_hold: readings that `clear` and `success` must hold.
        cooldown, growth, silence_until, budget, on_exhausted, within: as in the policy.
        loss_increase: bound of the guard, if there is one. undo: what becomes of an intervention that failed.
        rungs: the ladder.
        unless: the causes for which it does not fire, if any. only: the causes for which alone it does, if any.
        inhibits: names of the rules that this one silences. inhibited_by: names of those that silence it.
        applies_to: whether the rule exists on a codebook of a given name.
        lead: reads a field without which the condition cannot hold; `None` where no single one decides.
    """

    name: str
    severity: str
    stage: str
    when: Condition
    success: Condition
    holds: Test
    clears: Test
    succeeds: Test
    why_holds: Explainer
    why_clears: Explainer
    why_succeeds: Explainer
    hold: int
    clear_hold: int
    cooldown: Duration
    growth: float
    silence_until: int
    budget: int | None
    on_exhausted: str
    within: Duration
    loss_increase: float | None
    undo: str
    rungs: tuple[RungPlan, ...]
    unless: OfCause | None
    only: OfCause | None
    inhibits: frozenset[str]
    inhibited_by: tuple[str, ...]
    applies_to: Callable[[str], bool]
    lead: Callable[[Reading], float | None] | None

    def next_rung(self, state: RuleState, causes: Sequence[Diagnosis]) -> RungPlan | None:
        """Return the first rung for these causes that has neither failed nor spent its budget, or `None`."""
        return next((rung for rung in self.rungs_left(state) if rung.fits(state, causes)), None)

    def rungs_left(self, state: RuleState) -> Iterator[RungPlan]:
        """Yield the rungs that have neither failed nor spent their budget, whatever causes they are for."""
        for rung in self.rungs:
            if rung.description not in state.failed and (rung.budget is None or not rung.is_spent(state)):
                yield rung

    def is_spent(self, state: RuleState) -> bool:
        """Whether the rule has had all its interventions on a codebook."""
        return self.budget is not None and sum(state.spent.values()) >= self.budget

    def pause(self, state: RuleState) -> Duration:
        """Return how long the present cooldown is."""
        if self.growth == 1 or state.pauses <= 1:
            return self.cooldown
        count = min(self.cooldown.count * self.growth ** min(state.pauses - 1, 64 / math.log2(self.growth)), 1e18)
        return replace(self.cooldown, count=round(count))

    def open_rung(self, state: RuleState) -> RungPlan | None:
        """Return the rung whose intervention is open, or `None` if a changed policy no longer has it."""
        those = [rung for rung in self.rungs if rung.description == state.tried]
        return next((rung for rung in those if rung.index == state.rung), those[0] if those else None)

    def is_graver_than(self, other: RulePlan) -> bool:
        """Whether it is of a higher severity."""
        return _SEVERITIES.index(self.severity) > _SEVERITIES.index(other.severity)

    def is_gradual(self, state: RuleState) -> bool:
        """Whether the open intervention changes little at a time."""
        rung = self.open_rung(state)
        return rung is not None and rung.params.is_gradual


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole policy.

    Attributes:
        rules: in the order in which they are judged, inhibitors first. observes: whether the mode is `observe`.
        warmup: first step that counts. min_tokens, settle: as in `Sample`.
        everywhere: whether each rule applies to all codebooks.
        stages: that some rule looks at; readings of any other are passed over. of_eval: names of rules on evaluation.
        bests: fields whose best is remembered. spans: how many values of a field are. derived: what asks for them, by
            its text.
        chosen: the rules of each codebook seen so far.
        interventions: the budget. refill_after: healthy steps after which it is whole again, or `None` for never.
    """

    rules: tuple[RulePlan, ...]
    observes: bool
    warmup: int
    min_tokens: int
    settle: int
    interventions: int
    refill_after: int | None
    everywhere: bool
    stages: frozenset[str]
    of_eval: frozenset[str]
    bests: tuple[str, ...]
    spans: Mapping[str, int]
    derived: Mapping[str, Wanted]
    chosen: dict[str, tuple[RulePlan, ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, policy: Policy) -> Plan:
        """Compile a policy."""
        by_name = {rule.name: rule for rule in policy.rules}
        order = inhibitors_first({rule.name: rule.inhibits for rule in policy.rules})
        refill = policy.budget.refill_after
        derived = _derived(policy)
        spans: dict[str, int] = {}
        for each in derived.values():
            if each.over:
                spans[each.field] = max(each.over, spans.get(each.field, 0))
        return cls(
            rules=tuple(_rule_plan(by_name[name], policy) for name in order),
            observes=policy.mode == "observe",
            warmup=policy.warmup_steps,
            min_tokens=policy.sample.min_tokens,
            settle=policy.sample.settle,
            interventions=policy.budget.interventions,
            refill_after=refill.count if refill else None,
            everywhere=all(rule.codebooks == ("*",) for rule in policy.rules),
            stages=frozenset({"train", *(rule.stage for rule in policy.rules)}),
            of_eval=frozenset(rule.name for rule in policy.rules if rule.stage == "eval"),
            bests=tuple(dict.fromkeys(each.field for each in derived.values() if not each.over)),
            spans=spans,
            derived=derived,
        )

    def rules_on(self, codebook: str) -> tuple[RulePlan, ...]:
        """Return the rules that apply to a codebook, in the order in which they are judged."""
        if self.everywhere:
            return self.rules
        if codebook not in self.chosen:
            self.chosen[codebook] = tuple(rule for rule in self.rules if rule.applies_to(codebook))
        return self.chosen[codebook]

    def rule(self, name: str) -> RulePlan:
        """Return the rule of that name.

        Raises:
            LookupError: if the policy has none; the message lists those it has.
        """
        for rule in self.rules:
            if rule.name == name:
                return rule
        known = ", ".join(rule.name for rule in self.rules)
        raise LookupError(f"expected a rule of this policy ({known}), got {name!r}.")


def _rule_plan(rule: Rule, policy: Policy) -> RulePlan:
    """Compile one rule of a policy."""
    success = rule.verify.success
    when_unknown, clear_unknown = unknown_answers(rule)
    clears = _clears(rule)
    return RulePlan(
        name=rule.name,
        severity=rule.severity,
        stage=rule.stage,
        when=rule.when,
        success=success or rule.clear_when,
        holds=rule.when.compile(*when_unknown),
        clears=clears,
        succeeds=success.compile(*clear_unknown) if success else clears,
        why_holds=rule.when.explainer(*when_unknown),
        why_clears=rule.clear_when.explainer(*clear_unknown),
        why_succeeds=(success or rule.clear_when).explainer(*clear_unknown),
        hold=rule.for_,
        clear_hold=rule.clear_for,
        cooldown=rule.cooldown.for_,
        growth=rule.cooldown.growth,
        silence_until=rule.silence_until.count,
        budget=rule.budget,
        on_exhausted=rule.on_exhausted,
        within=rule.verify.within,
        loss_increase=rule.verify.guard.loss_increase if rule.verify.guard else None,
        undo=rule.verify.undo,
        rungs=tuple(
            RungPlan(
                index=index,
                action=rung.action,
                params=rung.params,
                description=rung.params.describe(),
                repeat=rung.repeat,
                within=rung.within or rule.verify.within,
                budget=rung.budget,
                on=rung.on,
            )
            for index, rung in enumerate(rule.ladder)
        ),
        unless=rule.unless,
        only=rule.only,
        inhibits=frozenset(rule.inhibits),
        inhibited_by=tuple(other.name for other in policy.rules if rule.name in other.inhibits),
        applies_to=rule.applies_to,
        lead=_lead(rule.when) if when_unknown[0] is not True else None,
    )


def _lead(when: Condition) -> Callable[[Reading], float | None] | None:
    """Return what reads a field that may be missing and that all of a condition hangs on, if there is one."""
    parts = () if when.any and len(when.parts) > 1 else when.parts
    named = (part.field for part in parts if isinstance(part, Comparison))
    return next((attrgetter(field) for field in named if field in MAY_BE_MISSING), None)


def _derived(policy: Policy) -> dict[str, Wanted]:
    """Return what the comparisons of a policy ask of the past, by the text of their left sides."""
    conditions = [each for rule in policy.rules for each in (rule.when, rule.clear_when, rule.verify.success) if each]
    comparisons = (part for condition in conditions for part in condition.comparisons())
    return {
        part.subject: Wanted(part.field, part.over if part.function == "trend" else 0)
        for part in comparisons
        if part.function != "value"
    }


def unknown_answers(rule: Rule) -> tuple[tuple[bool | None, bool | None], tuple[bool | None, bool | None]]:
    """Return what `when` says of a missing field and of NaN, and what `clear` says of them: the opposite."""
    says = {"keep": None, "fire": True, "clear": False}
    opposite = {"keep": None, "fire": False, "clear": True}
    return (says[rule.missing], says[rule.nan]), (opposite[rule.missing], opposite[rule.nan])


def _clears(rule: Rule) -> Test:
    """Return the test of a rule being over: its `clear` holds, and its `when` does not."""
    when_unknown, clear_unknown = unknown_answers(rule)
    holds, clears = rule.when.compile(*when_unknown), rule.clear_when.compile(*clear_unknown)

    def test(reading: Reading, derived: Derived = NOTHING, /) -> bool | None:
        return False if holds(reading, derived) else clears(reading, derived)

    return test
