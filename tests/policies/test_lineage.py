"""Which lines of a log count, where runs went on from checkpoints: against histories that are written out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from collapse_guard.policies import Lineage, current_history, recordings_of_events


def line(run: str | None, event: str, step: int, **fields: Any) -> dict[str, Any]:
    return {"event": event, "step": step, **({} if run is None else {"run": run}), **fields}


def told(records: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(str(each.get("run")), each["event"], each["step"]) for each in current_history(records)]


def steps(run: str, *at: int) -> list[dict[str, Any]]:
    return [line(run, "alert", step) for step in at]


def begun(run: str, *at: int, at_checkpoint: int | None = None, of: str | None = None) -> list[dict[str, Any]]:
    """A run that began afresh, or went on from a checkpoint of another, and the steps of its lines."""
    resumed = [] if at_checkpoint is None else [line(run, "resumed", at_checkpoint, continues=of)]
    return [line(run, "attached", 0), *resumed, *steps(run, *at)]


def alerts(records: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(run, step) for run, event, step in told(records) if event == "alert"]


def test_what_a_run_did_after_the_checkpoint_that_it_goes_on_from_is_superseded() -> None:
    records = begun("a", 10, 20, 30) + begun("b", 30, 40, at_checkpoint=20, of="a")
    assert alerts(records) == [("a", 10), ("a", 20), ("b", 30), ("b", 40)]


def test_a_run_may_go_on_again_and_again() -> None:
    records = begun("a", 10, 20, 30) + begun("b", 20, 30, 40, at_checkpoint=10, of="a")
    records += begun("c", 40, 50, at_checkpoint=30, of="b")
    assert alerts(records) == [("a", 10), ("b", 20), ("b", 30), ("c", 40), ("c", 50)]


def test_an_attempt_that_was_killed_before_its_first_checkpoint_leaves_nothing() -> None:
    records = begun("a", 10, 20, 30) + begun("b", 30, 40, at_checkpoint=20, of="a")
    records += begun("c", 30, 40, at_checkpoint=20, of="a")
    assert alerts(records) == [("a", 10), ("a", 20), ("c", 30), ("c", 40)]
    lineage = Lineage()
    for record in records:
        lineage.note(record)
    assert lineage.runs_count == 1


def test_a_checkpoint_older_than_the_one_before_goes_further_back() -> None:
    """C goes on from a's step 30, where b went on from a's step 10: what b did is given up."""
    records = begun("a", 10, 20, 30, 40) + begun("b", 20, 30, at_checkpoint=10, of="a")
    records += begun("c", 40, at_checkpoint=30, of="a")
    assert alerts(records) == [("a", 10), ("a", 20), ("a", 30), ("c", 40)]


def test_what_a_run_wrote_in_order_to_close_is_taken_back_by_the_one_that_goes_on() -> None:
    closing = [line("a", "outcome", 20, closing=True), line("a", "summary", 20, closing=True)]
    records = begun("a", 10, 20) + closing
    assert ("a", "summary", 20) in told(records)
    records += begun("b", 30, at_checkpoint=20, of="a")
    assert [event for _, event, _ in told(records)] == ["attached", "alert", "alert", "attached", "resumed", "alert"]


def test_a_run_that_goes_on_from_what_another_log_tells_begins_there() -> None:
    records = begun("b", 30, at_checkpoint=20, of="elsewhere")
    assert alerts(records) == [("b", 30)]


def test_in_a_log_that_names_nobody_a_run_goes_on_from_the_one_before_it() -> None:
    records = [*begun("a", 10, 20, 30), line("b", "attached", 0), line("b", "resumed", 10), *steps("b", 20)]
    assert alerts(records) == [("a", 10), ("b", 20)]
    nameless = [{key: value for key, value in each.items() if key != "run"} for each in records]
    assert [step for _, step in alerts(nameless)] == [10, 20]


def test_another_run_between_a_kill_and_its_resume_is_not_taken_for_the_one_before() -> None:
    records = begun("a", 10, 20) + begun("other", 15) + begun("b", 20, at_checkpoint=10, of="a")
    assert alerts(records) == [("a", 10), ("b", 20)]


def test_nothing_is_told_of_an_empty_log_and_a_loop_of_runs_ends() -> None:
    assert told([]) == []
    records = [line("a", "attached", 0), line("a", "resumed", 5, continues="a"), *steps("a", 7)]
    assert alerts(records) == [("a", 7)]


@pytest.mark.parametrize("step", [None, "x", True])
def test_a_step_that_is_no_number_supersedes_nothing(step: Any) -> None:
    resumed = {**line("b", "resumed", 0, continues="a"), "step": step}
    records = [*begun("a", 10, 20), line("b", "attached", 0), resumed]
    assert alerts(records) == [("a", 10), ("a", 20)]


def test_a_recording_is_of_one_history() -> None:
    def reading(run: str, step: int) -> dict[str, Any]:
        numbers = dict.fromkeys(
            ("perplexity", "ceiling", "perplexity_ratio", "usage", "dead_fraction", "top_share"), 1.0
        )
        return line(run, "reading", step, codebook="vq", K=4, D=2, tokens=9, **numbers)

    records = [line("a", "attached", 0), reading("a", 10), reading("a", 20)]
    records += [line("b", "attached", 0), line("b", "resumed", 10, continues="a"), reading("b", 20), reading("b", 30)]
    (recording,) = recordings_of_events(records)
    assert [each.step for each in recording.readings] == [10, 20, 30]
