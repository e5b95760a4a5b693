"""The k-means bench: quality for time, against scikit-learn and FAISS; `make bench-kmeans` runs it.

Writes one line for each fit to `docs/benchmarks/kmeans.jsonl` and the tables to `docs/benchmarks/kmeans.md`. What the
file holds is not fitted again: delete it to begin anew. One thread for every method, set before anything is loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .kmeans_cells import measure_fits, read_fits
from .kmeans_data import BENCH_DATA
from .kmeans_methods import BENCH_METHODS, OURS, REFERENCE
from .kmeans_report import fits_as_markdown

__all__ = ["main"]

_NOTES = Path("docs/benchmarks")


def main() -> None:
    """Measure what is missing, then write the tables."""
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(prog="bench-kmeans", description="k-means: quality for time, against its rivals")
    parser.add_argument("--quick", action="store_true", help="8,192 points, 128 codes, one seed; written to runs/")
    parser.add_argument("--report", action="store_true", help="fit nothing, write the tables anew")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--codes", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument(
        "--methods", nargs="+", default=list(BENCH_METHODS), choices=list(BENCH_METHODS), metavar="NAME"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    threadpool_limits(limits=1)  # for what is left of the process
    N, codes, seeds, folder = 65_536, asked.codes, asked.seeds, _NOTES
    if asked.quick:
        N, codes, seeds, folder = 8192, [128], 1, Path("runs/bench_kmeans")
    folder.mkdir(parents=True, exist_ok=True)
    if not asked.report:
        measure_fits(folder / "kmeans.jsonl", list(BENCH_DATA), N, codes, seeds, asked.methods, print)
    text = fits_as_markdown(read_fits(folder / "kmeans.jsonl"), ours=OURS, reference=REFERENCE)
    (folder / "kmeans.md").write_text(text, encoding="utf-8")
    print(text)
