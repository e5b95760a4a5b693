"""The two families that the scenarios are built from, with the mistakes that people make in them as options.

The home-made one is laid out like the EMA codebooks of audio codecs: a leaf with `embed`, `embed_avg` and
`cluster_size`, and around it the straight-through estimator and the commitment loss. The other is
vector-quantize-pytorch's own class, which is imported when it is first built.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["EmaCodebook", "EmaQuantizer", "EmaResidualQuantizer", "residual_quantize", "vector_quantize"]

Start = Literal["data", "kmeans", "kmeans_unscaled", "normal"]


class EmaCodebook(nn.Module):
    """A codebook moved by averages.

    Args:
        K: number of codes. D: their dimension. decay: of the averages.
        start: `data`: latents of the first batch; `kmeans`: their centroids; `kmeans_unscaled`: the same, with the
            mistake that the moving sums are not multiplied by the counts; `normal`: random codes of length `scale`.
        scale: see `start`. offset: added to every feature of a `normal` start.
        unscaled: make the mistake that the smoothed cluster size is not multiplied back by n.
        restart: what becomes of codes that starve: nothing, `noise` (random codes, far away), or `table`: latents
            written to the table alone, which the next average overwrites.
    """

    embed: Tensor
    embed_avg: Tensor
    cluster_size: Tensor
    inited: Tensor

    def __init__(
        self,
        K: int,
        D: int,
        *,
        decay: float = 0.9,
        start: Start = "data",
        scale: float = 1.0,
        offset: float = 0.0,
        unscaled: bool = False,
        restart: Literal["", "noise", "table"] = "",
    ) -> None:
        """Start from random codes; the first batch replaces them where `start` says so."""
        super().__init__()
        self.decay, self.start, self.unscaled, self.restart = decay, start, unscaled, restart
        codes = scale * functional.normalize(torch.randn(K, D), dim=-1) + offset
        self.register_buffer("embed", codes)
        self.register_buffer("embed_avg", codes.clone())
        self.register_buffer("cluster_size", torch.ones(K))
        self.register_buffer("inited", torch.tensor(start == "normal"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (quantized, codes) of latents (..., D)."""
        flat = x.reshape(-1, x.shape[-1])
        if not self.inited:
            self._begin(flat.detach())
        codes = torch.cdist(flat.detach(), self.embed).argmin(dim=-1)
        quantized = self.embed[codes].reshape(x.shape)
        if self.training:
            self._update(flat.detach(), codes)
        return quantized, codes.reshape(x.shape[:-1])

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of latents (..., D), and move nothing."""
        return torch.cdist(x.reshape(-1, x.shape[-1]), self.embed).argmin(dim=-1).reshape(x.shape[:-1])

    @torch.no_grad()
    def _begin(self, flat: Tensor) -> None:
        K = len(self.embed)
        table = flat[torch.randint(len(flat), (K,))] + 1e-3 * torch.randn(K, flat.shape[1])
        counts = torch.ones(K)
        if self.start != "data":
            for _ in range(10):
                codes = torch.cdist(flat, table).argmin(dim=-1)
                counts = torch.bincount(codes, minlength=K).float()
                sums = torch.zeros_like(table).index_add_(0, codes, flat)
                table = torch.where(counts.unsqueeze(-1) > 0, sums / counts.clamp(min=1).unsqueeze(-1), table)
            counts = counts.clamp(min=1)
        self.embed.copy_(table)
        self.cluster_size.copy_(counts)
        self.embed_avg.copy_(table if self.start == "kmeans_unscaled" else table * counts.unsqueeze(-1))
        self.inited.fill_(True)

    @torch.no_grad()
    def _update(self, flat: Tensor, codes: Tensor) -> None:
        K = len(self.embed)
        self.cluster_size.lerp_(torch.bincount(codes, minlength=K).float(), 1 - self.decay)
        self.embed_avg.lerp_(torch.zeros_like(self.embed).index_add_(0, codes, flat), 1 - self.decay)
        n = self.cluster_size.sum()
        size = (self.cluster_size + 1e-5) / (n + K * 1e-5)
        self.embed.copy_(self.embed_avg / (size if self.unscaled else size * n).unsqueeze(-1))
        starved = self.cluster_size < 0.05
        if self.restart == "noise":
            fresh = 5 * flat.std() * torch.randn_like(self.embed)
            self.embed[starved] = fresh[starved]
            self.embed_avg[starved] = fresh[starved] * self.cluster_size[starved].unsqueeze(-1)
        elif self.restart == "table":
            self.embed[starved] = flat[torch.randint(len(flat), (int(starved.sum()),))]


class EmaQuantizer(nn.Module):
    """Straight-through estimator and commitment loss around an `EmaCodebook`.

    Args:
        K, D: of the codebook. commitment_weight: of the loss.
        straight_through: hand the gradient of the output on to the input; `False` is the mistake of leaving that out.
        options: of `EmaCodebook`.
    """

    def __init__(
        self, K: int, D: int, *, commitment_weight: float = 0.25, straight_through: bool = True, **options: Any
    ) -> None:
        """Build the codebook."""
        super().__init__()
        self._codebook = EmaCodebook(K, D, **options)
        self.commitment_weight = commitment_weight
        self.straight_through = straight_through

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (quantized, codes, loss) of latents (..., D)."""
        quantized, codes = self._codebook(x)
        loss = self.commitment_weight * functional.mse_loss(x, quantized.detach())
        return (x + (quantized - x).detach() if self.straight_through else quantized), codes, loss


class EmaResidualQuantizer(nn.Module):
    """Levels of `EmaQuantizer`, each coding what the ones before left over.

    Args:
        levels: how many. rarely: share of the batches that the finer levels are given, dropped at random else.
        K, D, options: of every level.
    """

    def __init__(self, levels: int, K: int, D: int, *, rarely: float = 1.0, **options: Any) -> None:
        """Build the levels."""
        super().__init__()
        self.layers = nn.ModuleList(EmaQuantizer(K, D, **options) for _ in range(levels))
        self.rarely = rarely

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (quantized, codes (..., levels), loss)."""
        left, total, codes, loss = x, torch.zeros_like(x), [], x.new_zeros(())
        for level, layer in enumerate(self.layers):
            if level and self.training and float(torch.rand(())) >= self.rarely:
                break
            quantized, chosen, own = layer(left)
            left, total, loss = left - quantized.detach(), total + quantized, loss + own
            codes.append(chosen)
        return total, torch.stack(codes, dim=-1), loss


def vector_quantize(K: int, D: int, **options: Any) -> nn.Module:
    """Return a `VectorQuantize` of vector-quantize-pytorch."""
    from vector_quantize_pytorch import VectorQuantize

    made: nn.Module = VectorQuantize(dim=D, codebook_size=K, **{"commitment_weight": 0.25, "decay": 0.9, **options})
    return made


def residual_quantize(levels: int, K: int, D: int, **options: Any) -> nn.Module:
    """Return a `ResidualVQ` of vector-quantize-pytorch."""
    from vector_quantize_pytorch import ResidualVQ

    options = {"commitment_weight": 0.25, "decay": 0.9, "kmeans_init": True, **options}
    made: nn.Module = ResidualVQ(dim=D, num_quantizers=levels, codebook_size=K, **options)
    return made
