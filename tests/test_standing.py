"""A codebook that nothing moves: how a guard sees it, and what `default` does about it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Guard
from tests.loops import Recorder

K, D = 64, 8
EACH_STEP = {"version": 1, "name": "look", "mode": "observe", "warmup": "0 steps",
             "sample": {"every": "1 steps", "when_suspect": "1 steps", "min_tokens": 1},
             "rules": [{"name": "never", "when": "perplexity < 0"}]}  # fmt: skip


class Model(nn.Module):
    """An encoder before a quantizer whose codebook may be frozen."""

    def __init__(self, *, is_frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(D, D)
        self.vq = VectorQuantize(dim=D, codebook_size=K, decay=0.9, freeze_codebook=is_frozen)

    def forward(self, x: Tensor) -> Tensor:
        quantized, _, own = self.vq(self.encoder(x))
        loss: Tensor = functional.mse_loss(quantized, x) + own
        return loss


def batch(step: int) -> Tensor:
    return 3 * torch.randn(1, 256, D, generator=torch.Generator().manual_seed(step))


def train(model: Model, guard: Guard, steps: range) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if steps.start == 0:
        guard.attach(model, optimizer)
    for step in steps:
        loss = model(batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guard.step(loss=loss.item())


def flags(recorder: Recorder) -> list[int | None]:
    return [event.fields["unmoved"] for event in recorder.of("reading")]


def test_a_codebook_is_unmoved_where_nothing_has_changed_it_since_its_reading_before() -> None:
    for is_frozen in (True, False):
        recorder, model = Recorder(), Model(is_frozen=is_frozen)
        guard = Guard(EACH_STEP, console=False, sinks=[recorder])
        train(model, guard, range(3))
        with torch.no_grad():
            codebook: Any = model.vq._codebook
            codebook.embed[0, 3] += 1e-3
        train(model, guard, range(3, 5))
        guard.close()
        assert flags(recorder) == [None, *([1, 1, 0, 1] if is_frozen else [0, 0, 0, 0])]


def test_a_resumed_guard_knows_the_codebook_of_the_reading_before() -> None:
    model, first = Model(is_frozen=True), Guard(EACH_STEP, console=False)
    train(model, first, range(3))
    state = copy.deepcopy(first.state_dict())
    first.close()
    recorder = Recorder()
    second = Guard(EACH_STEP, console=False, sinks=[recorder]).attach(model)
    second.load_state_dict(state)
    train(model, second, range(3, 4))
    second.close()
    assert flags(recorder) == [1]


def test_default_places_the_codes_of_a_frozen_codebook_and_then_moves_them_itself() -> None:
    """It was frozen as it had started, far too small for its latents, and what is placed once is soon left behind."""
    recorder, model = Recorder(), Model(is_frozen=True)
    guard = Guard("default", console=False, sinks=[recorder])
    train(model, guard, range(120))
    before = model.vq.codebook.detach().clone()
    train(model, guard, range(120, 121))
    guard.close()
    done = [(event.fields["rule"], event.fields["action"]) for event in recorder.of("intervention")]
    assert ("standing", "take_over_updates") in done
    assert not torch.equal(model.vq.codebook, before)
    assert flags(recorder)[-1] == 0
    assert recorder.of("reading")[-1].fields["frozen"] == 0
