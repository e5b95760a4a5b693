"""One run of a scenario: a small autoencoder of tokens, trained under a guard that observes, and what was said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard import Event, Guard
from collapse_guard.policies import Cause

from .data import FEATURES, Source

__all__ = ["Course", "Scenario", "TokenCoder"]

Through = Literal["output", "codes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A training, and what goes wrong in it.

    Attributes:
        name: unique. family: of the quantizer. says: what happens, in one sentence.
        cause: what a diagnosis should find; `None` where nothing is wrong.
        quantizer: makes it. data: what it is trained on.
        D: dimension of a latent. pieces: of how many latents the encoder's output is cut.
        steps: optimizer steps. learning_rate: Adam's.
        through: what the decoder is given: the quantizer's output, or vectors looked up by its codes.
        tamper: called before each step with the course and the step.
        codebook: name of the codebook that is judged.
    """

    name: str
    family: str
    says: str
    quantizer: Callable[[], nn.Module]
    data: Source
    cause: Cause | None = None
    D: int = 16
    pieces: int = 1
    steps: int = 120
    learning_rate: float = 1e-3
    through: Through = "output"
    tamper: Callable[[Course, int], None] | None = None
    codebook: str = "quantizer"


class TokenCoder(nn.Module):
    """Encodes each token to a latent, quantizes, decodes."""

    def __init__(self, quantizer: nn.Module, D: int, pieces: int, through: Through) -> None:
        """Build encoder and decoder around the quantizer."""
        super().__init__()
        self.D, self.through = D, through
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, D * pieces))
        self.quantizer = quantizer
        self.decoder = nn.Sequential(nn.Linear(D * pieces, 64), nn.GELU(), nn.Linear(64, FEATURES))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return decoded tokens (B, T, F) and the quantizer's loss."""
        latents = self.encoder(tokens)
        quantized, codes, loss = self.quantizer(latents.reshape(len(tokens), -1, self.D))
        if self.through == "codes":
            quantized = self.quantizer.get_codes_from_indices(codes)  # type: ignore[operator]
        return self.decoder(quantized.reshape(latents.shape)), loss.sum()


@dataclass(slots=True)
class Course:
    """A scenario while it runs.

    Attributes:
        scenario: which. seed: of data, weights and order.
        model, optimizer: what is trained. scale: of the loss. events: what the guard told.
    """

    scenario: Scenario
    seed: int
    model: TokenCoder = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scale: float = 1.0
    events: list[Event] = field(default_factory=list)

    def write(self, event: Event) -> None:
        """Keep what the guard tells: a course is its sink."""
        self.events.append(event)

    def close(self) -> None:
        """Nothing is held."""

    def run(self, policy: Any) -> None:
        """Train to the end under a policy."""
        it = self.scenario
        torch.manual_seed(self.seed)
        draw = it.data.open(torch.Generator().manual_seed(self.seed))
        self.model = TokenCoder(it.quantizer(), it.D, it.pieces, it.through)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=it.learning_rate)
        guard = Guard(policy, console=False, sinks=[self], seed=self.seed)
        for step in range(it.steps):
            batch = draw(step)
            if it.tamper is not None:
                it.tamper(self, step)
            if step == 0:
                guard.attach(self.model, self.optimizer)
            decoded, own = self.model(batch)
            loss = self.scale * (functional.mse_loss(decoded, batch) + own)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            guard.step(loss=float(loss.detach()))
        guard.close()
