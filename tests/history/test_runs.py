"""Runs folded from their events, compared with what the records say."""

from __future__ import annotations

from typing import Any

import pytest

from collapse_guard.history.rules import Bound
from collapse_guard.history.runs import Mark, Run, Runs
from collapse_guard.history.series import Series
from collapse_guard.policies import Phase, load_policy
from tests.history.records import act, alert, attached, outcome, pending, reading


def folded(*records: dict[str, Any]) -> Run:
    runs = Runs()
    runs.fold(records)
    assert runs.odd == 0
    assert runs.latest is not None
    return runs.latest


def rule(run: Run, name: str = "collapsed") -> str:
    book = run.books["vq"]
    return book.rules[name].text(book.step or 0)


def test_a_rule_is_followed_from_its_alert_to_its_rest() -> None:
    story = [attached("vq"), reading(10, 1.0, health="collapsed"), pending(10, "1 of 2", "collapsed")]
    assert rule(folded(*story)) == "pending 1/2"
    story += [reading(20, 1.0, health="collapsed"), alert(20)]
    assert rule(folded(*story)) == "firing since step 20"
    story += [act(20), reading(30, 40.0, health="collapsed")]
    assert rule(folded(*story)) == "verifying reset_codes #1, 10 of 50 steps"
    story += [reading(60, 40.0), outcome(60, "recovered")]
    assert rule(folded(*story)) == "cooling, 100 of 100 steps left"
    story += [reading(120, 40.0)]
    assert rule(folded(*story)) == "cooling, 40 of 100 steps left"
    story += [reading(160, 40.0)]
    run = folded(*story)
    assert rule(run) == "armed"
    marks = [Mark(20, "alert"), Mark(20, "applied"), Mark(60, "recovered")]
    assert list(run.books["vq"].marks) == marks
    assert (run.alerts, run.interventions) == (1, 1)


def test_a_failed_rule_fires_on_and_gives_up() -> None:
    story = [attached("vq"), alert(20), act(20), outcome(70, "failed")]
    assert rule(folded(*story)) == "firing since step 70"
    story += [{"event": "exhausted", "step": 70, "codebook": "vq", "rule": "collapsed", "run": "a"}]
    assert rule(folded(*story)) == "exhausted since step 70"
    story += [{"event": "cleared", "step": 90, "codebook": "vq", "rule": "collapsed", "run": "a"}]
    assert rule(folded(*story)) == "armed"


def test_a_refused_action_is_not_being_verified() -> None:
    assert rule(folded(attached("vq"), alert(20), act(20, result="refused"))) == "firing since step 20"


def test_a_pending_rule_counts_while_its_condition_holds_and_rests_when_it_does_not() -> None:
    low: dict[str, Any] = {"perplexity_ratio": 0.01, "health": "degraded"}
    story = [attached("vq"), reading(10, 3.0, **low), pending(10)]
    assert rule(folded(*story, reading(20, 3.0, **low)), "collapsing") == "pending 2/3"
    assert rule(folded(*story, reading(20, 9.0, health="degraded")), "collapsing") == "armed"
    assert rule(folded(*story, reading(20, 3.0, **{**low, "health": "healthy"})), "collapsing") == "armed"


def test_what_a_rule_waits_for_stands_beside_it() -> None:
    skip = {"event": "skip", "step": 10, "codebook": "vq", "rule": "collapsing", "run": "a", "reason": "inhibited"}
    run = folded(attached("vq"), pending(10), skip)
    assert run.books["vq"].rules["collapsing"].waits == "inhibited"
    assert list(run.happenings) == []


def test_an_event_of_several_levels_reaches_each_of_them_with_its_own_result() -> None:
    members = [{"codebook": "rvq.0", "level": 0, "result": "applied"}, {"codebook": "rvq.1", "result": "refused"}]
    together = act(20, "rvq.0", group="rvq", codebooks=["rvq.0", "rvq.1"], levels=[0, 1], members=members)
    run = folded(attached("rvq.0", "rvq.1"), together)
    assert [list(book.marks) for book in run.books.values()] == [[Mark(20, "applied")], [Mark(20, "refused")]]
    assert run.books["rvq.0"].rules["collapsed"].phase is Phase.VERIFYING
    assert "collapsed" not in run.books["rvq.1"].rules
    assert run.happenings[-1].who == "rvq (2 levels)"


def test_a_new_run_in_the_same_file_takes_over() -> None:
    runs = Runs()
    runs.fold([attached("vq"), reading(10, 1.0), attached("vq", run="b"), reading(5, 50.0, run="b")])
    assert runs.begun == 2
    assert runs.latest is not None
    assert (runs.latest.name, runs.latest.step) == ("b", 5)
    assert [each.low for each in runs.latest.books["vq"].series] == [50.0]


def test_a_resumed_run_keeps_what_its_checkpoint_knew_and_forgets_the_rest() -> None:
    runs = Runs()
    before = [attached("vq"), reading(10, 30.0), alert(10), act(10), reading(20, 31.0), reading(30, 1.0)]
    resumed = {"event": "resumed", "step": 20, "policy": "default", "policy_changed": False, "run": "b"}
    runs.fold([*before, alert(30), attached("vq", run="b"), resumed, reading(30, 40.0, run="b")])
    run = runs.latest
    assert run is not None
    assert [(each.first, each.low) for each in run.books["vq"].series] == [(10, 30.0), (20, 31.0), (30, 40.0)]
    assert [each.step for each in run.happenings] == [10, 10, 20]
    assert (run.alerts, run.interventions, run.resumed_at, runs.begun) == (1, 1, 20, 1)
    assert run.books["vq"].rules["collapsed"].phase is Phase.VERIFYING


def test_runs_that_write_at_the_same_time_are_told_apart() -> None:
    runs = Runs()
    runs.fold([attached("vq"), attached("vq", run="b"), reading(10, 1.0), reading(10, 2.0, run="b"), reading(20, 1.0)])
    assert [[each.low for each in run.books["vq"].series] for run in runs.runs] == [[1.0, 1.0], [2.0]]


def test_thresholds_come_from_the_policy_as_run() -> None:
    run = folded(attached("vq"), reading(10, 9.0))
    bounds = [Bound(1.5, "collapsed", "critical"), Bound(5.0, "collapsing", "warning")]
    assert run.bounds(run.books["vq"]) == bounds
    assert sorted(run.armed(run.books["vq"])) == sorted(rule.name for rule in load_policy("default").rules)


def test_thresholds_of_a_log_without_its_policy_are_those_that_alerts_state() -> None:
    old = {**attached("vq"), "policy_as_run": None, "policy_fingerprint": "123456789abc"}
    run = folded(old, reading(10, 1.0), alert(10))
    assert run.bounds(run.books["vq"]) == [Bound(1.5, "collapsed", "critical")]
    assert run.armed(run.books["vq"]) == []


def test_a_policy_file_that_has_changed_since_is_not_taken_for_the_policy_as_run() -> None:
    old = {**attached("vq"), "policy_as_run": None, "policy_source": "conservative"}
    assert folded(old).facts.rules == {}
    assert folded({**old, "policy_source": "default"}).facts.rules != {}


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"event": 3},
        {"event": "reading"},
        {"event": "reading", "codebook": {}, "step": "x"},
        {"event": "attached", "codebooks": 7},
        {"event": "summary", "codebooks": [1, {"name": []}]},
        {"event": "attached", "codebooks": [{"name": "vq", "K": 10**400}], "policy_as_run": {"rules": 3}},
        {"event": "pending", "codebook": "vq", "rule": ["x"], "reason": None},
        {"event": "outcome", "codebook": "vq", "rule": "r", "members": [None, {"codebook": "vq"}]},
    ],
)
def test_a_record_that_makes_no_sense_leaves_the_others_alone(record: dict[str, Any]) -> None:
    runs = Runs()
    runs.fold([attached("vq"), reading(10, 2.0), {**record, "run": "a"}, reading(20, 3.0)])
    run = runs.latest
    assert run is not None
    if record.get("event") != "attached":  # which begins a run
        assert [each.low for each in run.books["vq"].series] == [2.0, 3.0]


def test_a_reading_says_what_is_not_finite_and_leaves_out_what_is_no_number() -> None:
    odd = reading(10, None, norm_ratio="many", usage=None, not_finite={"perplexity": "nan"})
    book = folded(attached("vq"), odd).books["vq"]
    assert book.latest["perplexity"] == "nan"
    assert not {"norm_ratio", "usage"} & set(book.latest)
    assert len(book.series) == 0


def test_a_log_whose_beginning_is_lost_is_read_from_its_readings() -> None:
    run = folded(reading(10, 2.0), reading(10, 9.0, codebook="other"))
    assert [(book.name, book.K, len(book.series)) for book in run.books.values()] == [("vq", 256, 1), ("other", 256, 1)]


def test_a_series_is_thinned_in_bounded_memory_and_no_dip_is_lost() -> None:
    series = Series(most=64)
    values = [50.0 + step % 13 for step in range(10_000)]
    values[7_321] = 1.0
    values[2_000] = 300.0
    for step, value in enumerate(values):
        series.add(step, value)
    assert len(series.stretches) <= 64
    assert series.is_thinned
    assert len(series) == 10_000
    for each in series:
        inside = values[each.first : each.last + 1]
        assert (each.low, each.high, each.end, each.count) == (min(inside), max(inside), inside[-1], len(inside))
    columns = [each for each in series.columns(30, 0, 9_999) if each is not None]
    assert (min(each.low for each in columns), max(each.high for each in columns)) == (1.0, 300.0)


def test_memory_does_not_grow_with_the_number_of_codebooks_events_and_runs() -> None:
    runs = Runs()
    for index in range(1_500):
        runs.fold([reading(index, 2.0, codebook=f"vq.{index}"), alert(index, "vq.0")])
    run = runs.latest
    assert run is not None
    assert (len(run.books), len(run.unshown)) == (1_000, 500)
    assert (len(run.happenings), len(run.books["vq.0"].marks)) == (200, 400)
    runs.fold(attached("vq", run=str(index)) for index in range(100))
    assert len(runs.runs) == 8
