"""Alerts and interventions of one rule on any series, against counting loops that know nothing of the engine."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import DecisionKind
from tests.policies.series import Run, policy, reading, rule
from tests.policies.strategies import of_kind


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


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3)), min_size=20, max_size=60),
    st.sampled_from(("steps", "readings", "epochs")),
    st.integers(0, 6),
    st.sampled_from((1, 2)),
    st.integers(1, 4),
    st.sampled_from((None, 30, 50)),
)
def test_interventions_match_a_plain_recount(
    script: list[tuple[bool, int]], unit: str, pause: int, growth: int, budget: int, refill: int | None
) -> None:
    """One rule whose every intervention recovers at the next good reading: cooldown, its growth, budget and refill."""
    steps = [10 * step for step in accumulate(gap for _, gap in script)]
    span = f"{10 * pause if unit == 'steps' else pause} {unit}"
    flapping = policy(
        rule(ladder=["reset_codes"], cooldown={"for": span, "growth": growth}, verify={"within": "99999 steps"}),
        budget={"interventions": budget, "refill_after": f"{refill} steps" if refill else None},
    )
    expected: list[int] = []
    ended: int | None = None
    is_open = is_exhausted = False
    spent = pauses = 0
    calm: int | None = None
    for index, (step, (is_bad, _)) in enumerate(zip(steps, script, strict=True)):
        now = {"steps": step // 10, "readings": index, "epochs": step // 70}[unit]
        if is_open and not is_bad:
            is_open, pauses, ended = False, pauses + 1, now
        elif is_exhausted and not is_bad:
            is_exhausted = False
        elif not is_open and not is_exhausted:
            if ended is not None and now - ended >= pause * growth ** max(pauses - 1, 0):
                ended = None
            if ended is None and is_bad:
                is_open, is_exhausted = spent < budget, spent >= budget
                expected += [step] if is_open else []
                spent += is_open
        if spent and refill:
            if is_open or is_exhausted or is_bad:
                calm = None
            elif calm is None:
                calm = step
            elif step - calm >= refill:
                spent, pauses, calm = 0, 0, None
    run = Run(flapping).feed(
        reading(step, 1.0 if is_bad else 100.0, epoch=step // 70)
        for step, (is_bad, _) in zip(steps, script, strict=True)
    )
    assert [act.step for act in of_kind(run.decisions, DecisionKind.ACT)] == expected
