"""k-means on a GPU: seconds and error of `fit_codebook` where the latents are, beside FAISS on the same machine's CPU.

`make bench-kmeans-gpu` runs it: one line of JSON for each figure, none twice, in `docs/benchmarks/kmeans-gpu.jsonl`,
and the tables in `kmeans-gpu.md`. The error that scikit-learn reached on the same points is from `kmeans.jsonl`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collapse_guard.kmeans import ApproximateIndex, assign, fit_codebook

from .kmeans_cells import BenchFit, append_line, read_lines
from .kmeans_data import BENCH_DATA
from .kmeans_methods import BENCH_METHODS, REFERENCE

__all__ = ["DeviceFit", "device_fits_as_markdown", "main", "measure_device_fits"]

_NOTES = Path("docs/benchmarks")
_OURS, _ON_CPU, _LLOYD = "fit_codebook, GPU", "fit_codebook, CPU", "FAISS k-means++, 10 iterations"
_FITS = [
    *(("blobs", N, K, 1) for N in (65_536, 1_000_000) for K in (1024, 4096)),
    *((data, 65_536, K, seed) for seed in (1, 2, 3) for K in (512, 1024, 4096) for data in ("blobs", "patches")),
    ("blobs", 1_000_000, 16_384, 1),
]
_ASSIGNED = [(65_536, 1024), (65_536, 16_384), (65_536, 262_144), (1_000_000, 1024), (1_000_000, 16_384)]


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """One fit, or one assignment of normal points of dimension 64.

    Attributes:
        device: as torch names it. torch: its version. threads: of the CPU.
        data: a name of `BENCH_DATA`, or "assignment". N: points. K: codes. seed: of data and fit.
        method: what did it. seconds: wall time, the device awaited.
        inertia: mean squared distance of a point from its nearest code; of an assignment the share of points that got
            the code that the GPU found nearest.
        iterations: that it took, where it says so. peak: bytes on the device at most, beside the points.
    """

    device: str
    torch: str
    threads: int
    data: str
    N: int
    K: int
    seed: int
    method: str
    seconds: float
    inertia: float
    iterations: int = 0
    peak: int = 0


@lru_cache(maxsize=2)
def _points(data: str, N: int, seed: int) -> Tensor:
    return torch.from_numpy(BENCH_DATA[data](N, seed))


def _await(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_device_fits(
    path: Path,
    fits: Sequence[tuple[str, int, int, int]],
    assigned: Sequence[tuple[int, int]],
    device: str,
    seconds: float,
    tell: Callable[[str], object],
) -> None:
    """Measure what the file does not hold yet, until the time is up; the GPU first, then its rivals on the CPU."""
    ends = time.monotonic() + seconds
    name = torch.cuda.get_device_name() if device == "cuda" else device
    known = {(each.data, each.N, each.K, each.seed, each.method) for each in read_lines(path, DeviceFit)}
    work = [(*cell, method) for method in (_OURS, _ON_CPU, _LLOYD) for cell in dict.fromkeys(fits)]
    work += [("assignment", N, K, 1, "") for N, K in assigned]
    fit_codebook(torch.randn(4000, 64, device=device), 64)  # what a first call loads is not timed
    for data, N, K, seed, method in work:
        if (data, N, K, seed, method) in known or time.monotonic() > ends:
            continue
        if data == "assignment":
            found = [] if any(each[:3] == (data, N, K) for each in known) else _assigned(N, K, device)
        else:
            found = [_fitted(_points(data, N, seed), K, seed, method, device)]
        for each in found:
            line = DeviceFit(
                device=name,
                torch=torch.__version__,
                threads=len(os.sched_getaffinity(0)),
                **{"data": data, "N": N, "K": K, "seed": seed, "method": method} | each,  # type: ignore[arg-type]
            )
            append_line(path, asdict(line))
            tell(f"{data}, N {N}, K {K}, seed {seed}: {each}")


def _fitted(points: Tensor, K: int, seed: int, method: str, device: str) -> dict[str, object]:
    there = points.to(device)
    on_device = method == _OURS
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _await(device)
    began, iterations = time.perf_counter(), 0
    if method == _LLOYD:
        table = torch.from_numpy(BENCH_METHODS[_LLOYD](points.numpy(), K, seed))
    else:
        fit = fit_codebook(there if on_device else points, K, seed=seed)
        table, iterations = fit.codebook, fit.iterations
    _await(device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" and on_device else 0
    codebook = table.to(device)
    errors = (there - codebook[assign(there, codebook)]).double().square().sum(dim=1)
    found: dict[str, object] = {
        "seconds": seconds,
        "inertia": float(errors.mean()),
        "iterations": iterations,
        "peak": peak,
    }
    return found | {"method": method}


def _assigned(N: int, K: int, device: str) -> list[dict[str, object]]:
    import faiss

    draw = torch.Generator().manual_seed(1)
    points, codebook = torch.randn(N, 64, generator=draw), torch.randn(K, 64, generator=draw)
    near, far = points.to(device), codebook.to(device)
    flat = faiss.IndexFlatL2(64)
    flat.add(codebook.numpy())
    ways: dict[str, Callable[[], Tensor]] = {
        "assign, GPU": lambda: assign(near, far),
        "FAISS IndexFlatL2, CPU": lambda: torch.from_numpy(np.asarray(flat.search(points.numpy(), 1)[1][:, 0])),
    }
    if K >= 65_536:
        index = ApproximateIndex.measured(codebook, torch.randn(4096, 64, generator=draw), "l2", recall=0.99)
        ways["approximate index, CPU"] = lambda: index.search(points)
    exact = ways["assign, GPU"]().cpu()
    found: list[dict[str, object]] = []
    for method, run in ways.items():
        times, codes = [], exact
        for _ in range(5 if "GPU" in method else 1):
            _await(device)
            began = time.perf_counter()
            codes = run()
            _await(device)
            times.append(time.perf_counter() - began)
        agree = float((codes.cpu() == exact).double().mean())
        found.append({"method": method, "seconds": statistics.median(times), "inertia": agree})
    return found


def device_fits_as_markdown(lines: Sequence[DeviceFit], fits: Sequence[BenchFit]) -> str:
    """Return the page: fits by data, N and K, the means over the seeds that all have, then assignments."""
    first = lines[0]
    return "\n".join(
        [
            "# k-means on a GPU",
            "",
            f"Written by `make bench-kmeans-gpu` on one {first.device}, torch {first.torch}; the CPU beside it has",
            f"{first.threads} cores, all of which FAISS used. Wall time, the device awaited; every figure is in",
            "`kmeans-gpu.jsonl`. Error is the mean squared distance of a point from its nearest code, found by the",
            "same exact search for all. Where a cell has several seeds, times and errors are means. *Of scikit-learn*:",
            "the error divided by that of scikit-learn's KMeans (k-means++, to convergence) on the same points, from",
            "`kmeans.jsonl`, the mean over the seeds that both have; below 1 is better.",
            "",
            "| data | N | K | seeds | GPU | error | of scikit-learn | GPU memory | CPU | error | FAISS | error |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            *_fit_rows(lines, fits),
            "",
            "GPU and CPU: `fit_codebook` with latents there, backend torch and FAISS. FAISS: its own k-means++ and 10",
            "iterations. A dash was not measured.",
            "",
            "## Assignment",
            "",
            "The nearest of K codes for N normal points of dimension 64. Agreement: share of points with the code that",
            "the GPU found; exact searches differ where two codes are as near as float32 can tell.",
            "",
            "| N | K | method | seconds | agreement |",
            "|---|---|---|---|---|",
            *(
                f"| {each.N:,} | {each.K:,} | {each.method} | {each.seconds:.4f} | {each.inertia:.4f} |"
                for each in lines
                if each.data == "assignment"
            ),
            "",
        ]
    )


def _fit_rows(lines: Sequence[DeviceFit], fits: Sequence[BenchFit]) -> list[str]:
    known = {(fit.data, fit.N, fit.K, fit.seed): fit.inertia for fit in fits if fit.method == REFERENCE}
    rows = []
    for cell in dict.fromkeys((each.data, each.N, each.K) for each in lines if each.data != "assignment"):
        by = {
            method: [each for each in lines if (each.data, each.N, each.K) == cell and each.method == method]
            for method in (_OURS, _ON_CPU, _LLOYD)
        }
        ratios = [each.inertia / known[key] for each in by[_OURS] if (key := (*cell, each.seed)) in known]
        mine = by[_OURS]
        columns = [
            *cell[:1],
            *(f"{number:,}" for number in cell[1:]),
            len(mine),
            *_seconds_and_error(mine),
            f"{statistics.mean(ratios):.4f}" if ratios else "-",
            f"{max((each.peak for each in mine), default=0) / 2**20:.0f} MiB",
            *_seconds_and_error(by[_ON_CPU]),
            *_seconds_and_error(by[_LLOYD]),
        ]
        rows.append(f"| {' | '.join(map(str, columns))} |")
    return rows


def _seconds_and_error(lines: Sequence[DeviceFit]) -> tuple[str, str]:
    if not lines:
        return "-", "-"
    return (
        f"{statistics.mean(each.seconds for each in lines):.3f} s",
        f"{statistics.mean(each.inertia for each in lines):.5g}",
    )


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(prog="bench-kmeans-gpu", description="k-means on a GPU, beside FAISS on the CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing after that")
    parser.add_argument("--quick", action="store_true", help="one small cell of each, written to runs/")
    asked = parser.parse_args()
    folder = Path("runs/bench_kmeans_gpu") if asked.quick else _NOTES
    folder.mkdir(parents=True, exist_ok=True)
    fits, assigned = ([("blobs", 8192, 128, 1)], [(2048, 256)]) if asked.quick else (_FITS, _ASSIGNED)
    lines = folder / "kmeans-gpu.jsonl"
    measure_device_fits(lines, fits, assigned, asked.device, asked.seconds, partial(print, flush=True))
    page = device_fits_as_markdown(read_lines(lines, DeviceFit), read_lines(_NOTES / "kmeans.jsonl", BenchFit))
    (folder / "kmeans-gpu.md").write_text(page, encoding="utf-8")
    print(page)
