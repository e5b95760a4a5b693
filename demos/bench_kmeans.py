"""The k-means bench: quality for time, against scikit-learn and FAISS; `make bench-kmeans` runs it.

Writes one line for each fit to `docs/benchmarks/kmeans.jsonl`, those of the other parts to files beside it, the tables
to `docs/benchmarks/kmeans.md` and their picture to `kmeans.svg`. What the files hold is not measured again: delete them
to begin anew, as after any change to `fit_codebook`. One thread for every method, set before anything is loaded.
Seeds begin with 1, since defaults were chosen on seed 0.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from .kmeans_cells import BenchFit, measure_fits, read_lines
from .kmeans_data import BENCH_DATA
from .kmeans_methods import BENCH_METHODS, OURS, REFERENCE
from .kmeans_plot import quality_over_time
from .kmeans_refit import RefitLine, measure_refits
from .kmeans_report import (
    assignments_as_markdown,
    fits_as_markdown,
    large_as_markdown,
    refits_as_markdown,
    scaling_as_markdown,
)
from .kmeans_scaling import ScalingFit, measure_scaling
from .kmeans_search import Assignment, LargeSearch, measure_assignments, measure_large

__all__ = ["main"]

_NOTES = Path("docs/benchmarks")
_PARTS = ("fits", "scaling", "assignment", "refit")
_SIZES = [(62_500 << n, 1024) for n in range(5)] + [(131_072, 16_384), (1_000_000, 16_384)]
_CODES = [512 << n for n in range(6)]
_LARGE = (4096, 262_144)  # points and codes
_REFITS = (8192, [128, 512])  # latents of a window, codes


def main() -> None:
    """Measure what is missing, then write the tables."""
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(prog="bench-kmeans", description="k-means: quality for time, against its rivals")
    parser.add_argument("--quick", action="store_true", help="8,192 points, 128 codes, one seed; written to runs/")
    parser.add_argument("--report", action="store_true", help="fit nothing, write the tables anew")
    parser.add_argument("--parts", nargs="+", default=list(_PARTS), choices=_PARTS)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 1")
    parser.add_argument("--codes", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument(
        "--methods", nargs="+", default=list(BENCH_METHODS), choices=list(BENCH_METHODS), metavar="NAME"
    )
    asked = parser.parse_args()
    tell = partial(print, flush=True)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    threadpool_limits(limits=1)  # for what is left of the process
    N, codes, seeds, folder = 65_536, asked.codes, asked.seeds, _NOTES
    sizes, assigned, large, refits = _SIZES, _CODES, _LARGE, _REFITS
    if asked.quick:
        N, codes, seeds, folder = 8192, [128], 1, Path("runs/bench_kmeans")
        sizes, assigned, large, refits = [(8192, 128), (16_384, 128)], [128], (512, 8192), (1024, [32])
    folder.mkdir(parents=True, exist_ok=True)
    parts = () if asked.report else asked.parts
    kept = {name: folder / f"kmeans{name}.jsonl" for name in ("", "_scaling", "_assign", "_index", "_refit")}
    if "fits" in parts:
        measure_fits(kept[""], list(BENCH_DATA), N, codes, range(1, seeds + 1), asked.methods, tell)
    if "assignment" in parts:
        measure_assignments(kept["_assign"], N, assigned, tell)
        measure_large(kept["_index"], *large, tell)
    if "refit" in parts:
        measure_refits(kept["_refit"], *refits, range(1, min(seeds, 3) + 1), tell)
    if "scaling" in parts:
        measure_scaling(kept["_scaling"], sizes, tell)
    fits = read_lines(kept[""], BenchFit)
    tables = [
        fits_as_markdown(fits, ours=OURS, reference=REFERENCE),
        scaling_as_markdown(read_lines(kept["_scaling"], ScalingFit)),
        assignments_as_markdown(read_lines(kept["_assign"], Assignment)),
        large_as_markdown(read_lines(kept["_index"], LargeSearch)),
        refits_as_markdown(read_lines(kept["_refit"], RefitLine)),
    ]
    text = "\n".join(tables)
    (folder / "kmeans.md").write_text(text, encoding="utf-8")
    (folder / "kmeans.svg").write_text(quality_over_time(fits, reference=REFERENCE), encoding="utf-8")
    print(text)
