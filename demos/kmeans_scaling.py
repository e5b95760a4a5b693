"""Further measurements of the k-means bench: how a fit grows with N, and what one assignment costs.

One line of JSON for each, and none twice, as in `kmeans_cells`. A fit runs in a process of its own, because the peak of
a process's memory never goes down again.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from collapse_guard.kmeans import assign, fit_codebook

from .kmeans_cells import append_line
from .kmeans_data import blobs

__all__ = ["ASSIGNMENTS", "Assignment", "ScalingFit", "measure_assignments", "measure_scaling", "read_lines"]

_REPEATS = 5
_CHUNK = 1 << 22  # scores held at once, as `assign` holds them

Line = TypeVar("Line", "ScalingFit", "Assignment")


@dataclass(frozen=True, slots=True)
class ScalingFit:
    """One fit of `fit_codebook` to N blobs of dimension 64, seed 1.

    Attributes:
        N: points. K: codes.
        iterations: that it took.
        seconds: wall time. cpu_seconds: CPU time of all threads.
        before: peak resident MiB of the process before the fit, the points included. peak: at its end.
    """

    N: int
    K: int
    iterations: int
    seconds: float
    cpu_seconds: float
    before: float
    peak: float


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


def read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """Return what a file holds; torn lines are left out. No file, nothing."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [kind(**json.loads(line)) for line in lines if line.endswith("}")]


def _append(path: Path, line: ScalingFit | Assignment, tell: Callable[[str], object]) -> None:
    append_line(path, asdict(line))
    tell(str(line))


def measure_scaling(path: Path, sizes: Sequence[tuple[int, int]], tell: Callable[[str], object]) -> None:
    """Fit each (N, K) that the file does not hold yet in a new process, and append it."""
    known = {(fit.N, fit.K) for fit in read_lines(path, ScalingFit)}
    for N, K in sizes:
        if (N, K) not in known:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                _append(path, pool.apply(_scaled, (N, K)), tell)


def _scaled(N: int, K: int) -> ScalingFit:
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    points = torch.from_numpy(blobs(N, 1))
    fit_codebook(points[:2000], 16)  # loads what a fit needs
    before = _peak()
    began, began_cpu = time.perf_counter(), time.process_time()
    fit = fit_codebook(points, K, seed=1)
    return ScalingFit(
        N, K, fit.iterations, time.perf_counter() - began, time.process_time() - began_cpu, before, _peak()
    )


def _peak() -> float:
    """Return the largest resident memory of this process so far, in MiB.

    Linux hands the maximum that `getrusage` tells down to child processes, but not that in `/proc`.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # not on every system

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1 << 20 if sys.platform == "darwin" else 1 << 10)


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
    "assign": assign,
    "FAISS IndexFlatL2": _through_faiss,
    "chunked addmm": _by_addmm,
}


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
                began = time.process_time()
                found = run(points, codebook)
                taken[method].append(time.process_time() - began)
                agreement[method] = float((found[: len(nearest)] == nearest).double().mean())
        for method, times in taken.items():
            _append(path, Assignment(N, K, method, min(times), agreement[method]), tell)
