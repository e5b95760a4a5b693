"""What the overhead bench trains: a small model and a realistic one around quantizers of vector-quantize-pytorch."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Realistic", "Small", "Trained"]

_D = 32
_TOKENS = 256  # of an image


class Small(nn.Module):
    """A multilayer perceptron around a codebook; 64 tokens a step."""

    batch: Tensor

    def __init__(self, K: int) -> None:
        """Draw weights and the one batch."""
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, _D))
        self.quantizer = VectorQuantize(dim=_D, codebook_size=K)
        self.decoder = nn.Sequential(nn.Linear(_D, 256), nn.ReLU(), nn.Linear(256, 64))
        self.register_buffer("batch", torch.randn(64, 64))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the loss and the codes."""
        quantised, codes, loss = self.quantizer(self.encoder(self.batch)[None])
        return functional.mse_loss(self.decoder(quantised[0]), self.batch) + loss.sum(), codes


class Realistic(nn.Module):
    """A convolutional VQ-VAE on images of 3 x 64 x 64, 256 tokens each, in one codebook or in levels."""

    batch: Tensor

    def __init__(self, K: int, levels: int = 1, *, images: int = 8) -> None:
        """Draw weights and the one batch."""
        from vector_quantize_pytorch import ResidualVQ, VectorQuantize

        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 64, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(128, _D, 1),
        )
        from_latents = images * _TOKENS >= K  # a healthy start, where there are enough of them
        self.quantizer: nn.Module = (
            ResidualVQ(dim=_D, codebook_size=K, num_quantizers=levels, kmeans_init=from_latents)
            if levels > 1
            else VectorQuantize(dim=_D, codebook_size=K, kmeans_init=from_latents)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(_D, 128, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 3, 4, 2, 1),
        )
        self.register_buffer("batch", torch.randn(images, 3, 64, 64))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the loss and the codes."""
        latents = self.encoder(self.batch)
        tokens = latents.flatten(2).transpose(1, 2)
        quantised, codes, loss = self.quantizer(tokens)
        decoded = self.decoder(quantised.transpose(1, 2).reshape(latents.shape))
        return functional.mse_loss(decoded, self.batch) + loss.sum(), codes


class Trained:
    """A model with its optimizer, and what is done after each step.

    Args:
        build: makes the model. device: where it trains.
    """

    def __init__(self, build: Callable[[], nn.Module], device: str | torch.device = "cpu") -> None:
        """Build it, the same for every arm."""
        torch.manual_seed(0)
        self.model = build().to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.after: Callable[[Tensor], object] = lambda codes: None

    def step(self) -> float:
        """Train one step; return its CPU seconds."""
        began = time.process_time()
        loss, codes = self.model()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.after(codes)
        return time.process_time() - began
