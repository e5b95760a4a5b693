"""What holds for every policy and every series of the levels of a residual, beside a codebook that is none of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import Budget, Decision, DecisionKind, Policy, PolicyEngine, Reading, taken_together
from tests.policies.series import Run, assert_a_skip_is_told_once_a_streak, reading
from tests.policies.strategies import levels as perplexities
from tests.policies.strategies import of_kind, policies

NAMES = ("g.0", "g.1", "g.2")
ALONE = "alone"


class Row(NamedTuple):
    """The readings of one step: perplexities of the three levels and of the other codebook, `None` for no reading."""

    levels: tuple[float | None, ...]
    alone: float | None
    loss: float | None
    tokens: int


_value = st.one_of(perplexities, perplexities, perplexities, st.none())
_row = st.builds(
    Row,
    st.one_of(st.tuples(_value, _value, _value), perplexities.map(lambda value: (value,) * 3)),
    _value,
    st.sampled_from((9.0, 0.5, 0.5, None)),
    st.sampled_from((2048, 2048, 2048, 2048, 2048, 10)),
)
rows = st.lists(st.tuples(_row, st.integers(1, 5)), min_size=6, max_size=14).map(
    lambda blocks: [row for row, count in blocks for _ in range(count)]
)


def readings_of(script: Iterable[Row]) -> list[Reading]:
    """One row every 10 steps, 6 rows to an epoch."""
    found = []
    for i, row in enumerate(script):
        step, shared = 10 + 10 * i, {"loss": row.loss, "epoch": i // 6}
        for level, perplexity in enumerate(row.levels):
            if perplexity is not None:
                tokens = row.tokens if level == 2 else 2048
                found.append(reading(step, perplexity, NAMES[level], group="g", level=level, tokens=tokens, **shared))
        if row.alone is not None:
            found.append(reading(step, row.alone, ALONE, **shared))
    return found


def chance(decision: Decision, codebook: str) -> int:
    """One of twelve, the same whatever else happens in the run."""
    return (decision.step // 10 * 7 + (decision.rung or 0) * 5 + len(codebook) + ord(codebook[-1])) % 12


def refuses(decision: Decision) -> dict[str, str]:
    return {name: "not here" for name in decision.codebooks if chance(decision, name) < 2}


def postpones(decision: Decision) -> dict[str, str]:
    """Finer levels may have to wait for the coarsest; a single codebook never does."""
    return {name: "not yet" for name in decision.codebooks[1:] if chance(decision, name) in (2, 3)}


def run_of(policy: Policy) -> Run:
    return Run(policy, refuses=refuses, postpones=postpones)


def fed(run: Run, readings: Iterable[Reading]) -> Run:
    for together in taken_together(readings):
        run.feed_together(together)
    return run


@given(policies(), rows)
def test_every_coordinated_intervention_has_one_number_and_one_outcome(policy: Policy, script: list[Row]) -> None:
    decisions = fed(run_of(policy), readings_of(script)).finish(9999).decisions
    acts, outcomes = of_kind(decisions, DecisionKind.ACT), of_kind(decisions, DecisionKind.OUTCOME)
    assert [act.attempt for act in acts] == list(range(1, len(acts) + 1))
    assert Counter(each.attempt for each in outcomes) == Counter(act.attempt for act in acts)
    asked = {act.attempt: act for act in acts}
    for each in outcomes:
        act = asked[each.attempt]
        carried = {part.codebook: part.before for part in act.parts if part.codebook not in postpones(act)}
        assert {part.codebook: part.before for part in each.parts} == carried
        assert (each.rule, each.action, each.params, each.rung) == (act.rule, act.action, act.params, act.rung)


@given(policies(), rows)
def test_a_group_makes_no_storm(policy: Policy, script: list[Row]) -> None:
    """At one step at most one alert of a rule, and one intervention of a rung, whatever the number of levels."""
    run = run_of(policy)
    for together in taken_together(readings_of(script)):
        seen = len(run.decisions)
        run.feed_together(together)
        told = run.decisions[seen:]
        alerts = Counter(each.rule for each in of_kind(told, DecisionKind.ALERT))
        acts = Counter((each.rule, each.rung, each.codebooks) for each in of_kind(told, DecisionKind.ACT))
        assert max([*alerts.values(), *acts.values()], default=1) == 1


@given(policies(), rows)
def test_nothing_is_done_on_a_level_while_a_coarser_one_has_something_open(policy: Policy, script: list[Row]) -> None:
    still_open: dict[str, int | None] = {}
    for decision in fed(run_of(policy), readings_of(script)).decisions:
        if decision.kind is DecisionKind.ACT:
            finest = max(part.level or 0 for part in decision.parts)
            if decision.group is not None:
                assert not [name for name in still_open if name in NAMES[: finest + 1]]
            assert decision.codebook not in still_open
            waits = postpones(decision)
            still_open |= {name: decision.attempt for name in decision.codebooks if name not in waits}
        elif decision.kind is DecisionKind.OUTCOME:
            assert {still_open.pop(name) for name in decision.codebooks} == {decision.attempt}


@given(policies(), rows)
def test_the_budget_counts_coordinated_interventions_once(policy: Policy, script: list[Row]) -> None:
    unfilled = policy.model_copy(update={"budget": Budget(interventions=3, refill_after=None)})
    run = fed(run_of(unfilled), readings_of(script))
    assert len(of_kind(run.decisions, DecisionKind.ACT)) == run.engine.state_dict()["spent"] <= 3


@given(policies(), rows)
def test_a_level_never_tries_a_failed_rung_again(policy: Policy, script: list[Row]) -> None:
    ladders = {each.name: each.ladder for each in policy.rules}
    failures: Counter[tuple[str, str, int | None]] = Counter()
    for decision in fed(run_of(policy), readings_of(script)).decisions:
        for part in decision.parts:
            key = part.codebook, part.rule, part.rung
            if part.kind is DecisionKind.ACT:
                assert failures[key] < ladders[part.rule][part.rung or 0].repeat
            elif part.outcome is not None and part.outcome.value == "failed":
                refused = "was not applied" in part.reason
                failures[key] = 99 if part.rollback or refused else failures[key] + 1
            elif part.outcome is not None:
                failures[key] = 0


@given(policies(), rows, st.integers(0, 60))
def test_a_run_in_two_halves_decides_as_in_one_go(policy: Policy, script: list[Row], cut: int) -> None:
    bundles = list(taken_together(readings_of(script)))
    whole = fed(run_of(policy), readings_of(script)).finish(9999)
    first, second = run_of(policy), run_of(policy)
    for together in bundles[:cut]:
        first.feed_together(together)
    second.engine.load_state_dict(json.loads(json.dumps(first.engine.state_dict())))
    for together in bundles[cut:]:
        second.feed_together(together)
    second.finish(9999)
    assert repr(first.decisions + second.decisions) == repr(whole.decisions)
    assert repr(second.engine.state_dict()) == repr(whole.engine.state_dict())


@given(policies(), rows)
def test_a_group_and_an_unrelated_codebook_change_nothing_for_each_other(policy: Policy, script: list[Row]) -> None:
    """As long as the common budget lasts, and but for the numbering."""
    ample = policy.model_copy(update={"budget": Budget(interventions=10**6, refill_after=None)})
    readings = readings_of(script)

    def told(among: Iterable[Reading], *, grouped: bool) -> list[str]:
        decisions = fed(run_of(ample), among).decisions
        return [repr(_unnumbered(each)) for each in decisions if (each.group is not None) is grouped]

    for grouped in (True, False):
        alone = [each for each in readings if (each.group is not None) is grouped]
        assert told(readings, grouped=grouped) == told(alone, grouped=grouped)


def _unnumbered(decision: Decision) -> Decision:
    return replace(decision, attempt=None, members=tuple(map(_unnumbered, decision.members)))


@given(policies(), rows)
def test_the_order_of_the_levels_within_a_step_does_not_matter(policy: Policy, script: list[Row]) -> None:
    upright, upside_down = run_of(policy), run_of(policy)
    for together in taken_together(readings_of(script)):
        upright.feed_together(together)
        upside_down.feed_together(tuple(reversed(together)))
    assert repr(upright.decisions) == repr(upside_down.decisions)


@given(policies(), rows)
def test_a_skip_is_told_once_a_streak(policy: Policy, script: list[Row]) -> None:
    assert_a_skip_is_told_once_a_streak(policy, taken_together(readings_of(script)))


@given(policies(), rows)
def test_observing_a_group_leaves_the_old_state_as_it_was(policy: Policy, script: list[Row]) -> None:
    run = run_of(policy)
    for together in taken_together(readings_of(script)):
        before = run.engine.state_dict()
        written = json.dumps(before)
        other = PolicyEngine(policy)
        other.load_state_dict(before)
        run.feed_together(together)
        assert json.dumps(before) == written
        assert repr(other.state_dict()) == repr(before)
