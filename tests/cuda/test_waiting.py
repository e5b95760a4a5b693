"""When the host waits for the device: at readings, once for each codebook and a few times more, and never between."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import Guard
from collapse_guard.demos import SyncCounter
from collapse_guard.testing import Recorder
from tests import quantizers

from .scenes import D, K, batch, observing

EVERY = 10


class Model(nn.Module):
    """Two codebooks that wait for nothing themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, D)
        self.one, self.two = quantizers.Plain(K, D), quantizers.Learnable(K, D)

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss."""
        z = self.encoder(x)
        (q, loss, _), (r, further, _) = self.one(z), self.two(z)
        total: Tensor = functional.mse_loss(q + r, x) + loss + further
        return total


@contextmanager
def waiting(how: str) -> Iterator[list[str]]:
    """Let what waits for the device raise ("error"), or be counted ("warn")."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")  # also of what the mode says of itself
        torch.cuda.set_sync_debug_mode(how)
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [str(each.message) for each in seen if "called a synchronizing" in str(each.message)]


def step(model: Model, optimizer: torch.optim.Optimizer, guard: Guard | None, x: Tensor) -> None:
    optimizer.zero_grad()
    loss = model(x)
    loss.backward()
    optimizer.step()
    if guard is not None:
        guard.step(loss=loss)


def counted_on_the_cpu(guard: Guard | None) -> dict[int, int]:
    """Return by step what would have made the host wait for a device, the model's own doing included."""
    model = Model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    if guard is not None:
        guard.attach(model, optimizer)
    found = {}
    for number in range(1, 2 * EVERY + 1):
        with SyncCounter() as syncs:
            step(model, optimizer, guard, batch(number, torch.device("cpu")))
        found[number] = syncs.total
    return found


def test_gradients_that_are_felt_before_a_reading_wait_for_nothing() -> None:
    with Guard(observing(EVERY), console=False) as guard:
        watched = counted_on_the_cpu(guard)
    plain = counted_on_the_cpu(None)
    assert {number for number in plain if watched[number] > plain[number]} == {1, EVERY, 2 * EVERY}


@pytest.mark.parametrize("mode", ["observe", "act"])
def test_no_step_without_a_reading_waits(cuda: torch.device, mode: str) -> None:
    model, recorder = Model().to(cuda).train(), Recorder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    inputs = [batch(each, cuda) for each in range(3 * EVERY)]
    with waiting("error"):  # else the test would be about the model
        step(model, optimizer, None, inputs[0])
    policy = observing(EVERY) | {"mode": mode}
    counted = dict[int, int]()
    with Guard(policy, console=False, sinks=[recorder]) as guard:
        guard.attach(model, optimizer)
        for number, x in enumerate(inputs, 1):
            is_reading = number == 1 or number % EVERY == 0  # at the first step codes are checked to be in range
            with waiting("warn" if is_reading else "error") as found:
                step(model, optimizer, guard, x)
            counted[number] = len(found)
        assert len(guard._watch.probes) == 2
    assert not recorder.of("fault")
    assert len(recorder.of("reading")) == 3 * 2
    assert {number for number, count in counted.items() if count} <= {1, *range(EVERY, 3 * EVERY + 1, EVERY)}
    # One copy for each codebook, one number for the loss; the first reading also asks whether the codebooks have begun.
    assert max(counted[2 * EVERY], counted[3 * EVERY]) <= 2 * 2 + 1, counted
