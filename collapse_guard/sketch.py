"""Small pictures for the event log: how often codes are used, and where they lie among the latents.

Both are bounded. A histogram has at most 64 numbers, some 200 to 500 bytes; it is told with each of the first 256
readings of a codebook and ever less often after that, 128 times for each further doubling. A sketch has at most 200
points, about 3.5 kB, and stands in the event of an intervention for the first `MOST_SKETCHED` of its codebooks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MOST_SKETCHED", "is_told", "sketch", "uses_of"]

MOST_BINS = 64
MOST_SKETCHED = 8
_LATENTS, _CODES = 80, 60
_EVERY_READING = 256


def uses_of(counts: np.ndarray) -> list[int]:
    """Return how often codes were used, neighbours of the table together where there are more than 64.

    Args:
        counts: (K,) uses of each code.

    Returns:
        At most 64 integers with the same sum; bin b holds the codes from b K / bins on.

    >>> uses_of(np.array([1, 0, 5]))
    [1, 0, 5]
    >>> sum(uses_of(np.ones(1000, dtype=np.int64))), len(uses_of(np.ones(1000, dtype=np.int64)))
    (1000, 64)
    """
    uses: list[int] = np.add.reduceat(counts, _starts(len(counts))).tolist()
    return uses


@lru_cache(maxsize=64)
def _starts(K: int) -> np.ndarray:
    """Return where each bin of a histogram over K codes begins."""
    bins = min(MOST_BINS, K)
    return -(np.arange(bins) * -K // bins)


def is_told(reading: int) -> bool:
    """Whether the histogram of a codebook's reading, counted from 0, is told.

    >>> [sum(map(is_told, range(count))) for count in (256, 512, 1024, 100_000)]
    [256, 384, 512, 1348]
    """
    return reading % max(1, 1 << max(0, reading.bit_length() - _EVERY_READING.bit_length() + 1)) == 0


@torch.no_grad()
def sketch(latents: Tensor, before: Tensor, after: Tensor) -> dict[str, Any] | None:
    """Return latents and codes, before and after, on the two main axes of the latents; nothing random is drawn.

    Args:
        latents: (n, D) finite. before, after: (K, D) codes.

    Returns:
        `latents`, `before` and `after`, each a list of [x, y] in units of the latents, and `share`: of the latents'
        variance, what the two axes show, in [0, 1]. `None` where there are fewer than three latents.
    """
    if len(latents) < 3:
        return None
    cloud, old, new = (each.detach().float().cpu() for each in (latents, before, after))
    middle = cloud.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(cloud - middle, full_matrices=False)
    plane = axes[:2].T if axes.shape[0] > 1 else torch.cat([axes.T, torch.zeros_like(axes.T)], dim=1)
    total = float((sizes**2).sum())
    shown = {"latents": _some(cloud, _LATENTS), "before": _some(old, _CODES), "after": _some(new, _CODES)}
    points = {name: ((each - middle) @ plane).tolist() for name, each in shown.items()}
    rounded = {name: [[float(f"{x:.3g}") for x in point] for point in each] for name, each in points.items()}
    return rounded | {"share": round(float((sizes[:2] ** 2).sum()) / total, 3) if total > 0 else 0.0}


def _some(rows: Tensor, most: int) -> Tensor:
    """Return rows spread evenly; those with a value that is not finite are left out."""
    picked = rows[torch.arange(min(most, len(rows))) * len(rows) // min(most, len(rows))]
    return picked[picked.isfinite().all(dim=-1)]
