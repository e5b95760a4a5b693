"""What holds for every policy and every series: nothing here knows a scenario."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import (
    Budget,
    Decision,
    DecisionKind,
    Health,
    Outcome,
    Phase,
    Policy,
    PolicyEngine,
    Reading,
    Skip,
)
from tests.policies.series import Run, policy, reading, rule

ACTIONS = ("reset_codes", "decay_commitment", "fallback_tokenizer", "alert")
CODEBOOKS = ("a", "b", "c")

levels = st.sampled_from((1.0, 1.0, 100.0, 3.0, 1.0, 100.0, 7.0, 100.0, float("nan")))
spans = st.one_of(
    st.integers(1, 8).map(lambda count: f"{10 * count} steps"),
    st.integers(1, 5).map(lambda count: f"{count} readings"),
    st.just("1 epoch"),
)
unknowns = st.sampled_from(("keep", "keep", "fire", "clear"))
rung_budgets: st.SearchStrategy[dict[str, int]] = st.sampled_from(({}, {}, {"budget": 1}))


class Line(NamedTuple):
    """One reading to come: of which codebook, with what in it."""

    codebook: str
    perplexity: float
    loss: float | None
    tokens: int


_line = st.builds(
    Line,
    st.sampled_from(("a", "a", "a", "b", "c")),
    levels,
    st.sampled_from((9.0, 0.5, 9.0, 0.5, None)),
    st.sampled_from((2048, 2048, 2048, 2048, 2048, 2048, 2048, 10)),
)
# Blocks of equal readings: a codebook that changes at every reading never fires, let alone recovers.
_blocks = st.lists(st.tuples(_line, st.integers(1, 6)), min_size=12, max_size=24)
lines = _blocks.map(lambda blocks: [line for line, count in blocks for _ in range(count)])


@st.composite
def rungs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Up to four rungs with different actions."""
    names = draw(st.permutations(ACTIONS))[: draw(st.sampled_from((2, 1, 3, 4, 0)))]
    return [
        {name: {}, "repeat": draw(st.integers(1, 2)), "within": draw(spans), **draw(rung_budgets)} for name in names
    ]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Up to three rules, of which one may inhibit those that come later in a shuffled order."""
    names = draw(st.permutations(("r0", "r1", "r2")))[: draw(st.integers(1, 3))]
    ranks = {name: draw(st.integers(0, 9)) for name in names}
    rules = [
        rule(
            name,
            draw(st.sampled_from(("perplexity < 5", "perplexity < 1.5", "loss > 5", ["perplexity < 5", "loss > 5"]))),
            hold=draw(st.integers(1, 2)),
            clear={"for": draw(st.integers(1, 2))},
            severity=draw(st.sampled_from(("info", "warning", "critical"))),
            cooldown={"for": draw(spans), "growth": draw(st.sampled_from((1, 1, 2)))},
            missing=draw(unknowns),
            nan=draw(unknowns),
            silence_until=draw(st.sampled_from(("0 steps", "0 steps", "40 steps"))),
            budget=draw(st.sampled_from((None, None, 2))),
            on_exhausted=draw(st.sampled_from(("alert", "stop_training", "observe"))),
            inhibits=[other for other in names if ranks[name] > ranks[other] and draw(st.booleans())],
            verify={"success": "perplexity >= 10"} if draw(st.booleans()) else {},
            ladder=draw(rungs()),
        )
        for name in names
    ]
    return policy(
        *rules,
        mode=draw(st.sampled_from(("act", "act", "act", "act", "act", "observe"))),
        warmup=draw(st.sampled_from(("0 steps", "0 steps", "0 steps", "30 steps"))),
        sample={"settle": draw(st.integers(0, 2))},
        budget={"interventions": draw(st.integers(2, 9)), "refill_after": draw(st.sampled_from((None, "30 steps")))},
    )


def readings_of(script: Iterable[Line]) -> list[Reading]:
    """One reading every 10 steps, 6 readings to an epoch."""
    return [
        reading(10 + 10 * i, line.perplexity, line.codebook, loss=line.loss, tokens=line.tokens, epoch=i // 6)
        for i, line in enumerate(script)
    ]


def refuses_some(decision: Decision) -> bool:
    """A guard that refuses one action in three, and the same ones whatever else happens in the run."""
    return hash((decision.step, decision.rung)) % 3 > 0


def of_kind(decisions: Sequence[Decision], *kinds: DecisionKind) -> list[Decision]:
    return [decision for decision in decisions if decision.kind in kinds]


@given(policies(), lines)
def test_every_intervention_has_one_number_and_one_outcome(policy: Policy, script: list[Line]) -> None:
    decisions = Run(policy, refuses_some).feed(readings_of(script)).finish(999).decisions
    acts, outcomes = of_kind(decisions, DecisionKind.ACT), of_kind(decisions, DecisionKind.OUTCOME)
    assert [act.attempt for act in acts] == list(range(1, len(acts) + 1))
    assert Counter(each.attempt for each in outcomes) == Counter(act.attempt for act in acts)
    asked = {act.attempt: act for act in acts}
    for each in outcomes:
        act = asked[each.attempt]
        assert (each.codebook, each.rule, each.action, each.params, each.rung, each.before) == (
            act.codebook,
            act.rule,
            act.action,
            act.params,
            act.rung,
            act.before,
        )


@given(policies(), lines)
def test_at_most_one_intervention_is_open_on_a_codebook(policy: Policy, script: list[Line]) -> None:
    still_open: set[str] = set()
    for decision in Run(policy, refuses_some).feed(readings_of(script)).decisions:
        if decision.kind is DecisionKind.ACT:
            assert decision.codebook not in still_open
            still_open.add(decision.codebook)
        elif decision.kind is DecisionKind.OUTCOME:
            still_open.remove(decision.codebook)


@given(policies(), lines)
def test_nothing_is_done_inside_a_cooldown(policy: Policy, script: list[Line]) -> None:
    readings = readings_of(script)
    epochs = {each.step: each.epoch or 0 for each in readings}
    spans = {each.name: each.cooldown.for_ for each in policy.rules}
    ended: dict[tuple[str, str], int] = {}
    for decision in Run(policy, refuses_some).feed(readings).decisions:
        key = decision.codebook, decision.rule
        if decision.kind is DecisionKind.OUTCOME and decision.outcome is not Outcome.FAILED:
            ended[key] = decision.step
        elif decision.kind in (DecisionKind.ACT, DecisionKind.ALERT) and key in ended:
            since = [each for each in readings if each.codebook == key[0] and ended[key] < each.step <= decision.step]
            passed = {
                "steps": decision.step - ended[key],
                "readings": len(since),
                "epochs": epochs[decision.step] - epochs[ended[key]],
            }
            assert passed[spans[decision.rule].unit] >= spans[decision.rule].count
            del ended[key]


@given(policies(), lines)
def test_the_budget_is_never_exceeded(policy: Policy, script: list[Line]) -> None:
    """Between two actions that lie further apart than the budget allows, there must have been time to refill."""
    acts = of_kind(Run(policy, refuses_some).feed(readings_of(script)).decisions, DecisionKind.ACT)
    allowed, refill = policy.budget.interventions, policy.budget.refill_after
    assert refill is not None or len(acts) <= allowed
    for earlier, later in zip(acts, acts[allowed:], strict=False):
        assert refill is not None
        assert later.step - earlier.step > refill.count


@given(policies(), lines)
def test_no_rule_exceeds_a_budget_of_its_own(policy: Policy, script: list[Line]) -> None:
    unfilled = policy.model_copy(update={"budget": Budget(interventions=99, refill_after=None)})
    acts = of_kind(Run(unfilled, refuses_some).feed(readings_of(script)).decisions, DecisionKind.ACT)
    by_rule = Counter((act.codebook, act.rule) for act in acts)
    by_rung = Counter((act.codebook, act.rule, act.rung or 0) for act in acts)
    rules = {each.name: each for each in policy.rules}
    assert all(count <= (rules[rule].budget or 99) for (_, rule), count in by_rule.items())
    assert all(count <= (rules[rule].ladder[rung].budget or 99) for (_, rule, rung), count in by_rung.items())


@given(policies(), lines)
def test_a_silent_rule_says_nothing_but_that(policy: Policy, script: list[Line]) -> None:
    until = {each.name: each.silence_until.count for each in policy.rules}
    for told in Run(policy, refuses_some).feed(readings_of(script)).decisions:
        if told.rule and told.step < until[told.rule]:
            assert told.skip is Skip.SILENCED


@given(policies(), lines)
def test_an_inhibited_rule_neither_alerts_nor_acts(policy: Policy, script: list[Line]) -> None:
    run = Run(policy, refuses_some)
    for each in readings_of(script):
        seen = len(run.decisions)
        run.feed([each])
        loud = {told.rule for told in of_kind(run.decisions[seen:], DecisionKind.ALERT, DecisionKind.ACT)}
        for inhibitor in policy.rules:
            if run.engine.phase(each.codebook, inhibitor.name) is not Phase.ARMED:
                assert loud.isdisjoint(inhibitor.inhibits)


@given(policies(), lines)
def test_a_failed_rung_is_never_tried_again(policy: Policy, script: list[Line]) -> None:
    ladders = {each.name: each.ladder for each in policy.rules}
    failures: Counter[tuple[str, str, int | None]] = Counter()
    for decision in Run(policy, lambda _: True).feed(readings_of(script)).decisions:
        key = decision.codebook, decision.rule, decision.rung
        if decision.kind is DecisionKind.ACT:
            assert failures[key] < ladders[decision.rule][decision.rung or 0].repeat
        elif decision.outcome is Outcome.FAILED:
            failures[key] = 99 if decision.rollback else failures[key] + 1
        elif decision.outcome is not None:
            failures[key] = 0


@given(policies(), lines)
def test_a_healthy_series_is_left_alone(policy: Policy, script: list[Line]) -> None:
    healthy = [line._replace(perplexity=100.0, loss=0.5, tokens=2048) for line in script]
    run = Run(policy).feed(readings_of(healthy))
    assert all(decision.skip is Skip.WARMING_UP for decision in run.decisions)
    assert {run.engine.health(codebook) for codebook in CODEBOOKS} <= {Health.UNKNOWN, Health.HEALTHY}


@given(policies(), lines)
def test_observe_mode_never_acts_and_tells_the_first_thing_it_would_do(policy: Policy, script: list[Line]) -> None:
    readings = readings_of(script)
    observed = Run(policy.with_mode("observe")).feed(readings).decisions
    assert not of_kind(observed, DecisionKind.ACT, DecisionKind.OUTCOME)
    acts = of_kind(Run(policy.with_mode("act")).feed(readings).decisions, DecisionKind.ACT)
    skips = [decision for decision in observed if decision.skip is Skip.OBSERVING]
    assert [(first.step, first.rule, first.params) for first in acts[:1]] == [
        (first.step, first.rule, first.params) for first in skips[:1]
    ]


@given(policies(), lines, st.integers(0, 60))
def test_a_run_in_two_halves_decides_as_in_one_go(policy: Policy, script: list[Line], cut: int) -> None:
    readings = readings_of(script)
    whole = Run(policy, refuses_some).feed(readings).finish(999)
    first = Run(policy, refuses_some).feed(readings[:cut])
    second = Run(policy, refuses_some)
    second.engine.load_state_dict(json.loads(json.dumps(first.engine.state_dict())))
    assert second.engine.is_suspect is first.engine.is_suspect
    second.feed(readings[cut:]).finish(999)
    assert repr(first.decisions + second.decisions) == repr(
        whole.decisions
    )  # NaN differs from itself, its text does not
    assert repr(second.engine.state_dict()) == repr(whole.engine.state_dict())


@given(policies(), lines)
def test_an_unrelated_codebook_changes_nothing_for_the_others(policy: Policy, script: list[Line]) -> None:
    """As long as the common budget lasts, and but for the numbering."""
    ample = policy.model_copy(update={"budget": Budget(interventions=10**6, refill_after=None)})
    readings = readings_of(script)

    def told(among: Iterable[Reading]) -> list[str]:
        decisions = Run(ample, refuses_some).feed(among).decisions
        return [repr(replace(each, attempt=None)) for each in decisions if each.codebook != "c"]

    assert told(readings) == told(each for each in readings if each.codebook != "c")


@given(policies(), lines)
def test_a_skip_is_told_once_a_streak(policy: Policy, script: list[Line]) -> None:
    """No rule says the same skip at two readings of its codebook that follow each other."""
    run, last = Run(policy), dict[tuple[str, str], tuple[int, Skip]]()
    counts = Counter[str]()
    for each in readings_of(script):
        seen = len(run.decisions)
        run.feed([each])
        counts[each.codebook] += 1
        for told in run.decisions[seen:]:
            if told.skip is not None:
                key = told.codebook, told.rule
                assert last.get(key) != (counts[each.codebook] - 1, told.skip) or told.skip is Skip.SETTLING
                last[key] = counts[each.codebook], told.skip


@given(
    st.lists(st.sampled_from((True, False, None)), max_size=30), st.integers(1, 4), st.integers(1, 4)
)  # None: the field is missing
def test_alerts_match_a_plain_recount(holds: list[bool | None], hold: int, clear_hold: int) -> None:
    expected: list[tuple[int, str]] = []
    known = [(step, each) for step, each in enumerate(holds) if each is not None]
    firing, streak = False, 0
    for step, each in known:
        streak = streak + 1 if each is not firing else 0
        if streak == (clear_hold if firing else hold):
            firing, streak = not firing, 0
            expected.append((step, "alert" if firing else "cleared"))
    run = Run(policy(rule(when="loss > 5", clear={"for": clear_hold}, hold=hold)))
    run.feed(reading(step, loss=None if each is None else 9.0 if each else 1.0) for step, each in enumerate(holds))
    told = of_kind(run.decisions, DecisionKind.ALERT, DecisionKind.CLEARED)
    assert [(decision.step, decision.kind.value) for decision in told] == expected


@given(policies(), lines)
def test_memory_does_not_grow_with_the_run(policy: Policy, script: list[Line]) -> None:
    run = Run(policy, refuses_some).feed(readings_of(script * 3))
    books = run.engine.state_dict()["codebooks"]
    assert set(books) <= set(CODEBOOKS)
    for book in books.values():
        assert set(book["rules"]) <= {each.name for each in policy.rules}
        for each in policy.rules:
            failed = book["rules"].get(each.name, {"failed": []})["failed"]
            assert len(failed) == len(set(failed)) <= len(each.ladder)


def test_the_engine_is_pure() -> None:
    engine = PolicyEngine(policy(rule(ladder=["reset_codes"])))
    engine.observe(reading(10))
    before = json.dumps(engine.state_dict())
    saved = engine.state_dict()
    engine.observe(reading(20, 1.0))
    assert json.dumps(saved) == before
