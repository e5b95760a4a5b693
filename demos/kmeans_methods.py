"""What the k-means bench compares: ours under several budgets, and the rivals under theirs.

Each method takes points (N, D), K and a seed, and returns (K, D). All get the same threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from collapse_guard.kmeans import fit_codebook

from .kmeans_data import Points

__all__ = ["BENCH_METHODS", "OURS", "REFERENCE", "Method"]

Method: TypeAlias = Callable[[Points, int, int], Points]

OURS = "fit_codebook"
REFERENCE = "sklearn KMeans"


def _ours(points: Points, K: int, seed: int, **options: Any) -> Points:
    return fit_codebook(torch.from_numpy(points), K, seed=seed, **options).codebook.numpy()


def _sklearn(points: Points, K: int, seed: int) -> Points:
    from sklearn.cluster import KMeans

    settings: dict[str, Any] = {"n_init": 1, "random_state": seed}
    return np.asarray(KMeans(K, **settings).fit(points).cluster_centers_, dtype=np.float32)


def _minibatch(points: Points, K: int, seed: int, *, batch: int) -> Points:
    from sklearn.cluster import MiniBatchKMeans

    settings: dict[str, Any] = {"n_init": 1, "random_state": seed, "batch_size": batch}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batch smaller than K
        fitted = MiniBatchKMeans(K, **settings).fit(points)
    return np.asarray(fitted.cluster_centers_, dtype=np.float32)


def _faiss(points: Points, K: int, seed: int, *, init: str | None, niter: int) -> Points:
    import faiss

    settings: dict[str, Any] = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    if init is not None:
        settings["init_method"] = getattr(faiss, f"ClusteringInitMethod_{init}")
    kmeans = faiss.Kmeans(points.shape[1], K, niter=niter, seed=seed, **settings)
    kmeans.train(points)
    return np.array(kmeans.centroids, dtype=np.float32)


def _methods() -> dict[str, Method]:
    made: dict[str, Method] = {OURS: _ours}
    made |= {f"{OURS}, {n} iterations": partial(_ours, budget=n) for n in (6, 24, 48)}
    for name, init in (("random", None), ("AFK-MC2", "AFK_MC2"), ("k-means++", "KMEANS_PLUS_PLUS")):
        made |= {f"FAISS {name}, {n} iterations": partial(_faiss, init=init, niter=n) for n in (10, 25, 100)}
    made |= {f"MiniBatchKMeans, batches of {n}": partial(_minibatch, batch=n) for n in (1024, 4096, 16384)}
    made[REFERENCE] = _sklearn
    return made


BENCH_METHODS: dict[str, Method] = _methods()
"""By name, the quick ones first."""
