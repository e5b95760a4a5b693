"""The tables of the k-means bench, from the fits that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from .kmeans_cells import BenchFit

__all__ = ["fits_as_markdown"]

_INTRODUCTION = """# k-means: quality for time

Written by `make bench-kmeans` on {date} (UTC). Machine: 2 shared x86-64 cores with AVX2; every method has one thread.
Inertia is the mean squared distance of a latent from its nearest code, found by the same exact search for all methods.
Time is CPU time of the process: the machine had other work, which wall time shows more than the method; both are in
`kmeans.jsonl`, with every single fit. Ratios are paired by seed, then averaged; below 1 is better than `{reference}`.
A method is *dominated* where another is both better and faster in the mean over the seeds that both have.
The bench asks for 5 seeds and K of 512, 1024 and 4096; what is not in a table has not been measured yet.

- blobs: 1024 normal clusters in 64 dimensions. patches: 5 x 5 pixels in colour of scikit-learn's two photos.
- latents: the last 65,536 that the quantizer of the digits demo was given in training.
"""


def fits_as_markdown(fits: Sequence[BenchFit], *, ours: str, reference: str) -> str:
    """Return the notes: what the bars ask, then a table for each data set and K."""
    date = datetime.now(timezone.utc).date()
    parts = [_INTRODUCTION.format(date=date, reference=reference), _bars(fits, ours, reference)]
    parts += [_cell(fits, cell, reference) for cell in _cells(fits)]
    return "\n".join(parts)


def _cells(fits: Iterable[BenchFit]) -> list[tuple[str, int]]:
    return sorted({(fit.data, fit.K) for fit in fits})


def _of(fits: Iterable[BenchFit], cell: tuple[str, int], method: str) -> dict[int, BenchFit]:
    return {fit.seed: fit for fit in fits if (fit.data, fit.K) == cell and fit.method == method}


def _ratios(mine: dict[int, BenchFit], theirs: dict[int, BenchFit]) -> tuple[float, float] | None:
    """Return the mean ratios of inertia and of CPU time over the seeds that both have; `None` without any."""
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        return None
    return (
        statistics.mean(mine[seed].inertia / theirs[seed].inertia for seed in both),
        statistics.mean(mine[seed].cpu_seconds / theirs[seed].cpu_seconds for seed in both),
    )


def _dominating(fits: Sequence[BenchFit], cell: tuple[str, int], ours: str) -> list[str]:
    """Return the methods that are both better and faster than ours."""
    mine = _of(fits, cell, ours)
    rivals = sorted({fit.method for fit in fits if not fit.method.startswith(ours)})
    found = ((rival, _ratios(_of(fits, cell, rival), mine)) for rival in rivals)
    return [rival for rival, ratios in found if ratios is not None and ratios[0] < 1 and ratios[1] < 1]


def _bars(fits: Sequence[BenchFit], ours: str, reference: str) -> str:
    lines = [
        f"## `{ours}` against {reference}",
        "",
        "| data | K | seeds | inertia, ratio | CPU time, ratio | at most 1 and 1/5 | dominated by |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in _cells(fits):
        mine, theirs = _of(fits, cell, ours), _of(fits, cell, reference)
        ratios = _ratios(mine, theirs)
        by = ", ".join(_dominating(fits, cell, ours)) or "none"
        if ratios is None:
            lines.append(f"| {cell[0]} | {cell[1]} | 0 | not measured | not measured | - | {by} |")
            continue
        met = "yes" if ratios[0] <= 1 and ratios[1] <= 0.2 else "no"
        number = len(mine.keys() & theirs.keys())
        lines.append(f"| {cell[0]} | {cell[1]} | {number} | {ratios[0]:.4f} | {ratios[1]:.3f} | {met} | {by} |")
    return "\n".join([*lines, ""])


def _cell(fits: Sequence[BenchFit], cell: tuple[str, int], reference: str) -> str:
    """Return the table of one data set and K, the quickest method first: quality over time."""
    rows = []
    for method in {fit.method for fit in fits if (fit.data, fit.K) == cell}:
        runs = _of(fits, cell, method)
        ratios = _ratios(runs, _of(fits, cell, reference))
        cpu, wall = (
            statistics.mean(getattr(run, name) for run in runs.values()) for name in ("cpu_seconds", "seconds")
        )
        inertia = statistics.mean(run.inertia for run in runs.values())
        ratio = "-" if ratios is None else f"{ratios[0]:.4f}"
        rows.append((cpu, f"| {method} | {len(runs)} | {inertia:.5g} | {ratio} | {cpu:.2f} | {wall:.2f} |"))
    head = ["| method | seeds | inertia | ratio | CPU s | wall s |", "|---|---|---|---|---|---|"]
    return "\n".join([f"## {cell[0]}, K = {cell[1]}", "", *head, *(row for _, row in sorted(rows)), ""])
