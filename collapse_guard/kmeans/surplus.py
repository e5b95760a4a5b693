"""Rows that no latent backs: they move to latents, and where there are too few distinct ones, each of these is a code.

What is then left stands near the codes that latents back.
A surplus row is never zero and never equal to another row: of two equal rows only one can be chosen, and a zero row
attracts every small latent. It stands off from the code that it copies by `JITTER` times the spread of the latents
(root mean squared distance from their mean), at least by `JITTER_FLOOR` times the largest entry in each direction (by
`JITTER` where rows have length 1 or all latents are zero), and at random up to twice that: far above what float32
resolves, and small against the data. Rows that still coincide, as they may in one dimension, are drawn again with twice
the jitter.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .search import Metric, assign, squared_errors, unit_rows

__all__ = ["distinct_rows", "jittered_copies", "place_rows", "refilled", "spread_of", "with_surplus"]

JITTER = 1e-2
JITTER_FLOOR = 16 * float(np.finfo(np.float32).eps)

_REFILLS = 8

Points: TypeAlias = npt.NDArray[np.float32]


def distinct_rows(points: Tensor, most: int) -> Tensor | None:
    """Return the distinct rows (n, D) in order of first appearance, or None where there are more than `most`."""
    if len(torch.unique(points[: 2 * most], dim=0)) > most:  # as a rule, without looking at all of them
        return None
    found, inverse = torch.unique(points + 0.0, dim=0, return_inverse=True)  # + 0 turns -0.0 into 0.0
    if len(found) > most:
        return None
    first = torch.full((len(found),), len(points), device=points.device)
    first.scatter_reduce_(0, inverse, torch.arange(len(points), device=points.device), "amin")
    return points[first.sort().values]


def place_rows(rows: Tensor, init: Tensor | None, K: int) -> Tensor:
    """Return (n,) the code that each of n <= K distinct rows becomes.

    Without a codebook to start from, the first n codes. With one, a code goes to the closest of the rows that have it
    as their nearest, so that its meaning stays; the remaining rows take the free codes in order.
    """
    if init is None:
        return torch.arange(len(rows))
    wanted = assign(rows, init)
    taken: dict[int, int] = {}
    for row in squared_errors(rows, init, wanted).argsort(stable=True).tolist():
        taken.setdefault(int(wanted[row]), row)
    kept = {row: code for code, row in taken.items()}
    free = (code for code in range(K) if code not in taken)
    return torch.tensor([kept[row] if row in kept else next(free) for row in range(len(rows))])


def refilled(table: Tensor, codes: Tensor, points: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Move every code without a point onto the worst served ones, and look again, a few times.

    Args:
        table: (K, D); fewer rows than there are distinct points.
        codes: (n,) what `assign` gives for these points and this table.
        points: (n, D) of length 1 with metric "cosine".
        metric: that of `assign`. A cosine code of length zero, the mean of opposite directions, counts as one
            without points.

    Returns:
        The table, and the codes of the points in it.
    """
    for _ in range(_REFILLS):
        empty = codes.bincount(minlength=len(table)) == 0
        if metric == "cosine":
            empty |= (table == 0).all(dim=1)
        missing = int(empty.sum())
        if not missing:
            break
        table = table.clone()
        table[empty] = _worst_served(points, squared_errors(points, table, codes), missing)
        codes = assign(points, table, metric)
    return table, codes


def _worst_served(points: Tensor, errors: Tensor, most: int) -> Tensor:
    """Return (at most `most`, D) distinct points, those of the largest error first."""
    order = errors.argsort(descending=True, stable=True)
    _, first = torch.unique(points[order], dim=0, return_inverse=True)
    at = torch.full((len(order),), len(order), device=order.device)
    at.scatter_reduce_(0, first, torch.arange(len(order), device=order.device), "amin")
    return points[order[at.sort().values[:most]]]


def with_surplus(table: Tensor, codes: Tensor, points: Tensor, metric: Metric, seed: int) -> tuple[Tensor, Tensor]:
    """Make rows that no point backs jittered copies of rows that one does.

    Args and returns are those of `refilled`, and the seed of the jitter.
    """
    counts = codes.bincount(minlength=len(table))
    backed = counts > 0
    if backed.all():
        return table, codes
    copies = jittered_copies(
        table[backed].cpu().numpy(),
        counts[backed].float().cpu().numpy(),
        int((~backed).sum()),
        spread_of(points),
        seed,
        unit=metric == "cosine",
    )
    table[~backed] = torch.from_numpy(copies).to(table.device)
    return table, assign(points, table, metric)


def jittered_copies(used: Points, weights: Points, surplus: int, spread: float, seed: int, *, unit: bool) -> Points:
    """Return rows beside the used ones, evenly shared out among them, the rest beside those used most.

    Args:
        used: (m, D) the rows that latents back, m at least 1.
        weights: (m,) their counts.
        surplus: how many rows to return.
        spread: `spread_of` the latents.
        seed: of the jitter.
        unit: project the rows to length 1; D is then at least 2.

    Returns:
        (surplus, D) float32, different from each other and from the used rows, none zero.
    """
    generator = np.random.default_rng(seed)
    D = used.shape[1]
    order = np.argsort(-weights, kind="stable")
    sources = used[order[np.arange(surplus) % len(used)]]
    floor = JITTER if unit else JITTER_FLOOR * math.sqrt(D) * float(np.abs(used).max())
    length = max(JITTER * spread, floor) or JITTER
    taken = {row.tobytes() for row in used + np.float32(0)} | {np.zeros(D, dtype=np.float32).tobytes()}
    copies = np.empty_like(sources)
    pending = list(range(surplus))
    while pending:
        offsets = generator.normal(size=(len(pending), D))
        offsets *= length * generator.uniform(1, 2, size=(len(pending), 1)) / np.linalg.norm(offsets, axis=1)[:, None]
        drawn = (sources[pending] + offsets).astype(np.float32)
        if unit:
            drawn = unit_rows(torch.from_numpy(drawn)).numpy()
        again = []
        for index, row in zip(pending, drawn + np.float32(0), strict=True):
            if row.tobytes() in taken:
                again.append(index)
            else:
                taken.add(row.tobytes())
                copies[index] = row
        pending, length = again, 2 * length
    return copies


def spread_of(points: Tensor) -> float:
    """Root mean squared distance of the points (n, D) from their mean."""
    return float(torch.linalg.vector_norm(points - points.mean(dim=0))) / math.sqrt(len(points))
