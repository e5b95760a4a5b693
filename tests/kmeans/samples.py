"""Latents to fit codebooks to, and loops to compare the results with."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from collapse_guard.kmeans import CodebookFit

BACKENDS: list[Literal["faiss", "sklearn", "torch"]] = ["faiss", "sklearn", "torch"]
METRICS: list[Literal["l2", "cosine"]] = ["l2", "cosine"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(codes: int, each: int, D: int, *, spread: float = 0.1, seed: int = 0) -> Tensor:
    """Latents around well separated centres, `each` per centre, in random order."""
    centres = 10 * normal(codes, D, seed=seed)
    latents = centres.repeat_interleave(each, dim=0) + spread * normal(codes * each, D, seed=seed + 1)
    return latents[torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))]


def distances_by_loop(latents: Tensor, codebook: Tensor, metric: str) -> np.ndarray:
    """(N, K) squared distances in float64, one pair at a time; of normalised rows with "cosine"."""
    rows = [np.asarray(values.double().tolist()) for values in (latents, codebook)]
    if metric == "cosine":
        rows = [values / np.linalg.norm(values, axis=1)[:, None] for values in rows]
    return np.array([[float(((z - c) ** 2).sum()) for c in rows[1]] for z in rows[0]])


def distinct_count(codebook: Tensor) -> int:
    return len({tuple(row) for row in codebook.tolist()})


def same(left: CodebookFit, right: CodebookFit) -> bool:
    return torch.equal(left.codebook, right.codebook) and torch.equal(left.counts, right.counts)
