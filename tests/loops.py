"""A plain PyTorch loop on scikit-learn's digits with the reference quantizer: what most guard tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from collapse_guard import Event, Guard
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders


class Recorder:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def write(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.event in kinds]


def digits_model(seed: int = 0, quantizer: nn.Module | None = None, **options: Any) -> DigitsClassifier:
    torch.manual_seed(seed)
    return DigitsClassifier(quantizer if quantizer is not None else ReferenceQuantizer(**options))


def train(
    model: DigitsClassifier,
    steps: int,
    guard: Guard | None = None,
    *,
    seed: int = 0,
    before_step: Callable[[int], None] = lambda step: None,
) -> torch.optim.Optimizer:
    """Train for some steps; the guard, if any, is attached here and left open."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    if guard is not None:
        guard.attach(model, optimizer)
    model.train()
    loader, _ = digits_loaders(seed)
    torch.manual_seed(seed)
    done = 0
    while done < steps:
        for batch in loader:
            if done == steps:
                break
            before_step(done)
            loss = model.training_step(batch, done)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if guard is not None:
                guard.step(loss=float(loss.detach()))
    return optimizer
