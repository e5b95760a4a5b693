"""Where a fit starts: codes as FAISS, scikit-learn or torch place them; `relocation` takes it from there.

Each backend is one function of the same signature, imports its library when it is called, draws only from the seed it
is given, and prints nothing. What the points mean, what to do with too few of them and which centroids come out unused
is not known here.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .search import Metric, assign, squared_errors

__all__ = ["BACKENDS", "Backend", "Start", "drawn_at_random", "resolve_backend", "spread_out"]

Backend: TypeAlias = Literal["auto", "faiss", "sklearn", "torch"]

_FAISS_STEPS = 1  # of FAISS's own Lloyd, which has no early stop
_CHAINS_UP_TO = 1024  # codes; what the chains of AFK-MC2 cost grows with K^2, what draws in blocks cost with K
_SKLEARN_STEPS = 10
_BLOCKS = 16

#: (points (n, D), K, metric, passes, seed, weights (n,) or None) -> (centroids (K, D), passes done)
Start: TypeAlias = Callable[[Tensor, int, Metric, int, int, "Tensor | None"], tuple[Tensor, int]]


def resolve_backend(backend: str, device: torch.device) -> tuple[str, Start]:
    """Return the name and the function of a backend.

    "auto" is torch for latents on an accelerator, so that none of them is copied to the host; else FAISS where it is
    installed, else scikit-learn.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if backend == "auto" and device.type != "cpu":
        backend = "torch"
    if backend == "auto":
        backend = "faiss" if importlib.util.find_spec("faiss") else "sklearn"
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected auto, {', '.join(BACKENDS)}, got {backend!r}")
    return backend, BACKENDS[backend]


def _start_faiss(
    points: Tensor, K: int, metric: Metric, passes: int, seed: int, weights: Tensor | None
) -> tuple[Tensor, int]:
    """FAISS's Clustering over all points, from an AFK-MC2 start (Bachem et al., NeurIPS 2016).

    Above 1024 codes from a start drawn in blocks, which is as good (to 0.1 % of the error after a whole fit, one way or
    the other) and takes a fifth less time with 4096.
    """
    import faiss

    settings: dict[str, Any] = {
        "niter": min(_FAISS_STEPS, passes),
        "seed": seed % 2**31,
        "spherical": metric == "cosine",
        "min_points_per_centroid": 1,  # FAISS would print a warning below 39
        "max_points_per_centroid": len(points),  # and would leave points out above 256
    }
    start = None
    if K <= _CHAINS_UP_TO and hasattr(faiss, "ClusteringInitMethod_AFK_MC2"):  # old releases do not
        settings["init_method"] = faiss.ClusteringInitMethod_AFK_MC2
    else:
        start = spread_out(points.cpu(), K, seed=seed).numpy()
    kmeans = faiss.Kmeans(points.shape[1], K, **settings)
    weighed = None if weights is None else weights.cpu().numpy()
    kmeans.train(points.cpu().contiguous().numpy(), weights=weighed, init_centroids=start)
    return torch.from_numpy(np.array(kmeans.centroids, dtype=np.float32)), len(kmeans.iteration_stats or ())


def _start_sklearn(
    points: Tensor, K: int, metric: Metric, passes: int, seed: int, weights: Tensor | None
) -> tuple[Tensor, int]:
    """scikit-learn's KMeans from its greedy k-means++ start; slow and good.

    With metric "cosine" the unit points are fitted as they are; the caller projects the centroids back. One thread,
    because the order in which threads add their sums changes the last bits from run to run.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    settings: dict[str, Any] = {"n_init": 1, "max_iter": min(_SKLEARN_STEPS, passes), "random_state": seed % 2**31}
    kmeans = KMeans(K, **settings)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it did not converge in a few steps, and was not meant to
        kmeans.fit(points.cpu().numpy(), sample_weight=None if weights is None else weights.cpu().numpy())
    return torch.from_numpy(np.array(kmeans.cluster_centers_, dtype=np.float32)), int(kmeans.n_iter_)


def _start_torch(
    points: Tensor, K: int, metric: Metric, passes: int, seed: int, weights: Tensor | None
) -> tuple[Tensor, int]:
    """Points drawn by squared distance on the device where they are."""
    return spread_out(points, K, seed=seed, weights=weights), 1


def spread_out(
    points: Tensor, m: int, *, seed: int, living: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Draw points in proportion to their squared distance from what is placed already.

    The D^2 sampling of k-means++ (Arthur and Vassilvitskii, SODA 2007), in at most 16 blocks of equal size drawn at
    once, as in k-means|| (Bahmani et al., VLDB 2012): one by one would take minutes for large m.

    Args:
        points: (n, D) finite float32, n at least 1.
        m: how many to draw.
        seed: of the draw.
        living: (k, D) codes that are placed already.
        weights: (n,) how much each point counts.

    Returns:
        (m, D) copies of points; the same point twice only where fewer than m lie apart from all codes.
    """
    device = points.device
    generator = torch.Generator(device=device).manual_seed(seed)
    weighing = torch.ones(len(points), device=device) if weights is None else weights
    nearest = torch.full((len(points),), torch.inf, device=device)
    if living is not None and len(living):
        nearest = squared_errors(points, living, assign(points, living))
    chosen = torch.empty(0, points.shape[1], device=device)
    block = -(-m // _BLOCKS)
    while len(chosen) < m:
        odds = torch.where(nearest.isinf(), 1.0, nearest) * weighing
        odds = odds if bool(odds.sum() > 0) else torch.ones_like(odds)
        first = len(chosen) == 0 and bool(nearest.isinf().all())
        wanted = 1 if first else min(block, m - len(chosen), int((odds > 0).sum()))
        drawn = points[draw_by_odds(odds, wanted, generator)]
        chosen = torch.cat([chosen, drawn])
        nearest = torch.minimum(nearest, squared_errors(points, drawn, assign(points, drawn)))
    return chosen


def drawn_at_random(
    points: Tensor, K: int, metric: Metric, passes: int, seed: int, weights: Tensor | None
) -> tuple[Tensor, int]:
    """Points drawn without replacement, in proportion to their weights; the start that needs no look at distances."""
    generator = torch.Generator(device=points.device).manual_seed(seed)
    odds = torch.ones(len(points), device=points.device) if weights is None else weights
    return points[draw_by_odds(odds, K, generator)], 0


def draw_by_odds(odds: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """Return (m,) indices drawn without replacement in proportion to the odds, any number of them.

    By the Gumbel trick, since `torch.multinomial` refuses more than 2^24 categories.
    """
    noise = torch.rand(len(odds), generator=generator, device=odds.device).clamp(min=torch.finfo(odds.dtype).tiny)
    keys = odds.clamp(min=torch.finfo(odds.dtype).tiny).log() - (-noise.log()).log()
    return torch.where(odds > 0, keys, -torch.inf).topk(m).indices


BACKENDS: dict[str, Start] = {"faiss": _start_faiss, "sklearn": _start_sklearn, "torch": _start_torch}
