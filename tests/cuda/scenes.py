"""A small model around each kind of quantizer, on any device, and policies that do one thing as soon as they can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from collapse_guard import GenericVQ, Guard
from collapse_guard.testing import Recorder
from tests import quantizers

__all__ = ["KINDS", "D", "K", "Model", "Run", "acting", "batch", "observing", "same_bits"]

K, D = 32, 8


@dataclass(frozen=True)
class Kind:
    """A quantizer, how its owner describes it where it is not recognised, and how many codebooks it has."""

    build: Callable[[], nn.Module]
    adapters: Mapping[str, GenericVQ] = field(default_factory=dict)
    codebooks: int = 1


KINDS: dict[str, Kind] = {
    "ema": Kind(lambda: VectorQuantize(dim=D, codebook_size=K, decay=0.9)),
    "cosine": Kind(lambda: VectorQuantize(dim=D, codebook_size=K, decay=0.9, use_cosine_sim=True)),
    "learnable": Kind(lambda: VectorQuantize(dim=D, codebook_size=K, learnable_codebook=True, ema_update=False)),
    "residual": Kind(lambda: ResidualVQ(dim=D, codebook_size=K, num_quantizers=2, decay=0.9), codebooks=2),
    "home-made": Kind(lambda: quantizers.Plain(K, D)),
    "embedding": Kind(
        lambda: quantizers.Learnable(K, D),
        {"quantizer": GenericVQ(table="embedding.weight", codes=lambda output: output[2], commitment="beta")},
    ),
}


class Model(nn.Module):
    """An encoder that moves, and a quantizer of any kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder = nn.Linear(D, D)
        self.quantizer = KINDS[kind].build()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the codes, (..., levels) of a residual."""
        output = self.quantizer(self.encoder(x))
        quantised, *others = output
        codes = next(each for each in others if not each.is_floating_point())
        own = next(each for each in others if each.is_floating_point())
        return functional.mse_loss(quantised, x) + own.sum(), codes


def batch(step: int, device: torch.device, n: int = 200) -> Tensor:
    """Return (2, n / 2, D) inputs around twelve centres, the same ones at the same step on every device."""
    generator = torch.Generator().manual_seed(step)
    centres = 3 * torch.randn(12, D, generator=torch.Generator().manual_seed(7))
    rows = centres[torch.randint(12, (n,), generator=generator)] + 0.3 * torch.randn(n, D, generator=generator)
    return rows.reshape(2, n // 2, D).to(device)


class Run:
    """A run of so many steps, guarded or not.

    Attributes:
        codes: of every step, on the host.
    """

    def __init__(self, kind: str, device: torch.device, policy: Any = None) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = Model(kind).to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.recorder = Recorder()
        self.done = 0
        self.codes: list[Tensor] = []
        self.guard: Guard | None = None
        if policy is not None:
            adapters = KINDS[kind].adapters
            self.guard = Guard(policy, console=False, sinks=[self.recorder], adapters=adapters)
            self.guard.attach(self.model, self.optimizer)

    def train(self, steps: int) -> None:
        """Go on for some steps."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss, codes = self.model(batch(self.done, self.device))
            loss.backward()
            self.optimizer.step()
            self.codes.append(codes.cpu())
            self.done += 1
            if self.guard is not None:
                self.guard.step(loss=loss)

    @property
    def views(self) -> list[Any]:
        """The handles of its codebooks."""
        assert self.guard is not None
        return self.guard.views(self.guard._watch.probes)

    def told(self) -> dict[str, str]:
        """Return what the log said of each action when it was tried last."""
        return {each.fields["action"]: each.fields["result"] for each in self.recorder.of("intervention")}

    def results(self) -> list[str]:
        """Return what became of each intervention and refusal, in order."""
        return [event.fields["result"] for event in self.recorder.of("intervention")]


def observing(every: int) -> dict[str, Any]:
    """Return a policy that only looks, and often."""
    sample = {"every": f"{every} steps", "when_suspect": f"{every} steps", "min_tokens": 1}
    return {"version": 1, "name": "look", "extends": "observe", "sample": sample}


def acting(*ladder: Mapping[str, Any], every: int = 2) -> dict[str, Any]:
    """Return a policy of one rule that always fires, and climbs the ladder as no rung ever helps."""
    rule = {
        "name": "always",
        "when": "perplexity < 1000000",
        "for": 1,
        "clear": {"when": "perplexity >= 1000000", "for": 1},
        "severity": "warning",
        "cooldown": "1 steps",
        "verify": {"within": f"{4 * every} steps"},
        "ladder": list(ladder),
    }
    return {
        "version": 1,
        "name": "busy",
        "mode": "act",
        "sample": {"every": f"{every} steps", "when_suspect": f"{every} steps", "min_tokens": 1},
        "warmup": f"{every} steps",
        "budget": {"interventions": 100, "refill_after": "10 steps"},
        "rules": [rule],
    }


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
