"""Relocation: taking codes from where they are hardly missed to where the error is.

Lloyd's algorithm ends where no code can move a little and gain. What is left to gain are jumps: of two codes that
share one cluster, one is nearly useless, while elsewhere one code serves two clusters. Each round ranks the codes by
*utility*, the error that would be added if the code were gone, its latents went to their second nearest and those
codes moved to their new means (the first two after the LBG-U of Fritzke, Neural Processing Letters, 1997; the last,
which halves the price of merging two equal codes, by the formula of Ward, J. Am. Stat. Assoc. 1963); ranks them by the
*gain* of splitting, the error that a 2-means among a code's own latents would remove; and gives the place of the least
useful code to one half of the most rewarding split for as long as gain exceeds utility. Both numbers hold only while
neighbours stay, so a code next to one that moved waits for the next round, as in I-k-means-+ (Ismkhan, Pattern
Recognition 2018). Lloyd steps follow each round, as between the breaths of Fritzke's breathing k-means
(arXiv:2006.15666, 2020).

Nothing is drawn at random here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import Allowance
from .search import Comparison, Metric, unit_rows
from .totals import totals

__all__ = ["Refinement", "mean_rows", "refine"]

_LLOYD_BEFORE = 2  # so that the first round knows what its numbers mean
_LLOYD_AFTER = 1
_MOST_MOVED = 0.25  # share of the codes in one round: the more move at once, the less their numbers mean
_FEW, _FEW_ROUGHLY = 0.001, 0.02  # share of the codes: where no more jump in a round, it is the last
_SPLIT_STEPS = 2
_SPLIT_POINTS = 64  # of a code, in the mean: those of larger codebooks tell what a split gains well enough
_SUMMED = 1 << 17
_CONVERGED = 1e-4  # mean squared move of a code in one Lloyd step, relative to the variance of the codes


@dataclass(frozen=True, slots=True)
class Refinement:
    """A codebook after refinement.

    Attributes:
        table: (K, D).
        moved: how many codes were relocated, over all rounds.
    """

    table: Tensor
    moved: int


def refine(
    points: Comparison,
    table: Tensor,
    metric: Metric,
    allowance: Allowance,
    *,
    relocate: bool,
    share: float = 1.0,
    reserve: float = 0.0,
    is_rough: bool = False,
) -> Refinement:
    """Improve a codebook by Lloyd steps and, between them, relocations, until neither helps or all is spent.

    Args:
        points: what to fit; unit rows with metric "cosine".
        table: (K, D) to start from, on the same device.
        metric: "l2", or "cosine", with which means are projected to length 1.
        allowance: what may be spent, and is; a comparison of all these points with all codes costs `share`.
        relocate: whether any code may jump; without, only those do that no point comes near, and the rest keep their
            identity.
        share: of all latents, what these points are.
        reserve: iterations over all latents to leave for later.
        is_rough: end with the first round in which few codes jump, since more points are looked at afterwards.
    """
    moved, is_settled = 0, False
    relocate = relocate and len(table) > 1

    def lloyd(most: int | None = None) -> None:
        nonlocal table, moved, is_settled
        while (most is None or most > 0) and allowance.left(share, reserve):
            table, jumps, shift = _lloyd_step(points, table, metric)
            allowance.spent += share
            moved += jumps
            most = None if most is None else most - 1
            is_settled = not jumps and shift < _CONVERGED
            if is_settled:
                break

    if relocate:
        lloyd(_LLOYD_BEFORE)
    while relocate and allowance.left(share, reserve) > _LLOYD_AFTER:
        table, jumps = _relocated(points, table, metric)
        allowance.spent += share
        moved += jumps
        lloyd(_LLOYD_AFTER)
        if jumps <= (_FEW_ROUGHLY if is_rough else _FEW) * len(table):
            break
    if not is_rough and not is_settled:
        lloyd()
    return Refinement(table, moved)


def _lloyd_step(points: Comparison, table: Tensor, metric: Metric) -> tuple[Tensor, int, float]:
    """Return the codebook after one Lloyd step, the jumps, and the mean squared move relative to the codes' variance.

    A code that no point comes near has no place to keep: it goes to half of a split.
    """
    codes = points.nearest(table)
    updated = mean_rows(points.points, codes, table, metric, points.weights)
    updated, jumps = _with_unused_placed(points, codes, updated, metric)
    spread = table.var(dim=0, correction=0).sum().clamp(min=1e-30)
    return updated, jumps, float((updated - table).square().sum() / spread / len(table))


def _with_unused_placed(points: Comparison, codes: Tensor, table: Tensor, metric: Metric) -> tuple[Tensor, int]:
    """Return the codebook with each unused code at half of one of the most rewarding splits, and how many there are."""
    unused = (codes.bincount(minlength=len(table)) == 0).nonzero().flatten()
    if not len(unused):
        return table, 0
    gain, halves = _split(points, codes, table, torch.ones(len(table), dtype=torch.bool, device=table.device))
    split = gain.argsort(descending=True, stable=True)[: len(unused)]
    split = split[gain[split] > 0]
    return _projected(_jumped(table, unused[: len(split)], split, halves), table, metric), len(split)


def mean_rows(
    points: Tensor, codes: Tensor, table: Tensor, metric: Metric = "l2", weights: Tensor | None = None
) -> Tensor:
    """Return the (K, D) means of the points of each code; a code without points stays where it is.

    Args:
        points: (n, D). codes: (n,) int64. table: (K, D) as it was.
        metric: with "cosine" the means are projected to length 1; one of opposite directions stays as it was.
        weights: (n,) how much each point counts.
    """
    K = len(table)
    weighed = points if weights is None else points * weights.unsqueeze(-1)
    sums = torch.zeros_like(table)
    for start in range(0, len(points), _SUMMED):  # one by one, a sum of millions would lose its last digits
        part = slice(start, start + _SUMMED)
        sums += totals(weighed[part], codes[part], K)
    mass = torch.bincount(codes, minlength=K) if weights is None else totals(weights, codes, K)
    counts = mass.to(table.dtype).unsqueeze(-1)
    means = torch.where(counts > 0, sums / counts.clamp(min=torch.finfo(table.dtype).tiny), table)
    return _projected(means, table, metric)


def _projected(rows: Tensor, table: Tensor, metric: Metric) -> Tensor:
    """Return rows as the metric has them: with "cosine" of length 1, a zero one as it was in the table."""
    if metric == "l2":
        return rows
    return torch.where((rows != 0).any(dim=1, keepdim=True), unit_rows(rows), table)


def _relocated(points: Comparison, table: Tensor, metric: Metric) -> tuple[Tensor, int]:
    """Return the codebook after one round of jumps, and their number."""
    K = len(table)
    codes, second, nearest, further = points.nearest_two(table)
    pairs, pair, shared = torch.unique(codes * K + second, return_inverse=True, return_counts=True)
    lost = (further - nearest) * _left_after_adapting(codes, second, shared[pair], K)
    errors = nearest
    if points.weights is not None:
        lost, errors = lost * points.weights, errors * points.weights
    utility, error = totals(lost, codes, K), totals(errors, codes, K)
    table = mean_rows(points.points, codes, table, metric, points.weights)
    gain, halves = _split(points, codes, table, error > utility.min())  # a split gains less than the error
    taken, split = _pair(utility, gain, pairs)
    return _projected(_jumped(table, taken, split, halves), table, metric), len(taken)


def _left_after_adapting(codes: Tensor, second: Tensor, shared: Tensor, K: int) -> Tensor:
    """Return (n,) what part of a point's loss is left once the code that takes it over has moved to its new mean.

    By Ward's formula for merging m points into a code of n: n / (n + m), m being what this neighbour takes over.
    """
    own = codes.bincount(minlength=K)[second]
    return own / (own + shared)


def _jumped(table: Tensor, taken: Tensor, split: Tensor, halves: tuple[Tensor, Tensor]) -> Tensor:
    moved = table.clone()
    moved[split] = halves[0][split]
    moved[taken] = halves[1][split]
    return moved


def _split(points: Comparison, codes: Tensor, table: Tensor, wanted: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run 2-means among the points of each wanted code, from its mean towards its farthest point.

    Returns:
        (K,) the error that the split would remove, 0 where there is none; and the (K, D) places of both halves.
    """
    K = len(table)
    stride = max(1, len(codes) // (_SPLIT_POINTS * K))
    chosen = wanted[codes].nonzero().flatten()[::stride]
    mine, offsets = codes[chosen], points.points[chosen] - table[codes[chosen]]
    weight = torch.ones(len(chosen), device=table.device) if points.weights is None else points.weights[chosen]
    weight = weight * stride
    far = _farthest(offsets, mine, K)
    direction = torch.where(far.unsqueeze(-1) >= 0, offsets[far.clamp(min=0)], 0.0) if len(chosen) else table * 0
    middle = torch.zeros_like(table)
    mass, mean = torch.zeros(2 * K, device=table.device), torch.zeros(2 * K, table.shape[1], device=table.device)
    for _ in range(1 + _SPLIT_STEPS):
        along = (offsets * direction[mine]).sum(dim=1) - (middle * direction).sum(dim=1)[mine]
        half = 2 * mine + (along > 0)
        mass = totals(weight, half, 2 * K)
        sums = totals(offsets * weight.unsqueeze(-1), half, 2 * K)
        mean = sums / mass.clamp(min=torch.finfo(mass.dtype).tiny).unsqueeze(-1)
        direction, middle = mean[1::2] - mean[0::2], (mean[1::2] + mean[0::2]) / 2
    both = (mass.view(K, 2) > 0).all(dim=1) & wanted
    gain = torch.where(both, (mass * mean.square().sum(dim=1)).view(K, 2).sum(dim=1), 0.0)
    return gain, (table + mean[0::2], table + mean[1::2])


def _farthest(offsets: Tensor, mine: Tensor, K: int) -> Tensor:
    """Return (K,) the index of the longest offset of each code, -1 where it has none; of equals the last."""
    length = offsets.square().sum(dim=1)
    longest = torch.full((K,), -1.0, device=offsets.device).scatter_reduce_(0, mine, length, "amax")
    at = (length == longest[mine]).nonzero().flatten()
    return torch.full((K,), -1, device=offsets.device).scatter_reduce_(0, mine[at], at, "amax")


def _pair(utility: Tensor, gain: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Match the least useful codes with the most rewarding splits.

    Returns:
        (m,) codes whose place is taken away, and (m,) codes that are split.
    """
    K = len(utility)
    neighbours, ends = _neighbours(pairs, K)
    worth, reward = utility.tolist(), gain.tolist()
    rewarding = iter(gain.argsort(descending=True, stable=True).tolist())
    busy = [False] * K
    taken: list[int] = []
    split: list[int] = []
    for code in utility.argsort(stable=True).tolist():
        if busy[code] or len(taken) >= _MOST_MOVED * K:
            continue
        best = next((other for other in rewarding if not busy[other] and other != code), None)
        if best is None or reward[best] <= worth[code]:
            break
        taken.append(code)
        split.append(best)
        for gone in (code, best, *neighbours[ends[code] : ends[code + 1]]):
            busy[gone] = True
    device = utility.device
    return torch.tensor(taken, dtype=torch.int64, device=device), torch.tensor(split, dtype=torch.int64, device=device)


def _neighbours(pairs: Tensor, K: int) -> tuple[list[int], list[int]]:
    """Return, one code after the other, the codes that are second nearest to its points; and where each one's begin."""
    ends = torch.zeros(K + 1, dtype=torch.int64, device=pairs.device)
    ends[1:] = torch.bincount(pairs // K, minlength=K).cumsum(0)
    return (pairs % K).tolist(), ends.tolist()
