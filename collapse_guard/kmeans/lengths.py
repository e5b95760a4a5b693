"""Lengths for codes that are searched by angle and decoded as they are: k-means by angle gives directions only."""

from __future__ import annotations

import torch
from torch import Tensor

from .search import assign, unit_rows
from .totals import totals

__all__ = ["with_lengths"]


@torch.no_grad()
def with_lengths(directions: Tensor, latents: Tensor, living: Tensor | None = None) -> Tensor:
    """Give codes that are searched by angle, and decoded as they are, the length that reconstructs best.

    For a fixed direction u the mean of |z - a u|^2 over its latents is least at a = mean(z.u).

    Args:
        directions: (m, D) of any length but zero.
        latents: (n, D) finite float32, n >= 1, with the lengths that they have.
        living: (k, D) codes that stay, whose latents are not those of these directions.

    Returns:
        (m, D) the same directions; one that no latent comes near gets the mean length of all latents.
    """
    units = unit_rows(directions)
    m = len(units)
    others = units[:0] if living is None else unit_rows(living.to(units))
    codes = assign(latents, torch.cat([units, others]), "cosine")
    mine = codes < m
    own, codes = latents[mine], codes[mine]
    sums = totals((own * units[codes]).sum(dim=-1), codes, m)
    counts = torch.bincount(codes, minlength=m)
    lengths = torch.where(counts > 0, sums / counts.clamp(min=1), 0.0)
    return units * torch.where(lengths > 0, lengths, latents.norm(dim=-1).mean()).unsqueeze(-1)
