"""Stable ids: which row of a new codebook takes the place of which row of an old one.

A codebook that is fitted again comes in any order, and everything downstream that knows token ids would have to learn
them anew. The rows are matched so that as few latents as possible change their id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .search import Metric, assign, comparable_rows, unit_rows

__all__ = ["EXACT_UP_TO", "Matching", "match", "match_codes"]

EXACT_UP_TO = 4096
"""Up to this many codes are matched optimally; of more, mutual favourites are matched first, see `match_codes`."""


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """Which new row takes over which id, and what that keeps.

    Attributes:
        order: (K,) int64 on the CPU: `new[order]` has the ids of `old`.
        changed: latents with another id than before. tokens: how many were compared.
    """

    order: Tensor
    changed: int
    tokens: int


def match_codes(old: Tensor, new: Tensor, latents: Tensor, metric: Metric = "l2") -> Tensor:
    """Return the order of new rows in which most latents keep their id; of equal orders, the one that moves least.

    The latents that go from old row i to new row j are counted, and the assignment problem is solved on the counts
    (Hungarian method in the form of Crouse, "On implementing 2D rectangular assignment algorithms", 2016, by SciPy).
    Above 4096 codes, where that would take minutes, pairs that are each other's largest count are matched beforehand,
    and while more than 4096 codes are left, pairs in the order of their counts. The result is then no longer guaranteed
    to be the best; a pair that shares no latents keeps no id, and goes by distance only among the last 4096.

    Args:
        old: (K, D) codebook whose ids are to be kept. A row with NaN or Inf, or with
            "cosine" a zero one, had no latents.
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
    return match(old, new, latents, metric).order


@torch.no_grad()
def match(
    old: Tensor, new: Tensor, latents: Tensor, metric: Metric = "l2", *, former: Metric | None = None
) -> Matching:
    """Match as `match_codes` does, with the same arguments, and count the latents that change their id all the same.

    Args:
        former: how latents were compared with the old codebook, where that was another way.
    """
    former = former or metric
    from scipy.optimize import linear_sum_assignment

    if old.shape != new.shape or old.ndim != 2:
        raise ValueError(f"expected two codebooks of one shape (K, D), got {tuple(old.shape)} and {tuple(new.shape)}")
    K = len(old)
    before, after = assign(latents, old, former).cpu().numpy(), assign(latents, new, metric).cpu().numpy()
    had_id = comparable_rows(old, former).cpu().numpy()[before]  # none had, where the whole codebook is NaN
    known, became = before[had_id], after[had_id]
    order = np.full(K, -1)
    if K > EXACT_UP_TO:
        rows, columns = _favourites(known, became, K)
        order[rows] = columns
        if int((order < 0).sum()) > EXACT_UP_TO:
            _take_largest(order, known, became)
    free_rows = np.flatnonzero(order < 0)
    free_columns = np.setdiff1d(np.arange(K), order)
    if len(free_rows) > EXACT_UP_TO:
        order[free_rows] = free_columns
    elif len(free_rows):
        cost = _cost(old, new, known, became, free_rows, free_columns, former)
        found_rows, found_columns = linear_sum_assignment(cost)
        order[free_rows[found_rows]] = free_columns[found_columns]
    kept = int((order[known] == became).sum())
    return Matching(torch.from_numpy(order), changed=len(before) - kept, tokens=len(before))


def _by_count(before: np.ndarray, after: np.ndarray, K: int) -> Iterator[tuple[int, int]]:
    """Return the pairs (i, j) that share latents, those that share most first; of equal ones the lowest."""
    pairs, counts = np.unique(before.astype(np.int64) * K + after, return_counts=True)
    pairs = pairs[np.argsort(-counts, kind="stable")]
    return zip((pairs // K).tolist(), (pairs % K).tolist(), strict=True)


def _take_largest(order: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Match, in place, every pair of which neither is matched yet when its turn comes."""
    taken = set(order.tolist())
    for row, column in _by_count(before, after, len(order)):
        if order[row] < 0 and column not in taken:
            order[row] = column
            taken.add(column)


def _favourites(before: np.ndarray, after: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (i, j) where j takes most latents of i and i gives most latents to j."""
    best_of_row, best_of_column = np.full(K, -1), np.full(K, -1)
    for row, column in _by_count(before, after, K):
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
    distances = torch.cdist(first.double(), second.double()).numpy()
    finite = distances[np.isfinite(distances)]
    distances = np.nan_to_num(distances, nan=np.inf).clip(max=finite.max() if len(finite) else 0.0)
    cost: np.ndarray = distances / (2 * len(rows) * max(distances.max(), np.finfo(np.float64).tiny))
    np.subtract.at(cost, (left[known], right[known]), 1.0)
    return cost
