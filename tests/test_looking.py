"""What readings say of the graph before a quantizer: seen once a window, and nothing where nothing shows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Guard, probe
from tests.loops import Recorder

T, D = 12, 8
EVERY_4 = {"version": 1, "name": "look", "mode": "observe", "warmup": "0 steps",
           "sample": {"every": "4 steps", "when_suspect": "4 steps", "min_tokens": 1},
           "rules": [{"name": "never", "when": "perplexity < 0"}]}  # fmt: skip


class Coder(nn.Module):
    def __init__(self, *, mixes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(D, D)
        self.quantizer = VectorQuantize(dim=D, codebook_size=16, decay=0.9)
        self.mixes, self.detaches = mixes, False

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).detach() if self.detaches else self.encoder(x)
        quantized, _, own = self.quantizer(z.mT.reshape(z.shape) if self.mixes else z)
        loss: Tensor = functional.mse_loss(quantized, z.detach()) + own.sum() + self.encoder.bias.sum()
        return loss


def train(model: Coder, guard: Guard, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if not guard.is_attached:
        guard.attach(model, optimizer)
    for step in steps:
        loss = model(torch.randn(8, T, D, generator=torch.Generator().manual_seed(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guard.step()


def seen(recorder: Recorder) -> list[tuple[str, int | None]]:
    return [(event.fields["stage"], event.fields["reshaped"]) for event in recorder.of("reading")]


def guarded() -> tuple[Guard, Recorder]:
    recorder = Recorder()
    return Guard(EVERY_4, console=False, sinks=[recorder]), recorder


@pytest.mark.parametrize("mixes", [True, False])
def test_training_says_what_its_graph_shows_and_evaluation_says_nothing(mixes: bool) -> None:
    guard, recorder = guarded()
    model = Coder(mixes=mixes)
    with guard:
        train(model, guard, range(8))
        with guard.evaluate(), torch.no_grad():
            model.eval()(torch.randn(8, T, D))
        train(model.train(), guard, range(8, 12))
    assert seen(recorder) == [("train", int(mixes))] * 2 + [("eval", None)] + [("train", int(mixes))]


def test_what_was_seen_before_says_nothing_of_a_window_without_a_graph() -> None:
    guard, recorder = guarded()
    model = Coder(mixes=True)
    with guard:
        train(model, guard, range(4))
        model.detaches = True
        train(model, guard, range(4, 8))
        model.detaches = False
        train(model, guard, range(8, 12))
    assert [reshaped for _, reshaped in seen(recorder)] == [1, None, 1]


def test_a_forward_without_a_graph_does_not_hide_the_one_that_has_it() -> None:
    guard, recorder = guarded()
    model = Coder(mixes=True)
    with guard:
        train(model, guard, range(4))
        with torch.no_grad():
            model(torch.randn(8, T, D))
        train(model, guard, range(4, 8))
    assert [reshaped for _, reshaped in seen(recorder)] == [1, 1]


class Both(Coder):
    """Calls its quantizer twice at each step; once with what was mixed up."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:4]) + self.right(x)

    def right(self, x: Tensor) -> Tensor:
        own: Tensor = self.quantizer(self.encoder(x))[2].sum()
        return own


class Shorter(Both):
    def right(self, x: Tensor) -> Tensor:
        return Coder.forward(self, x[:, :5])


@pytest.mark.parametrize(("kind", "expected"), [(Both, None), (Shorter, 1)])
def test_two_forwards_that_differ_in_more_than_their_length_say_nothing(
    kind: type[Coder], expected: int | None
) -> None:
    guard, recorder = guarded()
    with guard:
        train(kind(mixes=True), guard, range(8))
    assert [reshaped for _, reshaped in seen(recorder)] == [expected] * 2


def test_what_a_window_has_shown_is_known_to_a_resumed_run(tmp_path: Path) -> None:
    guard, _ = guarded()
    model = Coder(mixes=True)
    with guard:
        train(model, guard, range(6))
        torch.save(guard.state_dict(), tmp_path / "guard.ckpt")
    other, recorder = guarded()
    with other:
        other.attach(model, torch.optim.SGD(model.parameters(), lr=1e-3))
        other.load_state_dict(torch.load(tmp_path / "guard.ckpt", weights_only=True))
        with torch.no_grad():
            model.train()(torch.randn(8, T, D))
        for _ in range(2):
            other.step()
    assert seen(recorder) == [("train", 1)]


def test_a_graph_that_cannot_be_followed_is_told_once_and_recording_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a node of another world")

    monkeypatch.setattr(probe, "mix_of", fail)
    guard, recorder = guarded()
    with guard, caplog.at_level(logging.WARNING, "collapse_guard"):
        train(Coder(mixes=True), guard, range(12))
    assert seen(recorder) == [("train", None)] * 3
    (said,) = caplog.messages
    assert said.startswith("quantizer: its graph cannot be followed (RuntimeError: a node of another world)")
