"""A plain PyTorch loop on digits with the reference quantizer, which most guard tests run, and policies of rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from collapse_guard import Guard
from collapse_guard.demos import DigitsClassifier, ReferenceQuantizer, digits_loaders
from collapse_guard.testing import Recorder as Recorder


def policy_of(*rules: Mapping[str, Any], every: int = 5, min_tokens: int = 64) -> dict[str, Any]:
    """Return a policy of these rules that reads every so many steps, whatever it suspects."""
    sample = {"every": f"{every} steps", "when_suspect": f"{every} steps", "min_tokens": min_tokens}
    return {"version": 1, "name": "one", "sample": sample, "rules": [dict(rule) for rule in rules]}


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
