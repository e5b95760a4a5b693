"""Small models whose quantizer hands no gradient on, and the runs of a guard that bridges it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.autoencoders.vae import VectorQuantizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch import VectorQuantize

from collapse_guard import Guard
from tests.loops import Recorder, policy_of

C, D, K = 6, 4, 32
RULE: dict[str, Any] = {
    "name": "cut_off",
    "when": "task_gradient < 0.002",
    "for": 1,
    "clear": {"when": "task_gradient >= 0.01", "for": 2},
    "verify": {"within": "40 steps"},
    "ladder": ["bridge_gradient"],
}


class Plain(nn.Module):
    """A home-made quantizer that returns its codes as they are; of a learnable codebook, or one of moving averages."""

    def __init__(self, *, learns: bool, has_commitment: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(K, D)
        self.embedding.weight.requires_grad_(learns)
        if not learns:
            self.register_buffer("cluster_size", torch.ones(K))
            self.register_buffer("embed_avg", self.embedding.weight.clone())
        self.has_commitment = has_commitment

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = z.reshape(-1, D)
        codes = torch.cdist(flat, self.embedding.weight).argmin(dim=-1)
        quantized = self.embedding(codes).reshape(z.shape)
        own = 0.25 * functional.mse_loss(z, quantized.detach()) if self.has_commitment else z.new_zeros(())
        if self.embedding.weight.requires_grad:
            own = own + functional.mse_loss(quantized, z.detach())
        return quantized, codes.reshape(z.shape[:-1]), own


class Images(nn.Module):
    """diffusers' quantizer, called with tokens (B, T, D)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.vq = VectorQuantizer(K, D, beta=0.25, legacy=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, own, (*_, codes) = self.vq(z.mT.unsqueeze(-1))
        return quantized.squeeze(-1).mT, codes, own


class Coder(nn.Module):
    """Encoder, quantizer, decoder.

    Args:
        quantizer: of (B, T, D). hand: makes what is decoded of the quantised vectors and the latents.
        decode: calls the decoder.
    """

    def __init__(
        self,
        quantizer: nn.Module,
        hand: Callable[[Tensor, Tensor], Tensor] = lambda quantized, z: quantized,
        decode: Callable[[nn.Module, Tensor], Tensor] = lambda decoder, tokens: decoder(tokens),
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(C, D)
        self.decoder = nn.Sequential(nn.Linear(D, 8), nn.GELU(), nn.Linear(8, C))
        self.quantizer = quantizer
        self.hand, self.decode = hand, decode

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        quantized, _, own = self.quantizer(z)
        return self.decode(self.decoder, self.hand(quantized, z)), own


def detached(quantized: Tensor, z: Tensor) -> Tensor:
    return quantized.detach()


def straight_through(quantized: Tensor, z: Tensor) -> Tensor:
    return z + (quantized - z).detach()


def copied(quantized: Tensor, z: Tensor) -> Tensor:
    return quantized.detach() * 1.0


def turned_and_copied(quantized: Tensor, z: Tensor) -> Tensor:
    return quantized.mT.contiguous().mT


def batch(step: int) -> Tensor:
    return torch.randn(16, 5, C, generator=torch.Generator().manual_seed(step))


def loss_of(model: Coder, step: int, within: AbstractContextManager[Any] | None = None) -> Tensor:
    """Return the loss of a step, computed `within` a context such as autocast."""
    with within or nullcontext():
        made, own = model(batch(step))
    total: Tensor = functional.mse_loss(made.float(), batch(step)) + own.float()
    return total


def stepped(
    model: Coder, optimizer: torch.optim.Optimizer, step: int, within: AbstractContextManager[Any] | None = None
) -> float:
    loss = loss_of(model, step, within)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def policy(**changes: Any) -> dict[str, Any]:
    return policy_of(RULE | changes)


def trained(
    model: Coder,
    steps: range,
    *,
    recorder: Recorder | None = None,
    within: AbstractContextManager[Any] | None = None,
    **changes: Any,
) -> tuple[Guard, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    guard = Guard(policy(**changes), console=False, sinks=[recorder] if recorder is not None else [])
    guard.attach(model.train(), optimizer)
    for step in steps:
        guard.step(loss=stepped(model, optimizer, step, within))
    return guard, optimizer


def encoder_gradient(model: Coder, within: AbstractContextManager[Any] | None = None) -> Tensor:
    model.zero_grad()
    loss_of(model, 99, within).backward()
    assert model.encoder.weight.grad is not None
    return model.encoder.weight.grad.clone()


def results(guard: Guard) -> list[tuple[str, str]]:
    return [(each["action"], each["result"]) for each in guard.interventions]


def learnable() -> Plain:
    return Plain(learns=True)


def averaged() -> Plain:
    return Plain(learns=False)


def lucidrains() -> nn.Module:
    torch.manual_seed(1)
    module: nn.Module = VectorQuantize(dim=D, codebook_size=K, decay=0.9, rotation_trick=False)
    return module


def plainly(decoder: nn.Module, tokens: Tensor) -> Any:
    return decoder(tokens)


def checkpointed(decoder: nn.Module, tokens: Tensor) -> Any:
    return checkpoint(decoder, tokens, use_reentrant=False)


def turned(decoder: nn.Module, tokens: Tensor) -> Any:
    return decoder(tokens.movedim(1, 0)).movedim(0, 1)
