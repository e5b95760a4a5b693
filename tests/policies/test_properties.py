"""What holds for every policy and every series: nothing here knows a scenario."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import yaml
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import (
    Budget,
    DecisionKind,
    Duration,
    Health,
    Outcome,
    Phase,
    Policy,
    PolicyEngine,
    Reading,
    Skip,
    load_policy,
    preset_names,
)
from tests.policies.series import (
    CEILING,
    Run,
    assert_a_skip_is_told_once_a_streak,
    policy,
    reading,
    rule,
)
from tests.policies.strategies import CODEBOOKS, Line, lines, of_kind, policies, readings_of, refuses_some


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
def test_the_budget_is_refilled_only_after_every_codebook_was_well(policy: Policy, script: list[Line]) -> None:
    refill = Duration(30, "steps")
    run = Run(policy.model_copy(update={"budget": Budget(interventions=9, refill_after=refill)}), refuses_some)
    at_work = {"pending", "firing", "verifying", "exhausted"}
    harmless = {rule.name for rule in policy.rules if rule.severity == "info" and not rule.ladder}
    last_trouble = -1
    for each in readings_of(script):
        spent = run.engine.state_dict()["spent"]
        run.feed([each])
        state = run.engine.state_dict()
        rules = [(name, rule) for book in state["codebooks"].values() for name, rule in book["rules"].items()]
        if any(name not in harmless and (rule["holds"] or rule["phase"] in at_work) for name, rule in rules):
            last_trouble = each.step
        if state["spent"] < spent:
            assert each.step - last_trouble > refill.count
            assert not any(rule["spent"] for _, rule in rules)


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
def test_few_tokens_fire_nothing_and_clear_nothing(policy: Policy, script: list[Line]) -> None:
    run = Run(policy, refuses_some)
    for each in readings_of(script):
        seen = len(run.decisions)
        run.feed([each])
        if each.tokens < policy.sample.min_tokens:
            kinds = {told.kind for told in run.decisions[seen:]}
            assert kinds <= {DecisionKind.SKIP, DecisionKind.OUTCOME}  # a deadline may pass meanwhile


@given(policies(), lines)
def test_nothing_is_done_to_a_codebook_that_was_given_up(policy: Policy, script: list[Line]) -> None:
    gives_up = {each.name for each in policy.rules if each.on_exhausted == "observe"}
    given_up: set[str] = set()
    for decision in Run(policy, refuses_some).feed(readings_of(script)).decisions:
        if decision.kind is DecisionKind.ACT:
            assert decision.codebook not in given_up
        elif decision.then == "observe" and decision.rule in gives_up:
            given_up.add(decision.codebook)


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
            if run.engine.phase(each.codebook, inhibitor.name) not in (Phase.ARMED, Phase.EXHAUSTED):
                assert loud.isdisjoint(inhibitor.inhibits)


@given(policies(), lines)
def test_beside_an_exhausted_rule_only_what_it_has_not_tried_is_tried(policy: Policy, script: list[Line]) -> None:
    """A rule that it inhibits alerts only with a rung left, and begins none that has failed there."""
    run = Run(policy, refuses_some)
    ladders = {rule.name: {rung.params.describe() for rung in rule.ladder} for rule in policy.rules}
    for each in readings_of(script):
        seen = len(run.decisions)
        run.feed([each])
        told = of_kind(run.decisions[seen:], DecisionKind.ALERT, DecisionKind.ACT)
        for inhibitor in policy.rules:
            if run.engine.phase(each.codebook, inhibitor.name) is not Phase.EXHAUSTED:
                continue
            states = run.engine.state_dict()["codebooks"][each.codebook]["rules"]
            for one in (one for one in told if one.rule in inhibitor.inhibits):
                assert ladders[one.rule] - set(states[inhibitor.name]["failed"])
                is_begun = one.kind is DecisionKind.ACT and ", try 1 of" not in one.reason and ", try " in one.reason
                if one.params is not None and not is_begun:
                    assert one.params.describe() not in states[inhibitor.name]["failed"]


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
def test_a_run_saved_at_every_reading_decides_as_in_one_go(policy: Policy, script: list[Line]) -> None:
    whole = Run(policy, refuses_some)
    saved = Run(policy, refuses_some)
    for each in readings_of(script):
        whole.feed([each])
        plain = json.loads(json.dumps(saved.engine.state_dict()))
        saved.engine = PolicyEngine(policy)
        saved.engine.load_state_dict(plain)
        saved.feed([each])
        assert repr(saved.engine.state_dict()) == repr(whole.engine.state_dict())
    assert repr(saved.finish(999).decisions) == repr(whole.finish(999).decisions)


@given(policies())
def test_a_policy_is_the_same_after_it_was_written_out(policy: Policy) -> None:
    once = load_policy(yaml.safe_load(yaml.safe_dump(policy.model_dump(mode="json", by_alias=True))))
    again = load_policy(yaml.safe_load(yaml.safe_dump(once.model_dump(mode="json", by_alias=True))))
    assert policy == once == again
    assert policy.fingerprint() == again.fingerprint()


@given(
    st.sampled_from(preset_names()),
    st.sampled_from(("vq", "rvq.layers.0", "rvq.layers.4")),
    st.lists(st.tuples(st.floats(70, 110), st.floats(0.01, 0.9), st.floats(0, 1e6)), min_size=20, max_size=60),
)
def test_no_preset_acts_on_a_healthy_codebook(
    name: str, codebook: str, values: list[tuple[float, float, float]]
) -> None:
    """However perplexity, error and loss waver; `semantic_ids` may tell of a slide, for it touches nothing."""
    run = Run(load_policy(name)).feed(
        reading(100 * i, perplexity, codebook, relative_error=error, loss=loss, tokens=4096)
        for i, (perplexity, error, loss) in enumerate(values, 1)
    )
    assert of_kind(run.decisions, DecisionKind.ACT, DecisionKind.OUTCOME) == []
    assert {each.rule for each in of_kind(run.decisions, DecisionKind.ALERT)} <= {"drifting"}
    assert CEILING * 0.28 < 70  # what healthy means here, for those thresholds that look at the ratio


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
    assert_a_skip_is_told_once_a_streak(policy, ((each,) for each in readings_of(script)))


@given(policies(), lines)
def test_memory_does_not_grow_with_the_run(policy: Policy, script: list[Line]) -> None:
    run = Run(policy, refuses_some).feed(readings_of(script * 3))
    books = run.engine.state_dict()["codebooks"]
    assert set(books) <= set(CODEBOOKS)
    for book in books.values():
        assert all(len(values) <= 3 for values in book["past"]["recent"].values())
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
