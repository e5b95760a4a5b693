"""The measured part of the k-means bench: one line of JSON for each fit, and no fit twice.

A run that was broken off goes on where it stopped. Wall time tells what a user waits; the CPU time of the process,
over all threads, hardly minds what else the machine does, so ratios of it are what to compare on a shared one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

import torch

from collapse_guard.kmeans import assign

from .kmeans_data import BENCH_DATA, Points
from .kmeans_methods import BENCH_METHODS

__all__ = ["BenchFit", "append_line", "measure_fits", "read_lines"]

Line = TypeVar("Line")


@dataclass(frozen=True, slots=True)
class BenchFit:
    """One fit.

    Attributes:
        data: a name of `BENCH_DATA`.
        N: points. K: codes. seed: of the data and the fit.
        method: a name of `BENCH_METHODS`.
        inertia: mean squared distance of a point from its nearest code, the same exact search for all methods.
        seconds: wall time. cpu_seconds: CPU time of all threads.
    """

    data: str
    N: int
    K: int
    seed: int
    method: str
    inertia: float
    seconds: float
    cpu_seconds: float

    @property
    def key(self) -> tuple[object, ...]:
        """Return what tells this fit from any other."""
        return (self.data, self.N, self.K, self.seed, self.method)


def read_lines(path: Path, kind: Callable[..., Line]) -> list[Line]:
    """Return the records of one dataclass that a file holds; torn lines are left out. No file, nothing."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [kind(**json.loads(line)) for line in lines if line.endswith("}")]


def append_line(path: Path, values: dict[str, object]) -> None:
    """Append a line of JSON; after a torn one, on a line of its own."""
    is_torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * is_torn + json.dumps(values) + "\n")


def measure_fits(
    path: Path,
    datasets: Sequence[str],
    N: int,
    codes: Sequence[int],
    seeds: Sequence[int],
    methods: Sequence[str],
    tell: Callable[[str], object],
) -> None:
    """Fit whatever the file does not hold yet, methods taking turns on each data set, K and seed, and append it."""
    known = {fit.key for fit in read_lines(path, BenchFit)}
    for data, K, seed, method in _order(datasets, codes, seeds, methods):
        if (data, N, K, seed, method) in known:
            continue
        points = _points(data, N, seed)
        _warm(method)
        fit = _fit(data, points, K, seed, method)
        append_line(path, asdict(fit))
        tell(
            f"{data}, K {K}, seed {seed}, {method}: "
            f"{fit.inertia:.5g} in {fit.seconds:.2f} s ({fit.cpu_seconds:.2f} s CPU)"
        )


def _order(
    datasets: Sequence[str], codes: Sequence[int], seeds: Sequence[int], methods: Sequence[str]
) -> Iterator[tuple[str, int, int, str]]:
    """Yield what to fit: every cell for one seed before the next, each seed beginning with another method."""
    for seed in seeds:
        turn = seed % len(methods)
        for data in datasets:
            for K in codes:
                for method in [*methods[turn:], *methods[:turn]]:
                    yield data, K, seed, method


@lru_cache(maxsize=4)
def _points(data: str, N: int, seed: int) -> Points:
    return BENCH_DATA[data](N, seed)


@cache
def _warm(method: str) -> None:
    """Load what a method needs, so that its first fit is timed as any other."""
    BENCH_METHODS[method](BENCH_DATA["blobs"](2000, 0), 16, 0)


def _fit(data: str, points: Points, K: int, seed: int, method: str) -> BenchFit:
    began, began_cpu = time.perf_counter(), time.process_time()
    table = BENCH_METHODS[method](points, K, seed)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    latents, codebook = torch.from_numpy(points), torch.from_numpy(table)
    errors = (latents - codebook[assign(latents, codebook)]).double().square().sum(dim=1)
    return BenchFit(data, len(points), K, seed, method, float(errors.mean()), seconds, cpu_seconds)
