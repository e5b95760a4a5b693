"""The nearest code of each latent, exactly and in bounded memory, on the device where the latents are.

Distances are float32 whatever the surrounding autocast or matmul precision says: bfloat16 cannot tell the codes of a
large codebook apart. Large searches on the CPU go through FAISS's kernels where it is installed. There is no index and
no state here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .precision import full_precision

__all__ = [
    "METRICS",
    "Comparison",
    "Metric",
    "assign",
    "comparable_rows",
    "finite_rows",
    "nearest_errors",
    "squared_errors",
    "unit_rows",
]

Metric: TypeAlias = Literal["l2", "cosine"]
METRICS: tuple[Metric, ...] = ("l2", "cosine")

_BLOCK = 1 << 22  # scores held at once: 16 MiB
_DEVICE_BLOCK = 1 << 25  # on an accelerator, which small blocks leave idle: 128 MiB
_CENTRE_ROWS = 1024  # rows that decide where the origin is put
_FAISS_ROWS = 1 << 18  # latents given to FAISS at once
_LEAST_FAISS_CODES = 64
_WORTH_FAISS = 1 << 22  # products of latents and codes from which on loading and calling FAISS pays


@torch.no_grad()
def assign(
    latents: Tensor, codebook: Tensor, metric: Metric = "l2", *, backend: Literal["auto", "torch"] = "auto"
) -> Tensor:
    """Return the index of the nearest codebook row for each latent; among equal rows the lowest.

    Distances are compared as |c|^2 / 2 - z.c in float32, after the origin has been moved among the codes, so that a
    common offset costs no precision; with "cosine" both sides are normalised first. A row of the codebook with NaN or
    Inf, or with "cosine" a zero one, is never the nearest. Such a latent has no nearest row and gets 0: leave it out.

    Args:
        latents: (N, D) floating point; N may be 0.
        codebook: (K, D) floating point, K at least 1, moved to the latents' device.
        metric: "l2" for the Euclidean distance, "cosine" for the angle.
        backend: "auto" loads FAISS for large searches on the CPU; "torch" never does, for use inside a training step.

    Returns:
        (N,) int64 on the latents' device, from 0 to K - 1.

    Raises:
        ValueError: shapes that do not match, or an unknown metric.

    >>> assign(torch.tensor([[0.2], [2.9], [1.0]]), torch.tensor([[0.0], [2.0], [2.0]])).tolist()
    [0, 1, 0]
    """
    _check(latents, codebook, metric)
    N, K = len(latents), len(codebook)
    codes = torch.zeros(N, dtype=torch.int64, device=latents.device)
    with full_precision(latents.device):
        rows, eligible = _comparable(codebook.to(latents.device), metric)
        origin, bias, directions = _linear_form(rows)
        bias = bias.masked_fill(~eligible, torch.inf)
        directions = directions.nan_to_num(0.0, 0.0, 0.0)
        first = _first_of_equals(directions)
        through_faiss, parts = _parts(latents.device, N, K, backend)
        for part in parts:
            block, comparable = _comparable(latents[part], metric)
            if through_faiss:
                augmented = torch.ones(len(block), block.shape[1] + 1)
                torch.sub(block, origin, out=augmented[:, :-1]).nan_to_num_(0.0, 0.0, 0.0)
                nearest = _faiss_nearest(augmented, directions, bias, 1)[0][:, 0]
            else:
                nearest = _least(torch.addmm(bias, block - origin, directions.T, alpha=-1))
            codes[part] = first[nearest].masked_fill(~comparable, 0)
    return codes


@torch.no_grad()
def nearest_errors(latents: Tensor, codebook: Tensor, metric: Metric = "l2") -> Tensor:
    """Return |z - c|^2 for each latent and its nearest row: what `assign` finds, without telling equal rows apart.

    Args:
        latents: (N, D) finite float32. codebook: (K, D) float32 on the same device. With "l2" both are given around a
            point among the latents: from there float32 tells the nearest row apart to a part in 10^7 of their variance.
        metric: as for `assign`.

    Returns:
        (N,) float32, computed from differences, hence accurate near zero; Inf or NaN where no row can be compared.
    """
    points, rows = (unit_rows(latents), unit_rows(codebook)) if metric == "cosine" else (latents, codebook)
    squares = rows.square().sum(dim=1, keepdim=True)
    usable = squares < torch.inf  # neither NaN nor a row that overflows
    if metric == "cosine":
        usable &= squares > 0
    unusable = usable.logical_not_()
    # z.c - |c|^2 / 2 in one product: to put the second in beforehand, or unusable rows right afterwards, takes as long.
    rows = torch.cat([rows.masked_fill(unusable, 0.0), squares.masked_fill_(unusable, torch.inf)], dim=1)
    points = torch.cat([points, points.new_full((len(points), 1), -0.5)], dim=1)
    with full_precision(points.device):
        parts = _parts(points.device, len(points), len(rows), "torch")[1]
        nearest = [_greatest(points[part] @ rows.T) for part in parts]
    found = nearest[0] if len(nearest) == 1 else torch.cat([points.new_zeros(0, dtype=torch.int64), *nearest])
    return (latents - codebook.index_select(0, found)).square().sum(dim=1)


class Comparison:
    """Points that are compared with one codebook after another: what stays the same is made ready once.

    Args:
        points: (n, D) finite float32 on any device; around the origin, where float32 tells them apart best.
        weights: (n,) how much each counts; 1 where not given.

    Attributes:
        points: (n, D) a copy of them. weights: as given.
    """

    def __init__(self, points: Tensor, weights: Tensor | None = None) -> None:
        """Copy the points once, beside the further column that FAISS needs."""
        self._augmented = torch.ones(len(points), points.shape[1] + 1, device=points.device)
        self.points = self._augmented[:, :-1].copy_(points)
        self.weights = weights
        self._squares = self.points.square().sum(dim=1, keepdim=True)

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.points)

    def part(self, n: int, seed: int) -> Comparison:
        """Return `n` of the points, drawn at random: every second token, say, may be of one kind."""
        device = self.points.device
        order = torch.randperm(len(self), generator=torch.Generator(device=device).manual_seed(seed), device=device)
        chosen = order[:n]
        return Comparison(self.points[chosen], None if self.weights is None else self.weights[chosen])

    @torch.no_grad()
    def nearest(self, table: Tensor) -> Tensor:
        """Return (n,) int64: the row of a (K, D) table around the origin nearest to each point."""
        return self._search(table, 1)[0][:, 0]

    @torch.no_grad()
    def nearest_two(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the nearest and the second nearest row of each point, and both squared distances; K is at least 2.

        (n,) int64 twice, (n,) float32 twice, clamped at 0. Among equal distances either may come first.
        """
        found, scores = self._search(table, 2)
        distances = (2 * scores + self._squares).clamp(min=0)
        return found[:, 0], found[:, 1], distances[:, 0], distances[:, 1]

    def _search(self, table: Tensor, k: int) -> tuple[Tensor, Tensor]:
        n, K, device = len(self), len(table), table.device
        bias = table.square().sum(dim=1) / 2
        through_faiss, parts = _parts(device, n, K)
        found = torch.empty(n, k, dtype=torch.int64, device=device)
        scores = torch.empty(n, k, device=device)
        with full_precision(device):
            for part in parts:
                if through_faiss:
                    found[part], scores[part] = _faiss_nearest(self._augmented[part], table, bias, k)
                    continue
                products = torch.addmm(bias, self.points[part], table.T, alpha=-1)
                if k == 1:
                    scores[part], found[part] = products.min(dim=1, keepdim=True)
                else:
                    scores[part], found[part] = products.topk(k, dim=1, largest=False)
        return found, scores


def _parts(device: torch.device, N: int, K: int, backend: str = "auto") -> tuple[bool, Iterator[slice]]:
    """Return whether to search through FAISS, and the parts of the latents to search one after another.

    FAISS, where it is installed, beats a matrix product and its minimum on the CPU once there is enough to do.
    """
    is_large = N * K >= _WORTH_FAISS and K >= _LEAST_FAISS_CODES
    through_faiss = backend == "auto" and device.type == "cpu" and is_large and _has_faiss()
    block = _BLOCK if device.type == "cpu" else _DEVICE_BLOCK
    step = _FAISS_ROWS if through_faiss else max(1, block // K)
    return through_faiss, (slice(start, start + step) for start in range(0, N, step))


@cache
def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def _faiss_nearest(augmented: Tensor, rows: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (n, k) the rows with the least bias - z.row, in order, and these values, for points (z, 1).

    The bias goes in as one more dimension of an inner product: FAISS's own L2 adds |z|^2, which costs precision far
    from the origin.
    """
    import faiss

    codes = torch.cat([rows, -bias.unsqueeze(1)], dim=1)
    codes[:, -1].clamp_(min=torch.finfo(torch.float32).min)
    scores, found = faiss.knn(augmented.numpy(), codes.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(np.asarray(found)), -torch.from_numpy(np.asarray(scores))


@torch.no_grad()
def squared_errors(latents: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    """Return |z - c|^2 for each latent and its code.

    Args:
        latents: (N, D) float32.
        codebook: (K, D) float32 on the same device.
        codes: (N,) int64.

    Returns:
        (N,) float32, computed from differences, hence accurate near zero.
    """
    errors = torch.empty(len(latents), device=latents.device)
    step = max(1, _BLOCK // latents.shape[1])
    for start in range(0, len(latents), step):
        part = slice(start, start + step)
        errors[part] = (latents[part] - codebook[codes[part]]).square().sum(dim=1)
    return errors


def _least(scores: Tensor) -> Tensor:
    """Return (N,) int64: where each row of (N, K) is least. NumPy finds it twenty times as fast as torch on a CPU."""
    return torch.from_numpy(scores.numpy().argmin(axis=1)) if scores.device.type == "cpu" else scores.argmin(dim=1)


def _greatest(scores: Tensor) -> Tensor:
    """Return (N,) int64: where each row of (N, K) is greatest, likewise."""
    return torch.from_numpy(scores.numpy().argmax(axis=1)) if scores.device.type == "cpu" else scores.argmax(dim=1)


def unit_rows(rows: Tensor) -> Tensor:
    """Return (N, D) rows scaled to length 1, tiny and huge ones too; a zero row stays zero."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length.clamp(min=1.0)


def _comparable(rows: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return the rows in float32, normalised with "cosine", and which of them a distance can be taken from."""
    values = rows.float()
    return unit_rows(values) if metric == "cosine" else values, comparable_rows(values, metric)


def comparable_rows(rows: Tensor, metric: Metric) -> Tensor:
    """Return (N,) bool: which of (N, D) rows are finite in float32, and with "cosine" not zero."""
    values = rows.float()
    finite = finite_rows(values)
    return finite & (values != 0).any(dim=1) if metric == "cosine" else finite


def finite_rows(rows: Tensor) -> Tensor:
    """Return (N,) bool: which of (N, D) floating point rows hold neither NaN nor Inf."""
    if rows.device.type == "cpu":  # a sum that is finite has finite terms, and takes a tenth of the time
        finite = rows.sum(dim=1).isfinite()
        if bool(finite.all()):
            return finite
    return rows.isfinite().all(dim=1)


def _linear_form(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (origin, bias, directions) with which bias - (z - origin) . directions orders the rows by distance.

    The rows are divided by a power of two near their largest entry, which is exact and keeps squares in range.
    """
    stride = max(1, len(rows) // _CENTRE_ROWS)
    sample = rows[::stride].nan_to_num(0.0, 0.0, 0.0)
    middle = (len(sample) - 1) // 2
    # A median, since one runaway code must not move the origin. On CUDA by sorting: a selection is not deterministic
    # there; on the CPU it takes a quarter of the time.
    if rows.device.type == "cpu":
        origin = sample.kthvalue(middle + 1, dim=0).values
    else:
        origin = sample.sort(dim=0).values[middle]
    centred = rows - origin
    largest = centred.nan_to_num(0.0, 0.0, 0.0).abs().max()
    directions = centred / torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
    return origin, (centred * directions).sum(dim=1) / 2, directions


def _first_of_equals(rows: Tensor) -> Tensor:
    """Return (K,) the lowest index whose row equals each row.

    A matrix product may round equal columns differently, so equal rows are told apart here and not by their scores.
    Equal rows share a key; sorting by it brings them together.
    """
    weights = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float32).mul(0.7390851).cos()
    order = (rows * weights).sum(dim=1).argsort(stable=True)
    place = torch.arange(len(rows), device=rows.device)
    ordered = rows[order]
    starts = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(dim=1)
    start = torch.where(starts, place, 0).cummax(dim=0).values
    return torch.empty_like(order).scatter_(0, order, order[start])


def _check(latents: Tensor, codebook: Tensor, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if latents.ndim != 2 or codebook.ndim != 2 or latents.shape[1] != codebook.shape[1] or codebook.numel() == 0:
        raise ValueError(
            "expected latents of shape (N, D) and a codebook of shape (K, D) with K and D at least 1, "
            f"got {tuple(latents.shape)} and {tuple(codebook.shape)}"
        )
