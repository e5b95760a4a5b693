"""Lloyd's algorithm as FAISS and scikit-learn run it: points in, centroids out.

Each backend is one function of the same signature, imports its library when it is called, draws only from the seed it
is given, and prints nothing. What the points mean, what to do with too few of them and which centroids come out unused
is not known here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .search import Metric

__all__ = ["BACKENDS", "Backend", "Points", "resolve_backend"]

Points: TypeAlias = npt.NDArray[np.float32]
Backend: TypeAlias = Literal["auto", "faiss", "sklearn"]

#: (points (n, D), K, metric, iterations, seed, start (K, D) or None) -> (centroids (K, D), iterations done)
Fit: TypeAlias = Callable[[Points, int, Metric, int, int, Points | None], tuple[Points, int]]


def resolve_backend(backend: str) -> tuple[str, Fit]:
    """Return the name and the function of a backend; "auto" is FAISS where it is installed, else scikit-learn.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if backend == "auto":
        backend = "faiss" if importlib.util.find_spec("faiss") else "sklearn"
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected auto, {', '.join(BACKENDS)}, got {backend!r}")
    return backend, BACKENDS[backend]


def _fit_faiss(
    points: Points, K: int, metric: Metric, iterations: int, seed: int, start: Points | None
) -> tuple[Points, int]:
    """FAISS's Clustering over all points, from an AFK-MC2 start (Bachem et al., NeurIPS 2016) unless one is given."""
    import faiss

    settings: dict[str, Any] = {
        "niter": iterations,
        "seed": seed % 2**31,
        "spherical": metric == "cosine",
        "min_points_per_centroid": 1,  # FAISS would print a warning below 39
        "max_points_per_centroid": len(points),  # and would leave points out above 256
    }
    if start is None:
        if hasattr(faiss, "ClusteringInitMethod_AFK_MC2"):
            settings["init_method"] = faiss.ClusteringInitMethod_AFK_MC2
        else:
            start = spread_points(points, K, seed)
    kmeans = faiss.Kmeans(points.shape[1], K, **settings)
    kmeans.train(points, init_centroids=start)
    return np.array(kmeans.centroids, dtype=np.float32), len(kmeans.iteration_stats or ())


def _fit_sklearn(
    points: Points, K: int, metric: Metric, iterations: int, seed: int, start: Points | None
) -> tuple[Points, int]:
    """scikit-learn's KMeans, from a k-means++ start unless one is given.

    With metric "cosine" the unit points are fitted as they are; the caller projects the centroids back. One thread,
    because the order in which threads add their sums changes the last bits from run to run.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    settings: dict[str, Any] = {
        "init": "k-means++" if start is None else start,
        "n_init": 1,
        "max_iter": iterations,
        "random_state": seed % 2**31,
    }
    kmeans = KMeans(K, **settings)
    with threadpool_limits(limits=1):
        kmeans.fit(points)
    return np.array(kmeans.cluster_centers_, dtype=np.float32), int(kmeans.n_iter_)


def spread_points(points: Points, K: int, seed: int) -> Points:
    """Return K of the points, each drawn in proportion to its squared distance from those drawn before it.

    k-means++ (Arthur and Vassilvitskii, SODA 2007). Takes O(n K D); the points must hold at least K distinct rows.
    """
    generator = np.random.default_rng(seed)
    chosen = np.empty((K, points.shape[1]), dtype=np.float32)
    chosen[0] = points[generator.integers(len(points))]
    nearest = np.full(len(points), np.inf)
    for index in range(1, K):
        differences = points - chosen[index - 1]
        nearest = np.minimum(nearest, np.einsum("nd,nd->n", differences, differences, dtype=np.float64))
        chosen[index] = points[generator.choice(len(points), p=nearest / nearest.sum())]
    return chosen


BACKENDS: dict[str, Fit] = {"faiss": _fit_faiss, "sklearn": _fit_sklearn}
