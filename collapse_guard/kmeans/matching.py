"""Stable ids: which row of a new codebook takes the place of which row of an old one.

A codebook that is fitted again comes in any order, and everything downstream that knows token ids would have to learn
them anew. The rows are matched so that as few latents as possible change their id.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .search import Metric, assign, unit_rows

__all__ = ["EXACT_UP_TO", "match_codes"]

EXACT_UP_TO = 4096
"""Codebooks of up to this many codes are matched optimally; of larger ones, mutual favourites are matched first."""


@torch.no_grad()
def match_codes(old: Tensor, new: Tensor, latents: Tensor, metric: Metric = "l2") -> Tensor:
    """Return the order of new rows in which most latents keep their id; of equal orders, the one that moves least.

    The latents that go from old row i to new row j are counted, and the assignment problem is solved on the counts
    (Hungarian method in the form of Crouse, "On implementing 2D rectangular assignment algorithms", 2016, by SciPy).
    Above 4096 codes, pairs that are each other's largest count are matched beforehand, so that it stays affordable;
    the rest is solved as before, and the result is then no longer guaranteed to be the best.

    Args:
        old: (K, D) finite codebook whose ids are to be kept.
        new: (K, D) finite codebook.
        latents: (N, D) finite, on which ids are compared; N may be 0, then rows are matched by distance.
        metric: how latents and rows are compared.

    Returns:
        (K,) int64 on the CPU: `new[order]` has the ids of `old`.

    Raises:
        ValueError: codebooks of different shapes.

    >>> old = torch.tensor([[0.0], [10.0], [20.0]])
    >>> match_codes(old, torch.tensor([[21.0], [1.0], [11.0]]), old).tolist()
    [1, 2, 0]
    """
    from scipy.optimize import linear_sum_assignment

    if old.shape != new.shape or old.ndim != 2:
        raise ValueError(f"expected two codebooks of one shape (K, D), got {tuple(old.shape)} and {tuple(new.shape)}")
    K = len(old)
    before, after = assign(latents, old, metric).cpu().numpy(), assign(latents, new, metric).cpu().numpy()
    order = np.full(K, -1)
    if K > EXACT_UP_TO:
        rows, columns = _favourites(before, after, K)
        order[rows] = columns
    free_rows = np.flatnonzero(order < 0)
    free_columns = np.setdiff1d(np.arange(K), order)
    if len(free_rows):
        cost = _cost(old, new, before, after, free_rows, free_columns, metric)
        found_rows, found_columns = linear_sum_assignment(cost)
        order[free_rows[found_rows]] = free_columns[found_columns]
    return torch.from_numpy(order)


def _favourites(before: np.ndarray, after: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (i, j) where j takes most latents of i and i gives most latents to j; of equal ones the lowest."""
    pairs, counts = np.unique(before.astype(np.int64) * K + after, return_counts=True)
    rows, columns = pairs // K, pairs % K
    best_of_row, best_of_column = np.full(K, -1), np.full(K, -1)
    for index in np.argsort(counts, kind="stable")[::-1]:
        row, column = rows[index], columns[index]
        best_of_row[row] = column if best_of_row[row] < 0 else best_of_row[row]
        best_of_column[column] = row if best_of_column[column] < 0 else best_of_column[column]
    chosen = np.flatnonzero((best_of_row >= 0) & (best_of_column[best_of_row] == np.arange(K)))
    return chosen, best_of_row[chosen]


def _cost(
    old: Tensor,
    new: Tensor,
    before: np.ndarray,
    after: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    metric: Metric,
) -> np.ndarray:
    """Return (rows, columns) float64: minus the latents that keep their id, plus less than one for all distances."""
    place_of_row, place_of_column = (np.full(len(old), -1) for _ in range(2))
    place_of_row[rows], place_of_column[columns] = np.arange(len(rows)), np.arange(len(columns))
    left, right = place_of_row[before], place_of_column[after]
    known = (left >= 0) & (right >= 0)
    first, second = old.detach().cpu().float()[rows], new.detach().cpu().float()[columns]
    if metric == "cosine":
        first, second = unit_rows(first), unit_rows(second)
    distances = torch.cdist(first, second).double().numpy()
    cost: np.ndarray = distances / (2 * len(rows) * max(distances.max(), np.finfo(np.float64).tiny))
    np.subtract.at(cost, (left[known], right[known]), 1.0)
    return cost
