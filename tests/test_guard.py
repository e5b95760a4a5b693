"""The guard in a plain PyTorch loop: the reference story, and the promise to change nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from collapse_guard import Guard, read_events
from collapse_guard.demos import ReferenceQuantizer
from tests.loops import Recorder, digits_model, train


def story(recorder: Recorder) -> list[tuple[int, str, str]]:
    """Say what happened as (step, event, what)."""
    names = {"alert": "rule", "intervention": "action", "outcome": "outcome", "exhausted": "rule", "cleared": "rule"}
    return [(e.step, e.event, e.fields[names[e.event]]) for e in recorder.events if e.event in names]


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_collapse_is_seen_reset_in_vain_and_then_held_by_the_fallback(seed: int) -> None:
    recorder = Recorder()
    guard = Guard("default", console=False, sinks=[recorder], seed=seed)
    with guard:
        model = digits_model(seed)
        train(model, 200, guard, seed=seed)
    assert story(recorder)[:4] == [
        (30, "alert", "collapsed"),
        (30, "intervention", "reset_codes"),
        (80, "outcome", "failed"),
        (80, "intervention", "fallback_tokenizer"),
    ]
    assert [what for _, *what in story(recorder)[4:]] == [
        ["outcome", "recovered"],
        ["alert", "stale_moments"],
        ["intervention", "restart_optimizer"],
        ["outcome", "recovered"],
    ]
    alert, _ = recorder.of("alert")
    assert alert.fields["reading"]["perplexity"] == 1.0
    assert 100 <= alert.fields["reading"]["norm_ratio"] <= 300
    assert "times the latents' norm" in alert.fields["why"]
    failed, recovered, restarted = recorder.of("outcome")
    assert failed.fields["undone"] == [1]
    assert restarted.fields["after"]["moment_ratio"] < 3 < restarted.fields["before"]["moment_ratio"]
    assert recovered.fields["after"]["perplexity"] >= 10


@pytest.mark.parametrize("seed", range(2))
def test_a_collapse_that_was_there_before_the_guard_is_seen_although_many_codes_are_used(seed: int) -> None:
    """Attached at step 300, when another code wins in each step and the pooled perplexity looks well."""
    recorder, model = Recorder(), digits_model(seed)
    train(model, 300, seed=seed)
    with Guard("default", console=False, sinks=[recorder], seed=seed) as guard:
        train(model, 300, guard, seed=seed)
    assert recorder.of("alert")[0].step <= 30
    (held,) = [each for each in recorder.of("outcome") if each.fields["action"] == "fallback_tokenizer"]
    assert held.fields["outcome"] == "recovered"
    assert recorder.of("summary")[0].fields["in_force"][0]["action"] == "fallback_tokenizer"


def test_what_a_policy_cannot_do_in_this_run_is_said_at_once() -> None:
    """Rules for codebooks that are not there, and spans in epochs where the loop does not say its epoch."""
    rules = [
        {"name": "deep", "when": "perplexity < 5", "codebooks": ["rvq.*"]},
        {"name": "slow", "when": "perplexity < 1.01", "cooldown": "2 epochs", "ladder": ["alert"]},
    ]
    lacking = "slow, without epoch: its cooldown never ends. Say it: guard.step(epoch=...), or count in steps"
    for epoch, faults in ((None, [lacking]), (0, [])):
        recorder = Recorder()
        with Guard({"version": 1, "rules": rules}, console=False, sinks=[recorder]) as guard:
            model = digits_model()
            guard.attach(model)
            for _ in range(30):
                model(torch.randn(64, 64))
                guard.step(epoch=epoch)
        assert recorder.of("attached")[0].fields["idle_rules"] == [{"rule": "deep", "codebooks": ["rvq.*"]}]
        assert [event.fields["reason"] for event in recorder.of("fault")] == faults


def test_a_loop_that_names_no_loss_is_told_once_what_it_misses() -> None:
    """From the second reading on: the first may come before the first metric. A policy that asks for none is silent."""
    blind = {"version": 1, "rules": [{"name": "few", "when": "perplexity < 1.01"}]}
    for policy, loss, at in (("default", None, [20]), ("default", 0.5, []), (blind, None, [])):
        recorder = Recorder()
        with Guard(policy, console=False, sinks=[recorder]) as guard:
            model = digits_model()
            guard.attach(model)
            for _ in range(60):
                model(torch.randn(256, 64))
                guard.step(loss=loss)
        faults = recorder.of("fault")
        assert [event.step for event in faults] == at
        for event in faults:
            assert event.fields["where"] == "loss"
            assert "misled, outweighed, set_back: it can never fire" in event.fields["reason"]
            assert "guard.step(loss=loss)" in event.fields["reason"]


def test_a_healthy_quantizer_is_left_alone() -> None:
    recorder = Recorder()
    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(digits_model(repaired=True, K=32), 300, guard)
    assert story(recorder) == []
    assert recorder.of("summary")[0].fields["interventions"] == []


@pytest.mark.parametrize("repaired", [False, True])
def test_observe_mode_changes_no_bit_of_weights_buffers_optimizer_or_random_stream(repaired: bool) -> None:
    states = []
    for guarded in (False, True):
        model = digits_model(repaired=repaired, K=32 if repaired else 256)
        recorder = Recorder()
        guard = Guard("observe", console=False, sinks=[recorder]) if guarded else None
        optimizer = train(model, 200, guard)
        if guard is not None:
            assert bool(recorder.of("alert")) is not repaired
            guard.close()
        states.append((model.state_dict(), optimizer.state_dict()["state"], torch.random.get_rng_state()))
    (weights, moments, stream), (weights_too, moments_too, stream_too) = states
    assert weights.keys() == weights_too.keys()
    assert all(torch.equal(weights[key], weights_too[key]) for key in weights)
    assert all(torch.equal(moments[i][key], moments_too[i][key]) for i in moments for key in moments[i])
    assert torch.equal(stream, stream_too)


def test_codes_that_never_come_into_use_are_placed_and_the_sound_quantizer_keeps_its_update() -> None:
    """Of 256 codes that meet 64 tokens a step under a decay of 0.95 nine tenths come to nothing."""
    recorder, model = Recorder(), digits_model(repaired=True)
    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(model, 200, guard)
    first, *rest = recorder.of("intervention")
    assert (first.fields["rule"], first.fields["action"]) == ("unused", "reset_codes")
    assert {each.fields["action"] for each in rest} <= {"upkeep"}
    last = recorder.of("reading")[-1].fields
    assert last["usage"] > 0.4
    assert last["frozen"] == 0


def test_observe_mode_says_what_it_would_do() -> None:
    recorder = Recorder()
    with Guard("observe", console=False, sinks=[recorder]) as guard:
        train(digits_model(), 60, guard)
    assert [event.step for event in recorder.of("alert")] == [30]
    assert any("would reset_codes" in event.fields["reason"] for event in recorder.of("skip"))
    assert recorder.of("intervention") == []


def test_two_guarded_runs_of_one_seed_are_bit_equal() -> None:
    states = []
    for _ in range(2):
        model = digits_model()
        with Guard("default", console=False) as guard:
            train(model, 150, guard)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_state_dict_keys_do_not_change_and_the_plain_model_loads_them() -> None:
    model = digits_model()
    keys = list(model.state_dict())
    with Guard("default", console=False) as guard:
        train(model, 150, guard)
        assert list(model.state_dict()) == keys
        plain = digits_model(seed=1)
        plain.load_state_dict(copy.deepcopy(model.state_dict()))
    x = torch.rand(16, 64)
    codes = model.eval()(x)[1]
    assert torch.equal(plain.eval()(x)[1], codes)
    assert len(codes.unique()) > 5


def test_a_resumed_run_decides_as_the_uninterrupted_one_and_ends_bit_equal(tmp_path: Path) -> None:
    """Cut at 25 (pending), 40 (verifying a reset), 95 (verifying the fallback) and 150 (fallback in force)."""
    whole, whole_recorder = digits_model(), Recorder()
    with Guard("default", console=False, sinks=[whole_recorder]) as guard:
        _train_in_pieces(whole, [200], [guard], tmp_path)
    for cut in (25, 40, 95, 150):
        model, recorder = digits_model(), Recorder()
        guards = [Guard("default", console=False, sinks=[recorder]) for _ in range(2)]
        _train_in_pieces(model, [cut, 200 - cut], guards, tmp_path)
        assert story(recorder) == story(whole_recorder)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in whole.state_dict().items())


def _train_in_pieces(model: Any, pieces: list[int], guards: list[Guard], tmp_path: Path) -> None:
    """Train over fixed random batches; between pieces everything goes through a file loaded with weights_only."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    generator = torch.Generator().manual_seed(7)
    inputs, labels = torch.rand(64, 32, 64, generator=generator), torch.randint(10, (64, 32), generator=generator)
    stream = torch.Generator().manual_seed(3).get_state()
    saved: dict[str, Any] = {}
    done = 0
    for piece, guard in zip(pieces, guards, strict=True):
        if done:
            saved = torch.load(tmp_path / "state.pt", weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            stream = saved["stream"]
        guard.attach(model, optimizer)
        if done:
            guard.load_state_dict(saved["guard"])
        torch.random.set_rng_state(stream)
        model.train()
        for _ in range(piece):
            loss = model.training_step((inputs[done % 64], labels[done % 64]), done)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.step()
            done += 1
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "guard": guard.state_dict(),
            "stream": torch.random.get_rng_state(),
        }
        torch.save(state, tmp_path / "state.pt")
        if done < 200:
            guard._let_go()  # a killed run says nothing more: no summary, no outcome


def test_the_event_log_tells_the_whole_story_line_by_line(tmp_path: Path) -> None:
    with Guard("default", console=False, log_dir=tmp_path) as guard:
        train(digits_model(), 130, guard)
        lines = (tmp_path / "collapse_guard" / "events.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["event"] == "attached"
    records = list(read_events(tmp_path))
    quiet = ("reading", "skip", "pending", "tended")
    assert [record["event"] for record in records if record["event"] not in quiet] == [
        "attached", "alert", "intervention", "outcome", "intervention",
        "outcome", "alert", "intervention", "outcome", "summary",
    ]  # fmt: skip
    assert all({"schema", "time", "step", "event"} <= record.keys() for record in records)
    reset = next(record for record in records if record["event"] == "intervention")
    assert {change["name"] for change in reset["manifest"]} == {"table", "ema_sum", "ema_count"}


def test_evaluation_forwards_are_not_counted() -> None:
    model = digits_model(repaired=True)
    with Guard("observe", console=False) as guard:
        train(model, 5, guard)
        before = guard._watch.probes["quantizer"].window.tallies
        assert before is not None
        kept = before.clone()
        model.eval()(torch.rand(8, 64))
        assert torch.equal(before, kept)


def test_a_recomputed_forward_is_counted_once() -> None:
    from torch.utils.checkpoint import checkpoint

    quantizer = ReferenceQuantizer(16, 8, repaired=True)
    with Guard("observe", console=False) as guard:
        guard.attach(quantizer)
        x = torch.randn(5, 2, 8, requires_grad=True)
        for reentrant in (True, False):
            checkpoint(lambda y: quantizer(y)[0], x, use_reentrant=reentrant).sum().backward()
        tallies = guard._watch.probes["model"].window.tallies
        assert tallies is not None
        assert int(tallies[:16].sum()) == 20


def test_a_guard_attaches_once() -> None:
    with Guard("observe", console=False) as guard:
        guard.attach(digits_model())
        with pytest.raises(RuntimeError, match="attached already"):
            guard.attach(digits_model())


def test_a_state_of_another_schema_starts_afresh_and_says_so() -> None:
    recorder = Recorder()
    with Guard("observe", console=False, sinks=[recorder]) as guard:
        guard.attach(digits_model())
        guard.load_state_dict({"schema": 99})
    (fault,) = recorder.of("fault")
    assert "expected guard state of schema 1, got 99" in fault.fields["reason"]
