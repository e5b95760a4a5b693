"""That the properties are about something: in what they are tried on, all that they forbid could have happened."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given

from collapse_guard.policies import Decision, DecisionKind, Outcome, Policy, Skip
from tests.policies.series import Run
from tests.policies.strategies import Line, lines, of_kind, policies, readings_of, refuses_some


def events_of(policy: Policy, script: list[Line]) -> Counter[str]:
    """What happens in one run, by name: once or not at all."""
    run, seen = Run(policy, refuses_some), Counter[str]()
    still_open: set[tuple[str, str]] = set()
    for each in readings_of(script):
        before = len(run.decisions)
        spent = run.engine.state_dict()["spent"]
        run.feed([each])
        new = run.decisions[before:]
        seen.update(map(_name_of, new))
        still_open |= {(told.codebook, told.rule) for told in of_kind(new, DecisionKind.ACT)}
        still_open -= {(told.codebook, told.rule) for told in of_kind(new, DecisionKind.OUTCOME)}
        seen["open on two codebooks at once"] += len(still_open) > 1
        state = run.engine.state_dict()
        seen["the budget is refilled"] += state["spent"] < spent
        seen["a halt with an intervention open"] += any(
            rule["attempt"]
            for book in json.loads(json.dumps(state))["codebooks"].values()
            for rule in book["rules"].values()
        )
    recovered: set[tuple[str, str]] = set()
    for told in run.decisions:
        seen["acts again after a recovery"] += told.kind is DecisionKind.ACT and (told.codebook, told.rule) in recovered
        recovered |= {(told.codebook, told.rule)} if told.outcome is Outcome.RECOVERED else set()
    return Counter({name: 1 for name, count in seen.items() if count})


def _name_of(told: Decision) -> str:
    if told.skip is Skip.BUDGET_SPENT:
        return "budget of the rule" if " by " in told.reason else "budget of the run"
    if told.kind is DecisionKind.EXHAUSTED and "spent its budget" in told.reason:
        return "budget of a rung"
    if told.skip is not None:
        return str(told.skip.value)
    if told.outcome is not None:
        return f"{told.outcome.value}, undone" if told.rollback else str(told.outcome.value)
    return str(told.kind.value)


def test_what_the_properties_are_about_happens() -> None:
    """At least so often in a hundred runs."""
    seen = Counter[str]()

    @given(policies(), lines)
    def collect(policy: Policy, script: list[Line]) -> None:
        seen.update(events_of(policy, script))

    collect()
    wanted = {
        "act": 60,
        "alert": 60,
        "cleared": 40,
        "recovered": 20,
        "failed": 10,
        "failed, undone": 20,
        "inconclusive": 10,
        "exhausted": 10,
        "cooling_down": 10,
        "inhibited": 10,
        "occupied": 5,
        "settling": 20,
        "silenced": 10,
        "observing": 10,
        "warming_up": 10,
        "few_tokens": 20,
        "budget of the run": 5,
        "budget of the rule": 3,
        "budget of a rung": 3,
        "the budget is refilled": 5,
        "open on two codebooks at once": 5,
        "a halt with an intervention open": 40,
        "acts again after a recovery": 5,
    }
    assert {name: seen[name] for name in wanted if seen[name] < wanted[name]} == {}, seen
