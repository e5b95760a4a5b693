"""Replays: the same decisions from the log as in the run, and what a table can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from collapse_guard import Guard, read_events
from collapse_guard.demos import ARMS, run_arm
from collapse_guard.policies import (
    Decision,
    DecisionKind,
    Policy,
    Reading,
    Recording,
    compare_replays,
    load_policy,
    recording_of_rows,
    recordings_of_events,
    replay,
)
from tests.loops import digits_model
from tests.policies.series import Run, brief, policy, reading, rule, series

TOLD = {"pending", "alert", "skip", "cleared", "exhausted", "intervention", "outcome"}
RESETS = rule(hold=2, ladder=["reset_codes", {"reset_codes": {"scope": "all"}}], verify={"within": "30 steps"})


def recorded(run: Run, readings: list[Reading]) -> list[dict[str, Any]]:
    """The event log of a run, as a guard would write it."""
    records: list[dict[str, Any]] = [{"event": "attached", "step": 0, "policy": "mine", "mode": "act"}]
    records += [{"event": "reading", "health": "unknown", **each.as_dict()} for each in readings]
    for each in run.decisions:
        if each.kind is DecisionKind.ACT:
            assert each.params is not None
            applied = run.applies(each)
            answer = {"result": "applied" if applied else "refused", "summary": "done" if applied else "not today"}
            asked = {"codebook": each.codebook, "action": each.action, "params": each.params.model_dump(mode="json")}
            records.append({"event": "intervention", "step": each.step, **asked, **answer})
    return records


def replayed(mine: Policy, records: list[dict[str, Any]]) -> tuple[Decision, ...]:
    (recording,) = recordings_of_events(records)
    return replay(mine, recording).decisions


def test_the_log_of_the_reference_demo_replays_to_the_same_decisions(tmp_path: Path) -> None:
    run_arm(ARMS["guarded"], 0, epochs=4, log_dir=tmp_path)
    records = list(read_events(tmp_path))
    told = [record for record in records if record["event"] in TOLD]
    (recording,) = recordings_of_events(records)
    result = replay(load_policy("default"), recording)
    assert recording.fingerprint == load_policy("default").fingerprint()
    assert result.readings == sum(record["event"] == "reading" for record in records)
    assert len(told) == len(result.decisions) >= 10
    for record, decision in zip(told, result.decisions, strict=True):
        kind = "intervention" if decision.kind is DecisionKind.ACT else decision.kind.value
        assert (record["event"], record["step"], record["codebook"]) == (kind, decision.step, decision.codebook)
        assert record["rule"] == decision.rule
        if kind == "intervention":
            assert decision.params is not None
            assert record["params"] == decision.params.model_dump(mode="json")
            assert record["attempt"] == decision.attempt
        else:
            assert record["reason"] == decision.reason
        if kind == "outcome":
            assert (record["outcome"], bool(record["undone"])) == (
                decision.outcome.value if decision.outcome else None,
                decision.rollback,
            )


def test_a_loss_that_is_no_number_counts_in_a_replay_as_it_did_in_the_run(tmp_path: Path) -> None:
    """JSON has no NaN: it is null in the log, as a loss that is not known is, and the two mean different things."""
    loud = rule("loud", "loss > 5", nan="fire", clear={"when": "loss < 3"})
    mine = policy(loud, sample={"every": "5 steps", "min_tokens": 1})
    losses = iter([1.0] * 10 + [float("nan")] * 10 + [float("-inf")] * 10)
    with Guard(mine, console=False, log_dir=tmp_path) as guard:
        model = digits_model()
        guard.attach(model)
        for loss in losses:
            model(torch.randn(8, 64))
            guard.step(loss=loss)
    records = list(read_events(tmp_path))
    assert {record.get("not_finite", {}).get("loss") for record in records if record["event"] == "reading"} == {
        None,
        "nan",
        "-inf",
    }
    told = [(record["step"], record["event"]) for record in records if record["event"] in ("alert", "cleared")]
    assert told == [(15, "alert"), (25, "cleared")]
    assert [(each.step, each.kind.value) for each in replayed(mine, records)] == told


def test_a_refusal_is_replayed_where_the_same_intervention_is_asked_for() -> None:
    readings = series([1.0] * 4 + [50.0] * 4)
    mine = policy(RESETS)
    run = Run(mine, lambda decision: decision.attempt != 1).feed(readings)
    assert "20 collapsed outcome #1 reset_codes failed" in run.told
    assert replayed(mine, recorded(run, readings)) == tuple(run.decisions)


def test_an_intervention_that_the_run_never_asked_for_is_taken_for_applied() -> None:
    readings = series([1.0] * 4 + [50.0] * 4)
    records = recorded(Run(policy(RESETS), lambda _: False).feed(readings), readings)
    quick = policy(rule(ladder=["reset_codes"]))
    assert [brief(each) for each in replayed(quick, records)] == [
        "10 collapsed alert",
        "10 collapsed act #1 reset_codes",
        "50 collapsed outcome #1 reset_codes recovered",
    ]


def test_a_run_that_was_closed_ends_its_open_verifications() -> None:
    readings = series([1.0] * 3)
    mine = policy(RESETS)
    records = recorded(Run(mine).feed(readings), readings)
    assert brief(replayed(mine, records)[-1]) == "20 collapsed act #1 reset_codes"
    closed = replayed(mine, [*records, {"event": "summary", "step": 35}])
    assert brief(closed[-1]) == "35 collapsed outcome #1 reset_codes inconclusive"


def test_a_resumed_run_is_one_run_without_what_it_forgot() -> None:
    mine = policy(RESETS)
    whole = series([1.0] * 6 + [50.0] * 4)
    begun = recorded(Run(mine).feed(whole[:5]), whole[:5])  # killed at step 50; the checkpoint is of step 20
    (head, *_), late = begun, [reading(25, 1.0)]
    rest = [{"event": "reading", **each.as_dict()} for each in whole[2:]]
    again = [*begun, {"event": "reading", **late[0].as_dict()}, {"event": "summary", "step": 50}]
    records = [*again, head, {"event": "resumed", "step": 20}, *rest]
    assert replayed(mine, records) == tuple(Run(mine).feed(whole).decisions)


def test_runs_that_only_share_a_log_stay_apart() -> None:
    records = recorded(Run(policy(RESETS)), series([1.0] * 2)) + recorded(Run(policy(RESETS)), series([9.0] * 3))
    assert [len(run.readings) for run in recordings_of_events(records)] == [2, 3]
    assert recordings_of_events([{"event": "attached", "step": 0}]) == []


def test_runs_that_write_at_the_same_time_are_told_apart() -> None:
    mine = policy(RESETS)
    bad, good = series([1.0] * 4), series([50.0] * 4)
    one = [record | {"run": "a"} for record in recorded(Run(mine).feed(bad), bad)]
    other = [record | {"run": "b"} for record in recorded(Run(mine).feed(good), good)]
    mixed = [record for pair in zip(one, other, strict=False) for record in pair] + one[len(other) :]
    runs = recordings_of_events(mixed)
    assert [len(run.readings) for run in runs] == [4, 4]
    assert [run.readings[0].perplexity for run in runs] == [1.0, 50.0]
    assert replay(mine, runs[0]).decisions == tuple(Run(mine).feed(bad).decisions)


def test_two_policies_are_compared_by_what_they_tell_aloud() -> None:
    recording = Recording(readings=series([1.0] * 20))
    old = replay(policy(rule(ladder=[{"reset_codes": {}, "repeat": 4}], verify={"within": "30 steps"})), recording)
    new = replay(policy(rule(), mode="observe"), recording)
    assert old.counts() == {"alert": 1, "reset_codes": 4, "outcome failed": 4, "exhausted": 1}
    assert compare_replays(old, new) == [
        ("alert", 1, 1),
        ("reset_codes", 4, 0),
        ("outcome failed", 4, 0),
        ("exhausted", 1, 0),
    ]


def test_what_observing_would_have_done_is_counted_too() -> None:
    observed = replay(load_policy("observe"), Recording(readings=series([1.0] * 3)))
    assert observed.counts() == {"alert": 1, "observing reset_codes": 1}
    assert observed.still_open() == 0


def test_a_table_is_read_by_its_columns() -> None:
    rows: list[dict[str, str | None]] = [
        {"_step": "20", "train/ppl": "2.5", "tokens": "", "what": "vq"},
        {"_step": "10", "train/ppl": "64", "tokens": "300", "what": "vq"},
        {"_step": "30", "train/ppl": "", "tokens": "", "what": "vq"},
        {"_step": "", "train/ppl": "7", "tokens": "", "what": "vq"},
        {"_step": "40", "train/ppl": "nan", "tokens": "300", "what": ""},
    ]
    columns = {"step": "_step", "perplexity": "train/ppl", "tokens": "tokens", "codebook": "what"}
    recording = recording_of_rows(rows, columns, K=256, D=16, ceiling_of=lambda tokens, K: 128.0)
    told = [(each.step, each.codebook, each.tokens, each.perplexity_ratio) for each in recording.readings]
    assert told == [(10, "vq", 300, 0.5), (20, "vq", 10**9, 2.5 / 256), (40, "codebook", 300, None)]
    assert recording.knows("perplexity")
    assert not recording.knows("relative_error")


def test_what_a_table_does_not_hold_is_said_rule_by_rule() -> None:
    recording = recording_of_rows([{"step": "10", "p": "1"}], {"step": "step", "perplexity": "p"}, K=256)
    keep = "(`missing: keep`: such comparisons stay open)"
    never = f"it can never fire {keep}"
    assert [str(each) for each in replay(load_policy("default"), recording).absences] == [
        f"non_finite, without finite_fraction: {never}",
        f"collapsed, without relative_error: it can never be over, no intervention of it can be found to hold {keep}",
        f"astray, without relative_error, spread_ratio: {never}",
        f"reshaped, without loss, reshaped: {never}",
        f"cut_off, without loss, task_gradient: {never}",
        f"unspread, without dead_fraction, norm_ratio, relative_error, spread_ratio: {never}",
        f"collapsing, without relative_error: {never}",
        f"outgrown, without commitment_share, commitment_weight, norm_ratio, quantization_error: {never}",
        f"fallen, without dead_fraction, loss, norm_ratio, quantization_error, relative_error: {never}",
        f"misled, without dead_fraction, frozen, loss, quantization_error, relative_error, unmoved: {never}",
        f"unused, without dead_fraction, frozen, relative_error, unmoved: {never}",
        f"unfitted, without dead_fraction, frozen, relative_error, unmoved: {never}",
        f"half_repaired, without frozen, rewrites: {never}",
        f"restless, without loss, replacement_share: {never}",
        f"overheated, without loss, relative_error, sampling_ratio: {never}",
        f"hasty, without decay: {never}",
        f"overcommitted, without commitment_weight, relative_error: {never}",
        f"outweighed, without commitment_share, loss, rewrites: {never}",
        f"stale_moments, without moment_ratio: {never}",
        f"set_back, without loss, moment_ratio, rewrites: {never}",
        f"standing, without frozen, rewrites, unmoved: {never}",
    ]


@pytest.mark.parametrize(
    ("missing", "when", "clear", "consequences"),
    [
        ("fire", "usage < 0.1", "perplexity > 9", ("it fires at every reading", "it can never be over")),
        ("fire", ["usage < 0.1", "perplexity < 2"], None, ()),
        ("clear", ["usage < 0.1", "perplexity < 2"], None, ("it can never fire",)),
        ("clear", {"any": ["usage < 0.1", "perplexity < 2"]}, None, ()),
        ("keep", {"any": ["usage < 0.1", "perplexity < 2"]}, None, ("it can never be over",)),
        ("keep", "perplexity < 2", {"any": ["usage > 0.5", "perplexity > 9"]}, ()),
    ],
)
def test_what_follows_from_a_missing_field_is_what_the_engine_does(
    missing: str, when: Any, clear: Any, consequences: tuple[str, ...]
) -> None:
    """Said without a look at values, and true of every series of them."""
    own_end: dict[str, Any] = {"clear": {"when": clear}} if clear else {}
    mine = policy(rule(when=when, missing=missing, **own_end))
    recording = Recording(readings=series([1.0] * 3 + [50.0] * 3 + [1.0] * 3 + [50.0] * 3, usage=None))
    result = replay(mine, recording)
    assert [each.consequences for each in result.absences] == [consequences]
    kinds = {decision.kind for decision in result.decisions}
    assert (DecisionKind.ALERT in kinds) is ("it can never fire" not in consequences)
    if DecisionKind.ALERT in kinds:
        assert (DecisionKind.CLEARED in kinds) is ("it can never be over" not in consequences)


def test_a_bound_on_the_loss_without_a_loss_is_said() -> None:
    mine = policy(rule(ladder=["reset_codes"], verify={"guard": {"loss_increase": 0.1}}))
    (absence,) = replay(mine, Recording(readings=series([1.0] * 3))).absences
    assert (absence.fields, absence.consequences) == (("loss",), ("what an intervention costs is not looked at",))


@pytest.mark.parametrize(
    ("fields", "consequences"),
    [
        ({"cooldown": "1 epoch", "clear": {"when": "perplexity > 10"}}, ("its cooldown never ends",)),
        ({"verify": {"within": "1 epoch"}}, ("an intervention of it that does not help is judged for ever",)),
        (
            {"ladder": [{"alert": None, "within": "9 epochs"}]},
            ("an intervention of it that does not help is judged for ever",),
        ),
        ({"cooldown": "1 epoch", "ladder": []}, None),
    ],
)
def test_spans_in_epochs_never_end_where_no_epoch_is_said(
    fields: dict[str, Any], consequences: tuple[str, ...] | None
) -> None:
    """Said by the replay, and done by the engine: one alert, and nothing after the first outcome."""
    mine = policy(rule(**{"ladder": ["alert"], **fields}))
    helps = "cooldown" in fields
    result = replay(mine, Recording(readings=series([1.0, *[99.0 if helps else 1.0] * 3, *[1.0] * 999])))
    assert [each.consequences for each in result.absences] == ([consequences] if consequences else [])
    if consequences:
        assert str(result.absences[0]) == f"collapsed, without epoch: {consequences[0]}"
        assert [brief(each) for each in result.decisions[:3]] == [
            "10 collapsed alert",
            "10 collapsed act #1 alert",
            *(["20 collapsed outcome #1 alert recovered"] if helps else []),
        ]
        kinds = [each.kind for each in result.decisions[2 + helps :]]
        assert kinds == [DecisionKind.SKIP] * helps
    with_epochs = [reading(10 * i, 1.0, epoch=i) for i in range(1, 9)]
    assert not replay(mine, Recording(readings=with_epochs)).absences


def test_a_rule_whose_patterns_match_no_codebook_of_the_log_is_said() -> None:
    mine = policy(rule(codebooks=["rvq.*", "*.0"]), rule("other", codebooks=["v?"]))
    assert replay(mine, Recording(readings=series([1.0]))).idle() == (
        "collapsed exists on no codebook here: none is called rvq.* or *.0",
    )
    assert replay(mine, Recording(readings=[reading(10, codebook="a.0")])).idle() == (
        "other exists on no codebook here: none is called v?",
    )


def test_a_table_of_several_codebooks_is_read_by_a_placeholder_and_by_our_own_names() -> None:
    mapping = {"step": "step", "perplexity": "vq/{codebook}/ppl", "loss": "loss"}
    first = {"step": 10, "vq/a/ppl": 8.0, "vq/b/ppl": 4.0, "loss": None, "codebook_usage/b": 0.5}
    rows: list[dict[str, str | float | None]] = [
        {**first, "vq/a/ppl": None, "vq/b/ppl": None, "codebook_usage/b": None, "step": 5, "loss": 3.0},
        dict(first),
        {**first, "step": 20, "vq/b/ppl": None, "codebook_usage/b": None, "loss": 1.0},
    ]
    recording = recording_of_rows(rows, mapping, K=16, tokens=100)
    told = [(each.step, each.codebook, each.perplexity, each.usage, each.loss) for each in recording.readings]
    assert told == [(10, "a", 8.0, None, 3.0), (10, "b", 4.0, 0.5, 3.0), (20, "a", 8.0, None, 1.0)]


def test_a_ceiling_follows_from_perplexity_and_its_ratio() -> None:
    names = {"codebook_perplexity/vq": 8.0, "codebook_perplexity_ratio/vq": 0.5}
    (only,) = recording_of_rows([{"step": 1, **names}], {"step": "step"}, K=256).readings
    assert (only.perplexity, only.perplexity_ratio, only.ceiling) == (8.0, 0.5, 16.0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"perplexty": "p"}, "expected a field of a reading, got 'perplexty'. Did you mean `perplexity`?"),
        ({"K": "p"}, "expected a field of a reading, got 'K'."),
        ({"perplexity": "q"}, "expected a column of the log for perplexity, got 'q'. Known: p, word."),
        ({"perplexity": "word"}, "expected a number in column 'word', got 'low'."),
    ],
)
def test_a_wrong_mapping_is_told(columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        recording_of_rows([{"step": "10", "p": "1", "word": "low"}], {"step": "step"} | columns, K=256)
    assert message in str(caught.value)
