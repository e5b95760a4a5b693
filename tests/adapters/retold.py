"""Quantizers that are shipped as source files only, told anew: what they do that no installable package does.

AnchoredVQ re-initialises rarely used codes in each training forward by binding new data to its weight (as CVQ-VAE
does, Zheng & Vedaldi 2023); ProjectedVQ has a convolution inside, starts from its first batch and multiplies its whole
loss (as Karpathy's port of DeepMind's VQ-VAE does); SplitLossVQ returns the terms of its loss apart, in training alone
(as LlamaGen's tokenizer does, Sun et al. 2024). Names of attributes and outputs are theirs, the code is not.
AveragedVQ looks like them, but for the moving averages that make its table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AnchoredVQ", "AveragedVQ", "ProjectedVQ", "SplitLossVQ"]


def _to_rows(z: Tensor) -> Tensor:
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def _to_images(rows: Tensor, z: Tensor) -> Tensor:
    return rows.reshape(z.shape[0], *z.shape[2:], -1).movedim(-1, 1)


def _straight_through(z: Tensor, rows: Tensor) -> Tensor:
    return z + (rows - z).detach()


class AnchoredVQ(nn.Module):
    """Returns (quantised, loss, (perplexity, one-hot, codes)); `init` says that no code is re-initialised any more."""

    embed_prob: Tensor

    def __init__(self, num_embed: int, embed_dim: int, beta: float, *, distance: str, first_batch: bool) -> None:
        super().__init__()
        self.num_embed, self.embed_dim, self.beta = num_embed, embed_dim, beta
        self.distance, self.first_batch = distance, first_batch
        self.anchor, self.decay, self.init = "closest", 0.99, False
        self.embedding = nn.Embedding(num_embed, embed_dim)
        self.register_buffer("embed_prob", torch.zeros(num_embed))

    def forward(self, z: Tensor) -> Any:
        latents, table = _to_rows(z), self.embedding.weight
        if self.distance == "cos":
            distances = -functional.normalize(latents, dim=1) @ functional.normalize(table, dim=1).t()
        else:
            distances = torch.cdist(latents.detach(), table.detach())
        codes = distances.argmin(1)
        one_hot = functional.one_hot(codes, self.num_embed).to(z.dtype)
        rows = _to_images(one_hot @ table, z)
        loss = self.beta * (rows.detach() - z).square().mean() + (rows - z.detach()).square().mean()
        if self.training:
            self._move(latents, distances, one_hot.mean(0))
        return _straight_through(z, rows), loss, (one_hot.mean(0), one_hot, codes)

    @torch.no_grad()
    def _move(self, latents: Tensor, distances: Tensor, shares: Tensor) -> None:
        self.embed_prob.mul_(self.decay).add_(shares, alpha=1 - self.decay)
        if self.init:
            return
        anchors = latents[distances.argmin(0)]
        keep = 1 - torch.exp(-self.embed_prob * self.num_embed * 10 / (1 - self.decay) - 1e-3).unsqueeze(1)
        self.embedding.weight.data = self.embedding.weight.data * keep + anchors * (1 - keep)
        self.init = self.first_batch


class ProjectedVQ(nn.Module):
    """Returns (quantised, loss, codes) of D channels from others; `data_initialized` says that it has its start."""

    data_initialized: Tensor

    def __init__(self, num_hiddens: int, n_embed: int, embedding_dim: int) -> None:
        super().__init__()
        self.n_embed, self.embedding_dim, self.kld_scale = n_embed, embedding_dim, 10.0
        self.proj = nn.Conv2d(num_hiddens, embedding_dim, 1)
        self.embed = nn.Embedding(n_embed, embedding_dim)
        self.register_buffer("data_initialized", torch.zeros(1))

    def forward(self, z: Tensor) -> Any:
        z = self.proj(z)
        latents = _to_rows(z)
        if self.training and not self.data_initialized:
            with torch.no_grad():
                self.embed.weight.copy_(latents[torch.randperm(len(latents))[: self.n_embed]])
                self.data_initialized.fill_(1)
        codes = torch.cdist(latents.detach(), self.embed.weight.detach()).argmin(1)
        rows = _to_images(functional.embedding(codes, self.embed.weight), z)
        loss = 0.25 * (rows.detach() - z).square().mean() + (rows - z.detach()).square().mean()
        return _straight_through(z, rows), loss * self.kld_scale, codes.reshape(len(z), *z.shape[2:])


class SplitLossVQ(nn.Module):
    """Returns (quantised, (codebook loss, commitment loss, entropy loss, usage), (None, None, codes)), unit rows."""

    def __init__(self, n_e: int, e_dim: int, beta: float, *, entropy_loss_ratio: float = 0.0) -> None:
        super().__init__()
        self.n_e, self.e_dim, self.beta, self.entropy_loss_ratio = n_e, e_dim, beta, entropy_loss_ratio
        self.l2_norm = True
        self.embedding = nn.Embedding(n_e, e_dim)

    def forward(self, z: Tensor) -> Any:
        z = functional.normalize(z, dim=1)
        table = functional.normalize(self.embedding.weight, dim=-1)
        affinity = _to_rows(z) @ table.t()
        codes = affinity.argmax(1)
        rows = _to_images(table[codes], z)
        losses: tuple[Any, ...] = (None, None, None, 0)
        if self.training:
            spread = (2 * affinity).softmax(-1)
            entropy = -(spread * (spread + 1e-5).log()).sum(-1).mean() * self.entropy_loss_ratio
            commitment = self.beta * (rows.detach() - z).square().mean()
            losses = ((rows - z.detach()).square().mean(), commitment, entropy, 0)
        return _straight_through(z, rows), losses, (None, None, codes)


class AveragedVQ(nn.Module):
    """Returns (quantised, loss, codes); its embedding is the quotient of two moving averages."""

    sums: Tensor
    counts: Tensor

    def __init__(self, n_e: int, e_dim: int) -> None:
        super().__init__()
        self.n_e, self.e_dim, self.beta = n_e, e_dim, 0.25
        self.embedding = nn.Embedding(n_e, e_dim).requires_grad_(False)
        self.register_buffer("sums", self.embedding.weight.clone())
        self.register_buffer("counts", torch.ones(n_e))

    def forward(self, z: Tensor) -> Any:
        latents, table = _to_rows(z), self.embedding.weight
        codes = torch.cdist(latents.detach(), table.detach()).argmin(1)
        rows = _to_images(table[codes], z)
        if self.training:
            with torch.no_grad():
                one_hot = functional.one_hot(codes, self.n_e).to(z.dtype)
                self.counts.mul_(0.9).add_(one_hot.sum(0), alpha=0.1)
                self.sums.mul_(0.9).add_(one_hot.t() @ latents, alpha=0.1)
                table.copy_(self.sums / self.counts.unsqueeze(1))
        return _straight_through(z, rows), self.beta * (rows.detach() - z).square().mean(), codes
