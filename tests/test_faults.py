"""Disks that are full, states that are torn, signals and clocks: the run goes on, and what was written stays."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from collapse_guard import Event, Guard, JsonLinesSink, events, read_events
from collapse_guard.history.view import LogView
from tests.checkout import prelude
from tests.loops import Recorder, digits_model, train


def reading(step: int) -> Event:
    return Event("reading", step, {"codebook": "vq", "perplexity": 9.0})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_once_and_its_lines_are_written_when_there_is_room(tmp_path: Path, caplog: Any) -> None:
    recorder = Recorder()
    with Guard("observe", console=False, log_dir=tmp_path, sinks=[recorder]) as guard:
        model = digits_model(repaired=True)
        log = tmp_path / "collapse_guard" / "events.jsonl"
        train(model, 12, guard)
        before = log.read_bytes()
        sink: Any = next(sink for sink in guard._log.sinks if isinstance(sink, JsonLinesSink))
        log.rename(log.with_suffix(".kept"))
        sink._release()
        log.symlink_to("/dev/full")
        for step in range(20, 25):
            guard._log.emit("reading", step, codebook="quantizer")
        log.unlink()
        log.with_suffix(".kept").rename(log)
        guard._log.emit("reading", 25, codebook="quantizer")
        sink_lines = log.read_bytes()
    assert sink_lines.startswith(before), "never lose events already written"
    assert [record["step"] for record in read_events(tmp_path) if record["event"] == "reading"][-6:] == [*range(20, 26)]
    (fault,) = recorder.of("fault")
    assert "No space left on device" in fault.fields["reason"]
    assert "events wait until" in fault.fields["reason"]
    assert caplog.text.count("No space left on device") == 1


def test_a_log_directory_that_cannot_be_made_does_not_end_the_run(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    recorder = Recorder()
    with Guard("observe", console=False, log_dir=tmp_path / "file", sinks=[recorder]) as guard:
        train(digits_model(repaired=True), 30, guard)
    assert len(recorder.of("fault")) == 1
    assert recorder.of("summary")
    assert "could not be written" in caplog.text


def test_a_line_that_the_disk_took_half_of_is_written_again_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    sink, write = JsonLinesSink(tmp_path), os.write
    sink.write(reading(1))
    budget = [20]

    def short(descriptor: int, data: bytes) -> int:
        if budget[0] <= 0:
            raise OSError(28, "No space left on device")
        taken = write(descriptor, data[: budget[0]])
        budget[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(events.DelayedError):
        sink.write(reading(2))
    sink.write(reading(3))
    monkeypatch.setattr(os, "write", write)
    sink.write(reading(4))
    sink.close()
    assert [record["step"] for record in read_events(tmp_path)] == [1, 2, 3, 4]
    assert caplog.text.count("torn") == 1


def test_a_bound_that_is_too_small_for_a_log_leaves_the_model_to_the_next_guard(tmp_path: Path) -> None:
    model = digits_model()
    with pytest.raises(ValueError, match=r"at least 65536 \(64 KiB\), got 1000"):
        Guard("observe", console=False, log_dir=tmp_path, log_max_bytes=1000).attach(model)
    with Guard("observe", console=False) as guard:
        train(model, 10, guard)
        assert guard.readings["quantizer"].tokens > 0


def test_a_log_with_a_bound_forgets_its_oldest_part_and_readers_follow(tmp_path: Path) -> None:
    bound = 1 << 16
    sink = JsonLinesSink(tmp_path, run="a", max_bytes=bound)
    view = LogView(sink.path)
    sink.write(Event("attached", 0, {"policy": "default", "codebooks": [{"name": "vq", "K": 4, "D": 2}]}))
    for step in range(1, 2000):
        sink.write(reading(step))
        if step % 100 == 0:
            view.read_all()
    sink.close()
    view.read_all()
    parts = sorted(sink.path.parent.iterdir())
    assert 2 <= len(parts) <= 4
    assert sum(part.stat().st_size for part in parts) <= bound
    told = [record["step"] for record in read_events(tmp_path) if record["event"] == "reading"]
    assert told == list(range(told[0], 2000))
    assert 1 < told[0] < 1900
    assert [record["event"] for record in read_events(tmp_path)].count("attached") == 1
    assert view.run is not None
    assert (view.begun, view.run.step, len(view.run.books["vq"].series)) == (1, 1999, 1999), "it watched from the start"
    late = LogView(sink.path)
    late.read_all()
    assert late.run is not None
    assert (late.begun, late.run.books["vq"].K, len(late.run.books["vq"].series)) == (1, 4, len(told))
    view.close()
    late.close()
    with pytest.raises(ValueError, match="at least 65536"):
        JsonLinesSink(tmp_path, max_bytes=10)


def spoilt_states(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return states as a torn, foreign or hostile checkpoint may hold them."""
    found = {f"without {key}": {name: copy.copy(value) for name, value in state.items() if name != key}
             for key in ("schema", "step", "engine", "watch", "ledger", "requests", "policy")}  # fmt: skip
    found |= {f"{key} is text": {**state, key: "x"} for key in ("step", "engine", "watch", "ledger", "requests")}
    table = copy.deepcopy(state)
    table["requests"] = [{"kind": "stop_training"}]
    return {**found, "a request without a reason": table, "empty": {"schema": 1}, "newer": {**state, "schema": 2}}


def test_a_spoilt_state_is_told_and_nothing_of_it_stays_in_force() -> None:
    with Guard("default", console=False) as donor:
        train(digits_model(), 90, donor)
        state = copy.deepcopy(donor.state_dict())
    assert [entry["action"] for entry in state["ledger"]["entries"]][-1] == "fallback_tokenizer"
    for name, spoilt in spoilt_states(state).items():
        recorder, model = Recorder(), digits_model()
        with Guard("default", console=False, sinks=[recorder]) as guard:
            guard.attach(model)
            guard.load_state_dict(spoilt)
            (probe,) = guard._watch.probes.values()
            faults = [event.fields["reason"] for event in recorder.of("fault")]
            assert any("the guard starts afresh" in reason for reason in faults), name
            assert (guard.steps, guard.interventions) == (0, [])
            assert (probe.view.is_frozen, probe.window.tallies) == (False, None)
            model.train()(torch.rand(8, 64))
            guard.step()
            assert guard.steps == 1


def test_a_state_that_cannot_be_had_is_told_and_the_users_checkpoint_is_saved_without_it() -> None:
    recorder = Recorder()
    with Guard("default", console=False, sinks=[recorder]) as guard:
        train(digits_model(), 90, guard)
        (standing,) = (entry.intervention for entry in guard._shift.ledger.entries if entry.is_in_force)

        def unspeakable() -> dict[str, Any]:
            raise RuntimeError("no words")

        standing.state_dict = unspeakable  # type: ignore[union-attr, method-assign]
        assert (guard.state_dict(), guard.state_dict()) == ({}, {})
    (fault,) = recorder.of("fault")
    assert fault.fields["where"] == "state"
    assert fault.fields["reason"] == "RuntimeError: no words; a checkpoint made now does not hold the guard's state"
    assert recorder.of("summary")


def test_an_older_state_without_the_newer_fields_is_restored() -> None:
    with Guard("default", console=False) as donor:
        train(digits_model(), 40, donor)
        state = copy.deepcopy(donor.state_dict())
    for name in ("readings", "started", "empty"):
        del state["watch"][name]
    del state["run"], state["ledger"]["taken_over"]
    recorder = Recorder()
    with Guard("default", console=False, sinks=[recorder]) as guard:
        guard.attach(digits_model())
        guard.load_state_dict(state)
        assert (guard.steps, recorder.of("fault")) == (40, [])


def test_whose_own_replacement_is_switched_off_is_known_after_a_resume() -> None:
    """It is a number on the module, in no state dict: the library would churn the codes that the guard placed."""
    from vector_quantize_pytorch import VectorQuantize

    def build() -> Any:
        torch.manual_seed(0)
        return torch.nn.ModuleDict({"q": VectorQuantize(dim=8, codebook_size=16, threshold_ema_dead_code=2)}).train()

    rule = {"name": "low", "when": "tokens > 0", "ladder": ["reset_codes"], "verify": {"within": "90 steps"}}
    policy = {"version": 1, "rules": [{**rule, "ladder": [{"reset_codes": {"scope": "all"}}]}],
              "sample": {"every": "1 steps", "when_suspect": "1 steps", "min_tokens": 1}}  # fmt: skip
    model = build()
    with Guard(policy, console=False) as guard:
        guard.attach(model)
        for _ in range(3):
            model["q"](torch.randn(4, 16, 8))
            guard.step()
        assert guard.interventions
        assert model["q"]._codebook.threshold_ema_dead_code == 0
        state = copy.deepcopy(guard.state_dict())
    model = build()
    with Guard(policy, console=False) as guard:
        guard.attach(model)
        guard.load_state_dict(state)
        assert model["q"]._codebook.threshold_ema_dead_code == 0
    assert model["q"]._codebook.threshold_ema_dead_code == 2


def test_user_objects_that_cannot_be_written_become_text(tmp_path: Path) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "odd \udcff one"

    sink = JsonLinesSink(tmp_path)
    sink.write(Event("fault", 1, {"where": Odd(), "reason": {Odd(): {1, 2}}, "tensor": torch.zeros(1)}))
    sink.close()
    (record,) = read_events(tmp_path)
    assert record["where"] == "odd ? one"


def test_a_clock_that_jumps_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def story(recorder: Recorder) -> list[tuple[int, str]]:
        return [(event.step, event.event) for event in recorder.events]

    calm, jumping = Recorder(), Recorder()
    with Guard("default", console=False, sinks=[calm]) as guard:
        train(digits_model(), 90, guard)
    clock = iter(range(10**6, 0, -1))
    monkeypatch.setattr("collapse_guard.guard.time.perf_counter", lambda: float(next(clock)))
    with Guard("default", console=False, sinks=[jumping]) as guard:
        train(digits_model(), 90, guard)
    assert story(jumping) == story(calm)


def test_sigterm_leaves_whole_lines_and_a_summary_where_the_loop_turns_it_into_an_exit(tmp_path: Path) -> None:
    program = prelude() + (
        "import signal\n"
        "from collapse_guard import Guard\n"
        "from tests.loops import digits_model, train\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"with Guard('default', console=False, log_dir={str(tmp_path)!r}) as guard:\n"
        "    train(digits_model(), 10**6, guard, before_step=lambda step: step == 40 and print('there', flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert process.returncode == 143
    lines = (tmp_path / "collapse_guard" / "events.jsonl").read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    assert (records[-1]["event"], records[-1]["ended_by"], records[-1]["closing"]) == ("summary", "SystemExit", True)
