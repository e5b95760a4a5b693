"""The reference quantizer: a home-made EMA codebook with one factor missing.

It is what people write from a paper in an afternoon. Its smoothed code counts are normalised to fractions and never
multiplied back by the total n, so every code grows by a factor of about n until all inputs fall on the one that is
still short. Its restart of dead codes writes the table only, which the next moving average overwrites.
`repaired=True` puts the factor back. The other options are what its owner would have tuned; see `bench_ablation`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ReferenceQuantizer"]


class ReferenceQuantizer(nn.Module):
    """Vector quantizer with a codebook moved by exponential moving averages.

    Args:
        K: number of codes.
        D: their dimension.
        decay: of the moving averages.
        commitment: weight of the loss that pulls the encoder towards its codes.
        restart_every: steps between restarts of codes that starve.
        starved_below: a code with a lower moving-average count starves.
        restarts_averages: a restart writes count and sum as well, and so outlasts the next update.
        normalised: whether inputs are L2-normalised.
        repaired: multiply the smoothed counts back by n.
    """

    codebook: Tensor
    usage: Tensor
    accumulated: Tensor
    steps: Tensor

    def __init__(
        self,
        K: int = 256,
        D: int = 64,
        *,
        decay: float = 0.95,
        commitment: float = 0.4,
        restart_every: int = 100,
        starved_below: float = 0.1,
        restarts_averages: bool = False,
        normalised: bool = True,
        repaired: bool = False,
    ) -> None:
        """Start from random codes; the first training batch replaces them by its own latents."""
        super().__init__()
        self.decay = decay
        self.commitment = commitment
        self.restart_every = restart_every
        self.starved_below = starved_below
        self.restarts_averages = restarts_averages
        self.normalised = normalised
        self.repaired = repaired
        start = functional.normalize(torch.randn(K, D), dim=-1)
        self.register_buffer("codebook", start)
        self.register_buffer("usage", torch.ones(K))
        self.register_buffer("accumulated", start.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize.

        Args:
            inputs: (..., D).

        Returns:
            Straight-through output (..., D), codes (...) and the weighted commitment loss.
        """
        latents = functional.normalize(inputs, dim=-1) if self.normalised else inputs
        flat = latents.reshape(-1, latents.shape[-1])
        if self.training and self.steps == 0:
            self._start_from(flat.detach())
        codes = torch.cdist(flat, self.codebook).argmin(dim=-1)
        quantized = self.codebook[codes].reshape(latents.shape)
        loss = self.commitment * functional.mse_loss(latents, quantized)
        if self.training:
            self._update(flat.detach(), codes)
        output = latents + (quantized - latents).detach()
        return output, codes.reshape(latents.shape[:-1]), loss

    @torch.no_grad()
    def _start_from(self, flat: Tensor) -> None:
        chosen = flat[torch.randint(len(flat), (len(self.codebook),))]
        self.codebook.copy_(1.2 * chosen + 0.02 * torch.randn_like(chosen))
        self.accumulated.copy_(self.codebook)

    @torch.no_grad()
    def _update(self, flat: Tensor, codes: Tensor) -> None:
        self.steps += 1
        if int(self.steps) % self.restart_every == 0:
            self._restart(flat)
        assigned = functional.one_hot(codes, len(self.codebook)).to(flat.dtype)
        self.usage.mul_(self.decay).add_(assigned.sum(dim=0), alpha=1 - self.decay)
        self.accumulated.mul_(self.decay).add_(assigned.t() @ flat, alpha=1 - self.decay)
        n = self.usage.sum()
        smoothed = (self.usage + 1e-5) / (n + len(self.usage) * 1e-5)
        if self.repaired:
            smoothed = smoothed * n  # the missing factor
        self.codebook.copy_(self.accumulated / smoothed.unsqueeze(-1))

    def _restart(self, flat: Tensor) -> None:
        starved = self.usage < self.starved_below
        chosen = flat[torch.randint(len(flat), (int(starved.sum()),))]
        self.codebook[starved] = chosen
        if self.restarts_averages:
            self.usage[starved] = 1.0
            self.accumulated[starved] = chosen

    def perplexity(self, codes: Tensor) -> float:
        """Return the perplexity of some codes under this codebook's size; for tables, not for the guard."""
        share = torch.bincount(codes.flatten(), minlength=len(self.codebook)).double() / codes.numel()
        share = share[share > 0]
        return cast(float, (-(share * share.log()).sum()).exp().item())
