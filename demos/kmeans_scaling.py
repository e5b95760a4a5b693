"""How a fit grows with N: time and memory, for the k-means bench.

One line of JSON for each, and none twice, as in `kmeans_cells`. A fit runs in a process of its own, because the peak of
a process's memory never goes down again.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from collapse_guard.kmeans import fit_codebook

from .kmeans_cells import append_line, read_lines
from .kmeans_data import blobs

__all__ = ["ScalingFit", "measure_scaling"]


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


def measure_scaling(path: Path, sizes: Sequence[tuple[int, int]], tell: Callable[[str], object]) -> None:
    """Fit each (N, K) that the file does not hold yet in a new process, and append it."""
    known = {(fit.N, fit.K) for fit in read_lines(path, ScalingFit)}
    for N, K in sizes:
        if (N, K) not in known:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                fit = pool.apply(_scaled, (N, K))
            append_line(path, asdict(fit))
            tell(str(fit))


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
