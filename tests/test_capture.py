"""A forward that is captured in a CUDA graph, on the CPU: only what says that one is being captured is replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from collapse_guard import Guard
from collapse_guard.testing import Recorder
from collapse_guard.window import Window
from tests.cuda.scenes import acting
from tests.quantizers import Plain


def guarded(policy: Any) -> tuple[Plain, Guard, Recorder]:
    model, recorder = Plain(16, 8).train(), Recorder()
    guard = Guard(policy, console=False, sinks=[recorder])
    guard.attach(model)
    return model, guard, recorder


def captured(monkeypatch: pytest.MonkeyPatch, model: Plain) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("collapse_guard.probe.is_capturing", lambda: True)
        model(torch.randn(2, 300, 8))


def test_a_capture_after_a_forward_is_recorded_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guard, recorder = guarded("observe")
    for _ in range(2):
        model(torch.randn(2, 300, 8))
        guard.step()
    captured(monkeypatch, model)
    for _ in range(3):
        guard.step()
    (probe,) = guard._watch.probes.values()
    assert probe.view.is_captured
    assert probe.window.tallies is not None
    assert int(probe.window.tallies.sum()) == 3 * 600
    (fault,) = recorder.of("fault")
    assert "every replay counts its codes" in fault.fields["reason"]


def test_a_capture_before_any_forward_asks_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking a value would end the capture, and memory allocated in there would be emptied by each replay."""
    model, guard, recorder = guarded("observe")
    captured(monkeypatch, model)
    guard.step()
    (probe,) = guard._watch.probes.values()
    assert probe.is_recording
    assert probe.window.tallies is None
    (fault,) = recorder.of("fault")
    assert "Attach the guard before the warm-up steps" in fault.fields["reason"]


def test_what_a_replay_renews_belongs_to_every_window() -> None:
    window = Window(16, 8)
    window.add(torch.zeros(300, dtype=torch.int64), torch.randn(300, 8))
    window.add(torch.zeros(300, dtype=torch.int64), torch.ones(300, 8), in_graph=True)
    window.restart()
    latents, valid = window.spread(1000)
    assert torch.equal(latents, torch.ones(256, 8))
    assert bool(valid.all())
    assert not window.has_begun
    window.add(torch.zeros(10, dtype=torch.int64), torch.ones(10, 8))
    assert window.has_begun


def test_what_a_replay_would_not_reach_is_refused_and_a_freeze_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    fallback = {"fallback_tokenizer": {"refit_every": "100 steps"}}
    model, guard, recorder = guarded(acting({"decay_commitment": {}}, fallback))
    model(torch.randn(2, 300, 8))
    captured(monkeypatch, model)
    for _ in range(6):
        model(torch.randn(2, 300, 8))
        guard.step()
    told = {event.fields["action"]: event.fields for event in recorder.of("intervention")}
    assert told["decay_commitment"]["result"] == "refused"
    assert "replayed as a CUDA graph" in str(told["decay_commitment"])
    assert told["fallback_tokenizer"]["result"] == "applied"
    table, counts = model.omega.clone(), model.rho.clone()
    model.omega.mul_(2)  # as a replay does, past every hook
    model.rho.add_(1)
    guard.step()
    assert torch.equal(model.omega, table)
    assert torch.equal(model.rho, counts)
