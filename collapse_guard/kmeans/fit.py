"""A codebook for given latents: k-means, with every degenerate case defined.

What surrounds the backends: which latents count, in which frame of reference the backend sees them, what becomes of
codes that no latent backs, and what is reported. No training state is known here, and no random generator but its own
is touched.

The cases, for N latents of dimension D and K codes:

    a latent with NaN or Inf       dropped, as is one whose squared length exceeds float32, and a zero one with "cosine"
    no latent left                 ValueError
    at most K distinct latents     each is a code (inertia 0); the other rows are jittered copies, count 0 (`surplus`)
    more                           every code is backed by a latent, as far as float32 tells them apart
    constant latents, N < K        as "at most K distinct latents"
    K = 1                          the mean; with "cosine" its direction
    D = 1                          as any other; "cosine" has but two directions there, so K > 2 is a ValueError
    float16, bfloat16, float64     fitted and returned in float32
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .backends import Backend, Fit, Points, resolve_backend
from .search import METRICS, Metric, assign, squared_errors, unit_rows
from .surplus import distinct_rows, jittered_copies, place_rows, spread_of

__all__ = ["CodebookFit", "fit_codebook"]

_REFILLS = 8


@dataclass(frozen=True, slots=True, eq=False)
class CodebookFit:
    """A codebook, and how well it stands.

    Attributes:
        codebook: (K, D) float32 on the latents' device; rows of length 1 with metric "cosine".
        counts: (K,) int64 on the same device: how many of the latents that count `assign` gives to each code.
        inertia: sum of squared distances from these latents to their codes; with metric "cosine" from the normalised
            latents, which is 2 (1 - cos) each.
        iterations: rounds of Lloyd's algorithm that ran; 0 where every distinct latent is a code.
        seconds: wall time.
        backend: "faiss" or "sklearn".
        distinct: number of codes that latents back (count above 0), from 1 to K.
    """

    codebook: Tensor
    counts: Tensor
    inertia: float
    iterations: int
    seconds: float
    backend: str
    distinct: int


@torch.no_grad()
def fit_codebook(
    latents: Tensor,
    K: int,
    *,
    backend: Backend = "auto",
    metric: Metric = "l2",
    iterations: int = 20,
    seed: int = 0,
    init: Tensor | None = None,
) -> CodebookFit:
    """Fit K codes to latents by k-means (Lloyd, "Least squares quantization in PCM", 1982).

    The same latents, seed, backend and number of threads give the same codebook, bit for bit. The module docstring
    lists what happens with few, equal, constant or non-finite latents.

    Args:
        latents: (N, D) floating point, on any device.
        K: number of codes, at least 1.
        backend: "faiss", "sklearn", or "auto" for FAISS where it is installed.
        metric: "l2", or "cosine" for spherical k-means on normalised latents.
        iterations: at most this many rounds, at least 1.
        seed: of the start, and of the jitter of surplus rows.
        init: (K, D) codebook to start from. Its rows keep their indices; those that no latent comes near are moved.

    Raises:
        ValueError: no usable latents, a wrong shape, or an argument out of range.

    >>> fit = fit_codebook(torch.tensor([[0.0], [0.2], [5.0], [5.2]]), 2)
    >>> [round(code, 3) for code in sorted(fit.codebook.flatten().tolist())], fit.counts.tolist(), round(fit.inertia, 3)
    ([0.1, 5.1], [2, 2], 0.04)
    """
    began = time.perf_counter()
    _check_arguments(latents, K, metric, iterations, init)
    name, fit = resolve_backend(backend)
    usable = _usable(latents, metric)
    points: Points = usable.cpu().numpy()
    start = None if init is None else _rows(init, metric).cpu()
    few = distinct_rows(points, K)
    if few is None:
        table, iterations = _fitted(points, K, metric, iterations, seed, start, fit)
    else:
        table, iterations = torch.full((K, points.shape[1]), torch.nan), 0
        rows = torch.from_numpy(few)
        table[place_rows(rows, start, K)] = rows
    table = _with_surplus(table, usable, points, metric, seed)
    codes = assign(usable, table, metric)
    counts = codes.bincount(minlength=K)
    return CodebookFit(
        codebook=table,
        counts=counts,
        inertia=float(squared_errors(usable, table, codes).cpu().double().sum()),
        iterations=iterations,
        seconds=time.perf_counter() - began,
        backend=name,
        distinct=int((counts > 0).sum()),
    )


def _check_arguments(latents: Tensor, K: int, metric: str, iterations: int, init: Tensor | None) -> None:
    if latents.ndim != 2 or latents.shape[1] == 0:
        raise ValueError(
            f"latents: expected shape (N, D) with D at least 1, got {tuple(latents.shape)}; "
            "flatten batch, time and space first: latents.reshape(-1, D)"
        )
    if K < 1:
        raise ValueError(f"K: expected at least 1 code, got {K}")
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if metric == "cosine" and latents.shape[1] == 1 and K > 2:
        raise ValueError(f'metric "cosine": one dimension has two directions, got K={K}; use metric "l2"')
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    if init is not None and tuple(init.shape) != (K, latents.shape[1]):
        raise ValueError(f"init: expected a codebook of shape {(K, latents.shape[1])}, got {tuple(init.shape)}")


def _rows(values: Tensor, metric: Metric) -> Tensor:
    rows = values.detach().float()
    return unit_rows(rows) if metric == "cosine" else rows


def _usable(latents: Tensor, metric: Metric) -> Tensor:
    """Return the latents that count, (n, D) float32, normalised with metric "cosine"."""
    rows = latents.detach().float()
    fit = rows.square().sum(dim=1).isfinite()
    if metric == "cosine":
        fit &= (rows != 0).any(dim=1)
    if not fit.any():
        raise ValueError(
            f"latents: none of the {len(latents)} can be used (NaN, Inf{', zero' if metric == 'cosine' else ''}); "
            "wait until the probe holds finite latents, or lower the learning rate if the encoder diverges"
        )
    return _rows(rows[fit], metric).contiguous()


def _fitted(
    points: Points, K: int, metric: Metric, iterations: int, seed: int, start: Tensor | None, fit: Fit
) -> tuple[Tensor, int]:
    """Run the backend on points of which more than K are distinct.

    With metric "l2" it sees them around the origin at unit spread: k-means does not mind, float32 does.
    """
    if metric == "cosine":
        shift, scale, framed = np.float32(0), np.float32(1), points
    else:
        shift = points.mean(axis=0, dtype=np.float64).astype(np.float32)
        scale = np.float32(max(spread_of(points), float(np.finfo(np.float32).tiny)))
        framed = np.asarray((points - shift) / scale, dtype=np.float32)
    first = None if start is None else _finite_start((start.numpy() - shift) / scale, framed, seed)
    centroids, done = fit(framed, K, metric, iterations, seed, first)
    table = _refilled(_rows(torch.from_numpy(centroids), metric), torch.from_numpy(framed), metric)
    return torch.from_numpy(np.asarray(table.numpy() * scale + shift, dtype=np.float32)), done


def _finite_start(values: npt.NDArray[Any], points: Points, seed: int) -> Points:
    """Return the start (K, D) with every row that no distance can be taken from replaced by one of the points."""
    start = np.array(values, dtype=np.float32, order="C")
    with np.errstate(over="ignore", invalid="ignore"):
        broken = ~np.isfinite(np.square(start).sum(axis=1))
    drawn = np.random.default_rng(seed).choice(len(points), int(broken.sum()), replace=False)
    start[broken] = points[drawn]
    return start


def _refilled(table: Tensor, points: Tensor, metric: Metric) -> Tensor:
    """Move every code without a latent onto the worst served ones, and look again, a few times.

    A cosine code of length zero, the mean of opposite directions, counts as one without.
    """
    for _ in range(_REFILLS):
        codes = assign(points, table, metric)
        empty = codes.bincount(minlength=len(table)) == 0
        if metric == "cosine":
            empty |= (table == 0).all(dim=1)
        missing = int(empty.sum())
        if not missing:
            break
        worst: dict[bytes, int] = {}
        for index in squared_errors(points, table, codes).argsort(descending=True, stable=True).tolist():
            worst.setdefault(points[index].numpy().tobytes(), index)
            if len(worst) == missing:
                break
        table[empty] = points[list(worst.values())]
    return table


def _with_surplus(table: Tensor, usable: Tensor, points: Points, metric: Metric, seed: int) -> Tensor:
    """Return the table on the latents' device, rows that no latent backs made jittered copies of rows that one does."""
    placed = table.to(usable.device)
    counts = assign(usable, placed, metric).bincount(minlength=len(table)).cpu()
    backed = counts > 0
    if backed.all():
        return placed
    table[~backed] = torch.from_numpy(
        jittered_copies(
            table[backed].numpy(),
            counts[backed].float().numpy(),
            int((~backed).sum()),
            spread_of(points),
            seed,
            unit=metric == "cosine",
        )
    )
    return table.to(usable.device)
