"""Quantizers as people write them, under names that give nothing away.

None is copied; each has one habit seen in the wild.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Plain(nn.Module):
    """Squared distances by expansion, buffers under meaningless names, codes in a tuple."""

    alpha: Tensor
    omega: Tensor
    rho: Tensor

    def __init__(self, K: int = 16, D: int = 8) -> None:
        super().__init__()
        start = torch.randn(K, D)
        self.register_buffer("alpha", start.clone())
        self.register_buffer("omega", start.clone())
        self.register_buffer("rho", torch.ones(K))
        self.decay = 0.9
        self.commitment_cost = 0.25

    def latents(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])

    def search(self, z: Tensor) -> Tensor:
        squares = (z**2).sum(1, keepdim=True) + (self.omega**2).sum(1) - 2 * z @ self.omega.t()
        return squares.argmin(1)

    def update(self, z: Tensor, codes: Tensor) -> None:
        hits = functional.one_hot(codes, len(self.rho)).to(z.dtype)
        self.rho.mul_(self.decay).add_(hits.sum(0), alpha=1 - self.decay)
        self.alpha.mul_(self.decay).add_(hits.t() @ z, alpha=1 - self.decay)
        n = self.rho.sum()
        self.omega.copy_(self.alpha / ((self.rho + 1e-5) / (n + len(self.rho) * 1e-5) * n).unsqueeze(1))

    def forward(self, x: Tensor) -> Any:
        z = self.latents(x)
        codes = self.search(z.detach())
        q = self.omega[codes].reshape(x.shape)
        loss = self.commitment_cost * functional.mse_loss(x, q.detach())
        if self.training:
            with torch.no_grad():
                self.update(z.detach(), codes)
        return x + (q - x).detach(), loss, codes


class Normalising(Plain):
    """Normalises its input inside the forward and compares it with raw rows by cdist; returns a dict."""

    def forward(self, x: Tensor) -> Any:
        x = functional.normalize(x, dim=-1)
        z = self.latents(x)
        codes = torch.cdist(z.detach(), self.omega).argmin(-1)
        q = self.omega[codes].reshape(x.shape)
        if self.training:
            with torch.no_grad():
                self.update(z.detach(), codes)
        return {"out": x + (q - x).detach(), "indices": codes.reshape(x.shape[:-1]), "loss": x.sum() * 0}


class Cosine(Plain):
    """Normalises both sides for the search, keeps raw rows."""

    def search(self, z: Tensor) -> Tensor:
        return torch.einsum(
            "nd,kd->nk", functional.normalize(z, dim=-1), functional.normalize(self.omega, dim=-1)
        ).argmax(-1)


class ChannelFirstOneHot(nn.Module):
    """Images (B, D, H, W), table in a child embedding that is re-bound at each step, codes only as one-hot rows."""

    seen: Tensor
    clock: Tensor

    def __init__(self, K: int = 16, D: int = 8) -> None:
        super().__init__()
        self.rows = nn.Embedding(K, D)
        self.rows.weight.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(K))
        self.register_buffer("clock", torch.zeros(K))  # another (K,) tensor that is no EMA count
        self.moving = nn.Parameter(self.rows.weight.detach().clone(), requires_grad=False)
        self.beta = 0.25

    def forward(self, x: Tensor) -> Any:
        moved = x.permute(0, 2, 3, 1).contiguous()
        z = moved.reshape(-1, moved.shape[-1])
        scores = torch.sum(z**2, dim=1, keepdim=True) + torch.sum(self.rows.weight**2, dim=1)
        codes = (scores - 2 * torch.matmul(z, self.rows.weight.t())).argmin(1)
        hits = torch.zeros(len(codes), len(self.seen)).scatter_(1, codes.unsqueeze(1), 1.0)
        q = (hits @ self.rows.weight).reshape(moved.shape)
        if self.training:
            with torch.no_grad():
                self.seen = self.seen * 0.99 + 0.01 * hits.sum(0)
                self.clock += 1
                self.moving = nn.Parameter(self.moving * 0.99 + 0.01 * hits.t() @ z.detach(), requires_grad=False)
                weight = self.moving / (self.seen + 1e-5).unsqueeze(1)
                self.rows.weight = nn.Parameter(weight, requires_grad=False)
        loss = self.beta * functional.mse_loss(q.detach(), moved)
        return loss, (moved + (q - moved).detach()).permute(0, 3, 1, 2).contiguous(), hits


class Transposed(nn.Module):
    """Stores its table as (D, K) and compares by subtraction and squares."""

    table: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, K: int = 16, D: int = 8) -> None:
        super().__init__()
        start = torch.randn(D, K)
        self.register_buffer("table", start.clone())
        self.register_buffer("sums", start.clone())
        self.register_buffer("counts", torch.ones(K))

    def forward(self, x: Tensor) -> Any:
        z = x.reshape(-1, x.shape[-1])
        scores = z.pow(2).sum(1, keepdim=True) - 2 * z @ self.table + self.table.pow(2).sum(0, keepdim=True)
        codes = scores.argmin(1)
        q = functional.embedding(codes, self.table.t()).reshape(x.shape)
        if self.training:
            hits = functional.one_hot(codes, self.table.shape[1]).to(z.dtype)
            self.counts.data.mul_(0.99).add_(hits.sum(0), alpha=0.01)
            self.sums.data.mul_(0.99).add_(z.detach().t() @ hits, alpha=0.01)
            self.table.data.copy_(self.sums / self.counts.clamp(min=1e-5))
        return q, codes.reshape(x.shape[:-1])


class Projected(Plain):
    """Projects its input first: what it compares is out of reach of a hook, so it must be refused."""

    def __init__(self, K: int = 16, D: int = 8) -> None:
        super().__init__(K, D)
        self.inner = nn.Linear(D, D)

    def latents(self, x: Tensor) -> Tensor:
        projected: Tensor = self.inner(x)
        return projected.reshape(-1, x.shape[-1])


class Silent(Plain):
    """Returns no codes."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[:2]


class Learnable(nn.Module):
    """A table that an optimizer moves, in an embedding."""

    def __init__(self, K: int = 16, D: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(K, D)
        self.beta = 0.25

    def forward(self, x: Tensor) -> Any:
        z = x.reshape(-1, x.shape[-1])
        codes = torch.cdist(z.detach(), self.embedding.weight.detach()).argmin(-1)
        q = self.embedding(codes).reshape(x.shape)
        loss = functional.mse_loss(q, x.detach()) + self.beta * functional.mse_loss(q.detach(), x)
        return x + (q - x).detach(), loss, codes


class Rebinding(ChannelFirstOneHot):
    """The same, with parameters that ask for gradients: the most copied home-made EMA quantizer does so."""

    def __init__(self, K: int = 16, D: int = 8) -> None:
        super().__init__(K, D)
        self.rows.weight.requires_grad_(True)
        self.moving.requires_grad_(True)

    def forward(self, x: Tensor) -> Any:
        output = super().forward(x)
        if self.training:
            self.moving = nn.Parameter(self.moving.detach(), requires_grad=True)
            self.rows.weight = nn.Parameter(self.rows.weight.detach(), requires_grad=True)
        return output


class MoreInTraining(Plain):
    """Returns another tuple while it trains than in evaluation."""

    def forward(self, x: Tensor) -> Any:
        output, loss, codes = super().forward(x)
        return (output, torch.zeros(3), codes, loss) if self.training else (output, codes)


class Reentrant(Plain):
    """Calls itself once: the inner call must not end what the outer one is protected by."""

    inner = False

    def forward(self, x: Tensor) -> Any:
        if not self.inner:
            self.inner = True
            self(x)
            self.inner = False
        return super().forward(x)
