"""Levels of one residual: one alert, one coordinated intervention, one outcome."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from collapse_guard.policies import DecisionKind, Policy, Reading, Recording, Skip, replay, taken_together
from tests.policies.series import Run, brief, policy, reading, rule

RESETS = policy(rule(ladder=["reset_codes", "fallback_tokenizer"], verify={"within": "20 steps"}, cooldown="10 steps"))


def level(index: int, step: int, perplexity: float = 100.0, **fields: Any) -> Reading:
    return reading(step, perplexity, f"rvq.{index}", group="rvq", level=index, **fields)


def course(*columns: Iterable[float]) -> list[tuple[Reading, ...]]:
    """Readings of all levels every 10 steps; one column of perplexities for each level."""
    steps = enumerate(zip(*columns, strict=True), start=1)
    return [tuple(level(index, 10 * n, value) for index, value in enumerate(row)) for n, row in steps]


def decided(mine: Policy, readings: Iterable[tuple[Reading, ...]], **answers: Any) -> Run:
    run = Run(mine, **answers)
    for together in readings:
        run.feed_together(together)
    return run


def told(run: Run) -> list[str]:
    """What is decided, with the levels that it concerns; what is only pending is left out."""
    return [
        f"{brief(each)} {[part.level for part in each.parts]}"
        for each in run.decisions
        if each.kind is not DecisionKind.PENDING
    ]


def test_levels_that_fire_at_the_same_reading_make_one_alert_one_intervention_and_one_outcome() -> None:
    run = decided(RESETS, course(*[[1.0, 90.0, 90.0]] * 4))
    assert told(run) == [
        "10 collapsed alert [0, 1, 2, 3]",
        "10 collapsed act #1 reset_codes [0, 1, 2, 3]",
        "20 collapsed outcome #1 reset_codes recovered [0, 1, 2, 3]",
    ]
    alert, act, outcome = run.decisions
    assert (alert.codebook, alert.codebooks) == ("rvq.0", ("rvq.0", "rvq.1", "rvq.2", "rvq.3"))
    assert act.reason == "rung 1 of 2: reset_codes(scope=dead, source=kmeans, refill=0.5) at perplexity 1.00"
    assert outcome.reason.startswith("levels 0-3 recovered: perplexity 90.00 >= 1.5 for 1 reading")
    assert [part.before and part.before.codebook for part in outcome.members] == list(alert.codebooks)


def test_a_level_that_fires_alone_acts_alone() -> None:
    run = decided(RESETS, course([100.0] * 2, [1.0, 90.0], [100.0] * 2))
    assert told(run) == [
        "10 collapsed alert [1]",
        "10 collapsed act #1 reset_codes [1]",
        "20 collapsed outcome #1 reset_codes recovered [1]",
    ]
    assert [(each.codebook, each.group, each.members) for each in run.decisions] == [("rvq.1", "rvq", ())] * 3


def test_only_the_levels_that_failed_go_up_their_ladder_and_they_do_so_together() -> None:
    fails, holds = [1.0] * 3 + [90.0], [1.0] + [90.0] * 3
    run = decided(RESETS, course(fails, holds, fails))
    assert told(run) == [
        "10 collapsed alert [0, 1, 2]",
        "10 collapsed act #1 reset_codes [0, 1, 2]",
        "30 collapsed outcome #1 reset_codes failed, rolled back [0, 1, 2]",
        "30 collapsed act #2 fallback_tokenizer [0, 2]",
        "40 collapsed outcome #2 fallback_tokenizer recovered [0, 2]",
    ]
    failed = run.decisions[2]
    assert [(part.outcome and part.outcome.value, part.rollback) for part in failed.members] == [
        ("failed", True),
        ("recovered", False),
        ("failed", True),
    ]
    assert failed.reason == (
        "level 1 recovered: perplexity 90.00 >= 1.5 for 1 reading after reset_codes; levels 0, 2 failed: "
        "perplexity 1.00 after 20 steps, wanted perplexity >= 1.5 for 1 reading"
    )


def test_a_coordinated_intervention_is_charged_once() -> None:
    mine = policy(rule(ladder=["reset_codes", "fallback_tokenizer"]), budget={"interventions": 1, "refill_after": None})
    run = decided(mine, course([1.0], [1.0], [1.0]))
    assert told(run)[-1] == "10 collapsed act #1 reset_codes [0, 1, 2]"
    assert run.engine.state_dict()["spent"] == 1


def test_a_finer_level_waits_while_a_coarser_one_is_being_verified_and_then_counts_afresh() -> None:
    mine = policy(rule(hold=2, ladder=["reset_codes"], verify={"within": "30 steps"}, cooldown="90 steps"))
    run = decided(mine, course([1.0] * 2 + [90.0] * 5, [90.0] + [1.0] * 6))
    assert told(run) == [
        "20 collapsed alert [0]",
        "20 collapsed act #1 reset_codes [0]",
        "20 collapsed skip coarser_level [1]",
        "40 collapsed outcome #1 reset_codes recovered [0]",
        "60 collapsed alert [1]",
        "60 collapsed act #2 reset_codes [1]",
    ]
    (skip,) = [each for each in run.decisions if each.skip is Skip.COARSER_LEVEL]
    assert skip.reason == "rvq.0, a coarser level of the same residual, is being verified"


@pytest.mark.parametrize("gradual", ["upkeep", "restart_optimizer"])
def test_a_finer_level_waits_for_nothing_that_changes_a_coarser_one_little_at_a_time(gradual: str) -> None:
    idle = rule("idle", when="perplexity < 60", ladder=[gradual], verify={"within": "1000 steps"}, severity="info")
    lost = rule("lost", when="perplexity < 1.5", ladder=["reset_codes"], hold=2, inhibits=["idle"])
    run = decided(policy(lost, idle), course([50.0] * 5, [90.0] * 2 + [1.0] * 3))
    assert told(run) == [
        "10 idle alert [0]",
        f"10 idle act #1 {gradual} [0]",
        "30 idle skip inhibited [1]",
        "40 lost alert [1]",
        "40 lost act #2 reset_codes [1]",
    ]


@pytest.mark.parametrize(("coarse", "is_ended"), [("upkeep", False), ("reset_codes", True)])
def test_a_finer_level_keeps_its_verification_where_a_coarser_one_is_changed_a_little(
    coarse: str, is_ended: bool
) -> None:
    low = rule("low", when="perplexity < 5", ladder=["reset_codes"], verify={"within": "60 steps"})
    idle = rule("idle", when=["perplexity < 60", "perplexity > 40"], ladder=[coarse], severity="info")
    run = decided(policy(low, idle), course([90.0, 50.0, 50.0, 90.0], [2.0, 3.0, 90.0, 90.0]))
    outcomes = [each for each in told(run) if "outcome" in each and "[1]" in each]
    assert outcomes == [
        "20 low outcome #1 reset_codes inconclusive [1]" if is_ended else "30 low outcome #1 reset_codes recovered [1]"
    ]


def test_what_a_finer_level_shows_settles_after_an_intervention_on_a_coarser_one() -> None:
    mine = policy(rule(ladder=["reset_codes"]), sample={"settle": 1})
    run = decided(mine, course([1.0, 90.0, 90.0], [90.0, 1.0, 90.0], [90.0, 1.0, 90.0]))
    assert [each for each in told(run) if "settling" in each] == [f"20 - skip settling [{index}]" for index in range(3)]
    assert not any(each.endswith("alert [1]") for each in told(run))


def test_what_a_finer_level_shows_settles_after_a_coarser_one_was_rolled_back_too() -> None:
    mine = policy(rule(ladder=["reset_codes"], verify={"within": "20 steps"}), sample={"settle": 1})
    run = decided(mine, course([1.0] * 6, [90.0] * 3 + [1.0] * 3))
    assert "30 collapsed outcome #1 reset_codes failed, rolled back [0]" in told(run)
    settling = [each for each in run.decisions if each.skip is Skip.SETTLING and each.codebook == "rvq.1"]
    assert [(each.step, each.reason) for each in settling][:2] == [
        (20, "settling: 1 of 1 readings after reset_codes"),
        (40, "settling: 1 of 1 readings after undoing reset_codes"),
    ]
    assert [each for each in told(run) if each.endswith("t [1]")] == ["50 collapsed alert [1]"]


def test_a_coarser_level_that_acts_ends_the_verification_of_a_finer_one() -> None:
    run = decided(RESETS, course([90.0, 1.0, 90.0], [1.0, 1.0, 90.0], [1.0, 1.0, 90.0]))
    assert told(run)[:5] == [
        "10 collapsed alert [1, 2]",
        "10 collapsed act #1 reset_codes [1, 2]",
        "20 collapsed alert [0]",
        "20 collapsed outcome #1 reset_codes inconclusive [1, 2]",
        "20 collapsed act #2 reset_codes [0]",
    ]
    assert "rvq.0, a coarser level of the same residual, was acted on meanwhile" in run.decisions[3].reason


def test_a_level_that_refuses_has_failed_and_climbs_with_the_others_that_did() -> None:
    refuses = {"rvq.1": "no writable codebook"}
    run = decided(RESETS, course([1.0, 90.0, 90.0], [1.0] * 3), refuses=lambda act: refuses if act.attempt == 1 else {})
    assert told(run)[1:] == [
        "10 collapsed act #1 reset_codes [0, 1]",
        "20 collapsed outcome #1 reset_codes failed [0, 1]",
        "20 collapsed act #2 fallback_tokenizer [1]",
    ]
    assert run.decisions[2].members[1].reason == "reset_codes was not applied: no writable codebook"


def test_an_intervention_that_every_level_refuses_fails_at_once() -> None:
    run = decided(RESETS, course([1.0], [1.0]), applies=lambda act: act.attempt != 1)
    assert told(run)[1:] == [
        "10 collapsed act #1 reset_codes [0, 1]",
        "10 collapsed outcome #1 reset_codes failed [0, 1]",
        "10 collapsed act #2 fallback_tokenizer [0, 1]",
    ]


def test_a_level_that_has_to_wait_for_new_latents_has_not_failed() -> None:
    postpones = {"rvq.1": "its latents are those of the old rvq.0"}
    run = decided(
        RESETS,
        course([1.0] + [90.0] * 3, [1.0] * 4),
        postpones=lambda act: postpones if act.attempt == 1 else {},
    )
    assert told(run) == [
        "10 collapsed alert [0, 1]",
        "10 collapsed act #1 reset_codes [0, 1]",
        "10 collapsed skip coarser_level [1]",
        "20 collapsed outcome #1 reset_codes recovered [0]",
        "30 collapsed alert [1]",
        "30 collapsed act #2 reset_codes [1]",
    ]


def test_readings_stay_dense_while_a_finer_level_waits_and_until_it_has_counted_afresh() -> None:
    mine = policy(rule(hold=2, ladder=["reset_codes"], verify={"within": "20 steps"}, cooldown="90 steps"))
    run, suspect = Run(mine), []
    for together in course([1.0] * 2 + [90.0] * 4, [90.0] + [1.0] * 3 + [90.0] * 2):
        run.feed_together(together)
        suspect.append(run.engine.is_suspect)
    assert "40 collapsed outcome #1 reset_codes recovered [0]" in told(run)
    assert suspect == [True, True, True, True, False, False]


def test_a_level_that_falls_silent_does_not_hold_up_the_others_for_ever() -> None:
    readings = [*course([1.0, 90.0], [1.0, 90.0]), *((level(0, step),) for step in (30, 40, 50))]
    run = decided(RESETS, [readings[0], readings[1][:1], *readings[2:]])
    assert told(run)[2:] == ["30 collapsed outcome #1 reset_codes inconclusive [0, 1]"]


def test_a_silent_level_has_no_more_epochs_than_the_others() -> None:
    mine = policy(rule(ladder=["reset_codes"], verify={"within": "1 epoch"}))
    run = decided(mine, [tuple(level(index, 10, 1.0, epoch=0) for index in range(2))])
    assert not run.feed_together((level(0, 20, epoch=0),)).decisions[2:]
    run.feed_together((level(0, 30, epoch=1),))
    assert told(run)[2:] == ["30 collapsed outcome #1 reset_codes inconclusive [0, 1]"]


def test_a_run_that_ends_ends_a_coordinated_intervention_once() -> None:
    run = decided(RESETS, course([1.0, 90.0], [1.0, 1.0])).finish(25)
    assert told(run)[2:] == ["25 collapsed outcome #1 reset_codes inconclusive [0, 1]"]
    assert [part.outcome and part.outcome.value for part in run.decisions[2].members] == ["recovered", "inconclusive"]


def test_a_policy_that_observes_says_once_what_it_would_do_on_all_levels() -> None:
    run = decided(RESETS.with_mode("observe"), course(*[[1.0, 1.0]] * 3))
    assert told(run) == ["10 collapsed alert [0, 1, 2]", "10 collapsed skip observing [0, 1, 2]"]


def test_a_resumed_run_goes_on_in_the_middle_of_a_coordinated_intervention() -> None:
    readings = course([1.0] * 3 + [90.0], [1.0] + [90.0] * 3, [1.0] * 3 + [90.0])
    whole = decided(RESETS, readings)
    for cut in range(1, len(readings)):
        first, second = decided(RESETS, readings[:cut]), Run(RESETS)
        second.engine.load_state_dict(json.loads(json.dumps(first.engine.state_dict())))
        for together in readings[cut:]:
            second.feed_together(together)
        assert first.decisions + second.decisions == whole.decisions


def test_a_replay_bundles_the_readings_of_a_step() -> None:
    readings = course([1.0] * 3, [1.0, 90.0, 90.0])
    recording = Recording(readings=[each for together in readings for each in together])
    assert replay(RESETS, recording).decisions == tuple(decided(RESETS, readings).decisions)


def test_readings_of_a_step_and_group_are_taken_together_and_others_alone() -> None:
    rvq = [level(index, 10) for index in range(3)]
    alone, again, later = reading(10, codebook="a"), level(0, 10, 5.0), level(0, 20)
    bundles = list(taken_together([rvq[0], alone, rvq[1], rvq[2], again, later]))
    assert bundles == [tuple(rvq), (alone,), (again,), (later,)]


@pytest.mark.parametrize(
    "apart",
    [
        (level(0, 10), level(1, 20)),
        (level(0, 10), reading(10, codebook="a")),
        (reading(10, codebook="a"), reading(10, codebook="b")),
        (level(0, 10), level(0, 10)),
    ],
)
def test_readings_that_do_not_belong_together_are_refused(apart: tuple[Reading, ...]) -> None:
    with pytest.raises(ValueError, match="expected one reading of each of several levels of one group at one step"):
        Run(RESETS).feed_together(apart)
