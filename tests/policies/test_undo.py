"""`verify: undo`: what becomes of an intervention that failed, and may have helped all the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard.policies import Decision, DecisionKind, PolicyEngine, Reading, explain_policy
from tests.policies.series import Run, policy, reading, rule

WHEN = "usage < 0.9"


def run_of(undo: str, usages: list[float], *, repeat: int = 1, when: Any = WHEN, **fields: Any) -> Run:
    """One firing reading, then these usages 10 steps apart; 20 steps to verify; clear is usage >= 0.95."""
    ladder = [{"reset_codes": {"scope": "dead"}, "repeat": repeat}, "alert"]
    verify = {"within": "20 steps", "undo": undo, **fields.pop("verify", {})}
    made = policy(rule("low", when, clear={"when": "usage >= 0.95"}, verify=verify, ladder=ladder))
    errors = fields.pop("errors", [0.5] * len(usages))
    losses = fields.pop("losses", [None] * len(usages))
    ratios = fields.pop("norm_ratios", [None] * len(usages))
    return Run(made).feed(
        reading(10 + 10 * index, usage=usage, relative_error=error, loss=loss, norm_ratio=ratio)
        for index, (usage, error, loss, ratio) in enumerate(zip(usages, errors, losses, ratios, strict=True))
    )


def ending(run: Run) -> Decision:
    outcomes = [each for each in run.decisions if each.kind is DecisionKind.OUTCOME and each.action == "reset_codes"]
    return outcomes[-1]


@pytest.mark.parametrize(
    ("undo", "usages", "end"),
    [
        ("always", [0.05, 0.5, 0.7], "undone"),
        ("unless_better", [0.05, 0.5, 0.7], "kept"),
        ("unless_better", [0.5, 0.6, 0.4], "undone"),
        ("unless_better", [0.5, 0.6, 0.5], "undone"),
        ("never", [0.5, 0.3, 0.1], "kept"),
    ],
)
def test_a_failed_try_is_undone_or_kept_as_the_rule_says(undo: str, usages: list[float], end: str) -> None:
    last = ending(run_of(undo, usages))
    assert last.outcome is not None
    assert last.outcome.value == "failed"
    assert (last.rollback, last.kept) == (end == "undone", end == "kept")


def test_what_helped_is_compared_with_what_was_there_before_the_first_of_several_tries() -> None:
    """The second try made it worse than the first had left it, and both together better than nothing."""
    run = run_of("unless_better", [0.1, 0.5, 0.6, 0.5, 0.4], repeat=2)
    outcomes = [(each.attempt, each.rollback, each.kept) for each in run.decisions if each.outcome is not None]
    assert outcomes == [(1, False, False), (2, False, True)]
    assert run.told[-1].endswith("act #3 alert")


def test_more_use_at_a_larger_error_or_loss_is_no_improvement() -> None:
    usages = [0.1, 0.5, 0.6]
    assert ending(run_of("unless_better", usages, errors=[0.5, 0.5, 0.6])).rollback
    assert ending(run_of("unless_better", usages, errors=[0.5, 0.5, math.nan])).rollback
    assert ending(run_of("unless_better", usages, errors=[None, None, None])).kept
    bound: Any = {"verify": {"guard": {"loss_increase": 0.1}}}
    assert ending(run_of("unless_better", usages, losses=[1.0, 1.0, 1.2], **bound)).rollback
    assert ending(run_of("unless_better", usages, losses=[1.0, 1.0, 1.05], **bound)).kept
    assert ending(run_of("unless_better", usages, losses=[1.0, 1.0, 9.0])).kept  # nobody asked about the loss


def test_all_fields_that_fired_must_have_come_nearer_and_none_may_be_unknown() -> None:
    usages = [0.1, 0.5, 0.6]
    assert ending(run_of("unless_better", usages, when=[WHEN, "dead_fraction > 0.05"])).kept  # the other one stayed
    assert ending(run_of("unless_better", usages, when={"any": [WHEN, "norm_ratio > 5"]})).rollback  # never measured


def test_what_only_says_when_the_others_count_is_no_improvement() -> None:
    when = ["usage < 0.9", {"any": ["relative_error > 0.9", "norm_ratio > 5"]}]
    far = run_of("unless_better", [0.1, 0.1, 0.1], when=when, errors=[1e5, 8e4, 8e4])
    assert ending(far).rollback
    assert ending(run_of("unless_better", [0.1, 0.3, 0.3], when=when, errors=[1e5, 8e4, 8e4], norm_ratios=[9] * 3)).kept
    assert ending(run_of("unless_better", [0.1, 0.3, 0.3], when=when, errors=[5.0, 5.0, 7.0])).rollback
    either = {"any": ["relative_error > 0.9", "usage < 0.05"]}  # nothing is asked for by itself: any of them may tell
    assert ending(run_of("unless_better", [0.5, 0.5, 0.5], when=either, errors=[9.0, 2.0, 2.0])).kept


def test_only_symptoms_say_whether_a_try_has_helped() -> None:
    """Time passes in any case, a field may end beyond what is right but on its other side, and use is no trouble."""
    more, less = [0.1, 0.5, 0.6], [0.3, 0.3, 0.3]
    for beside in ("step <= 200", {"any": ["norm_ratio < 0.5", "norm_ratio > 20"]}, "perplexity >= 10"):
        assert ending(run_of("unless_better", more, when=[WHEN, beside], norm_ratios=[0.1, 5.0, 5.0])).kept
    assert ending(run_of("unless_better", less, when=[WHEN, "step <= 200"])).rollback
    assert ending(
        run_of("unless_better", more, when=[WHEN, "norm_ratio < 0.5"], norm_ratios=[0.1, 0.05, 0.05])
    ).rollback
    assert ending(run_of("unless_better", more, when=[WHEN, "K == 256", "top_share != 1"])).kept


@given(
    undo=st.sampled_from(["always", "unless_better", "never"]),
    usages=st.lists(st.floats(0, 0.89), min_size=6, max_size=20),
    cut=st.integers(0, 19),
)
def test_a_failed_rung_is_undone_or_kept_and_never_both_and_a_resumed_engine_agrees(
    undo: str, usages: list[float], cut: int
) -> None:
    run = run_of(undo, usages, repeat=2)
    for each in run.decisions:
        if each.outcome is not None:
            assert not (each.rollback and each.kept)
            assert not (each.kept and undo == "always")
            assert not (each.rollback and undo == "never")
    made = policy(
        rule(
            "low",
            WHEN,
            clear={"when": "usage >= 0.95"},
            verify={"within": "20 steps", "undo": undo},
            ladder=[{"reset_codes": {"scope": "dead"}, "repeat": 2}, "alert"],
        )
    )
    again = Run(made)
    readings: list[Reading] = [
        reading(10 + 10 * index, usage=usage, relative_error=0.5, loss=None) for index, usage in enumerate(usages)
    ]
    again.feed(readings[:cut])
    state = again.engine.state_dict()
    again.engine = PolicyEngine(made)
    again.engine.load_state_dict(state)
    again.feed(readings[cut:])
    assert again.decisions == run.decisions


@pytest.mark.parametrize(
    ("undo", "says"),
    [
        ("always", "One that has not in time is undone, and the next has its turn."),
        ("unless_better", "is undone, unless it left the codebook better than it was and the loss no worse, and the"),
        ("never", "has failed, and what it has done stays, and the next has its turn."),
    ],
)
def test_explain_says_what_becomes_of_a_failed_try(undo: str, says: str) -> None:
    made = policy(rule("low", WHEN, verify={"within": "20 steps", "undo": undo}, ladder=["reset_codes", "alert"]))
    assert says in " ".join(explain_policy(made, 100).split())
