"""Measurements of the k-means bench that fit nothing: what one assignment costs, exact and by an approximate index.

One line of JSON for each, and none twice, as in `kmeans_cells`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collapse_guard.kmeans import ApproximateIndex, assign

from .kmeans_cells import append_line, read_lines
from .kmeans_data import photo_windows

__all__ = ["ASSIGNMENTS", "LARGE_DATA", "Assignment", "LargeSearch", "measure_assignments", "measure_large"]

_REPEATS = 5
_CHUNK = 1 << 22  # scores held at once, as `assign` holds them
_RECALL = 0.99
_EQUALLY_NEAR = 1e-5
_EXACT = "assign"
_INDEX = "approximate index"


@dataclass(frozen=True, slots=True)
class Assignment:
    """The nearest of K codes for 65,536 normal points of dimension 64, by one method.

    Attributes:
        N: points. K: codes. method: a name of `ASSIGNMENTS`.
        cpu_seconds: CPU time of the process, the least of 5 in turns.
        agreement: share of points with the code that float64 finds nearest, on 4096 of them.
    """

    N: int
    K: int
    method: str
    cpu_seconds: float
    agreement: float


@dataclass(frozen=True, slots=True)
class LargeSearch:
    """The nearest of many codes, exactly or through the approximate index of a tokenizer.

    Attributes:
        data: of `LARGE_DATA`. N: points, none of them those that the index was measured on. K: codes.
        method: of `ASSIGNMENTS`, or "approximate index".
        cpu_seconds: CPU time of one search, the least of 2 in turns. build_seconds: CPU time of what comes before.
        recall: share of the points with the nearest code that any of the methods finds, or one as near to a
            hundred-thousandth: some patches of a photo are nearly equal.
        cells, probes: of the index; 0 for others. measured: recall on the points that the probes were chosen on.
    """

    data: str
    N: int
    K: int
    method: str
    cpu_seconds: float
    build_seconds: float
    recall: float
    cells: int
    probes: int
    measured: float


def _through_faiss(points: Tensor, codebook: Tensor) -> Tensor:
    import faiss

    index = faiss.IndexFlatL2(codebook.shape[1])
    add: Any = index.add
    search: Any = index.search
    add(codebook.numpy())
    return torch.from_numpy(np.asarray(search(points.numpy(), 1)[1][:, 0]))


def _by_addmm(points: Tensor, codebook: Tensor) -> Tensor:
    bias = codebook.square().sum(dim=1) / 2
    parts = points.split(max(1, _CHUNK // len(codebook)))
    return torch.cat([torch.addmm(bias, part, codebook.T, alpha=-1).argmin(dim=1) for part in parts])


ASSIGNMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    _EXACT: assign,
    "FAISS IndexFlatL2": _through_faiss,
    "chunked addmm": _by_addmm,
}


def _timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    began = time.process_time()
    found = run()
    return time.process_time() - began, found


def measure_assignments(path: Path, N: int, codes: Sequence[int], tell: Callable[[str], object]) -> None:
    """Time each K that the file does not hold yet, the methods taking turns, and append it."""
    known = {line.K for line in read_lines(path, Assignment)}
    for K in codes:
        if K in known:
            continue
        draw = torch.Generator().manual_seed(1)
        points, codebook = torch.randn(N, 64, generator=draw), torch.randn(K, 64, generator=draw)
        nearest = torch.cat(
            [torch.cdist(part.double(), codebook.double()).argmin(dim=1) for part in points[:4096].split(256)]
        )
        taken: dict[str, list[float]] = {method: [] for method in ASSIGNMENTS}
        agreement = {}
        for _ in range(_REPEATS):
            for method, run in ASSIGNMENTS.items():
                seconds, found = _timed(partial(run, points, codebook))
                taken[method].append(seconds)
                agreement[method] = float((found[: len(nearest)] == nearest).double().mean())
        for method, times in taken.items():
            line = Assignment(N, K, method, min(times), agreement[method])
            append_line(path, asdict(line))
            tell(str(line))


def _patches(n: int) -> Tensor:
    """Return photo patches of 5 x 5 pixels in three colours, each another one."""
    every = photo_windows(5)
    return torch.from_numpy(every[np.random.default_rng(1).permutation(len(every))[:n]])


def _normal(n: int) -> Tensor:
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(1))


LARGE_DATA: dict[str, Callable[[int], Tensor]] = {"patches": _patches, "normal": _normal}
"""Points and codes of one kind: codes that stand where points are, and, normal, such as no index can group."""


def measure_large(path: Path, N: int, K: int, tell: Callable[[str], object]) -> None:
    """Time the index against exact searches for N points among K others as codes, unless the file holds it."""
    known = {(line.data, line.K) for line in read_lines(path, LargeSearch)}
    for data in LARGE_DATA:
        for line in () if (data, K) in known else _searched(data, N, K):
            append_line(path, asdict(line))
            tell(str(line))


def _searched(data: str, N: int, K: int) -> list[LargeSearch]:
    codebook, points, others = LARGE_DATA[data](K + 2 * N).split([K, N, N])
    began = time.process_time()
    index = ApproximateIndex.measured(codebook, others, "l2", recall=_RECALL)
    built = time.process_time() - began
    ways = {name: partial(run, points, codebook) for name, run in ASSIGNMENTS.items()}
    ways[_INDEX] = partial(index.search, points)
    timed: dict[str, list[tuple[float, Tensor]]] = {name: [] for name in ways}
    for _ in range(2):
        for name, run in ways.items():
            timed[name].append(_timed(run))
    distances = {
        name: (points.double() - codebook.double()[runs[0][1]]).square().sum(dim=1) for name, runs in timed.items()
    }
    least = torch.stack(list(distances.values())).amin(dim=0)
    return [
        LargeSearch(
            data=data,
            N=N,
            K=K,
            method=name,
            cpu_seconds=min(seconds for seconds, _ in runs),
            build_seconds=built if name == _INDEX else 0.0,
            recall=float((distances[name] <= least * (1 + _EQUALLY_NEAR)).double().mean()),
            cells=index.settings.cells if name == _INDEX else 0,
            probes=index.settings.probes if name == _INDEX else 0,
            measured=index.settings.recall if name == _INDEX else 1.0,
        )
        for name, runs in timed.items()
    ]
