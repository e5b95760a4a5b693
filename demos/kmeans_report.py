"""The tables of the k-means bench, from the fits that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from .kmeans_cells import BenchFit
from .kmeans_refit import REFITS, RefitLine
from .kmeans_scaling import ScalingFit
from .kmeans_search import Assignment, LargeSearch

__all__ = [
    "assignments_as_markdown",
    "fits_as_markdown",
    "large_as_markdown",
    "refits_as_markdown",
    "scaling_as_markdown",
]

_INTRODUCTION = """# k-means: quality for time

Written by `make bench-kmeans` on {date} (UTC). Machine: 2 shared x86-64 cores with AVX2; every method has one thread.
Inertia is the mean squared distance of a latent from its nearest code, found by the same exact search for all methods.
Time is CPU time of the process: the machine had other work, which wall time shows more than the method; both are in
`kmeans.jsonl`, with every single fit. Ratios are paired by seed, then averaged; below 1 is better than `{reference}`.
A method is *dominated* where another is both better and faster in the mean over the seeds that both have.
The bench asks for 5 seeds, from 1, and K of 512, 1024 and 4096; what is not in a table has not been measured yet.
Defaults of `fit_codebook` were chosen on other seeds: 0, 100 and 101.

- blobs: 1024 normal clusters in 64 dimensions. patches: 5 x 5 pixels in colour of scikit-learn's two photos.
- latents: the last 65,536 that the quantizer of the digits demo was given in training.
"""


def fits_as_markdown(fits: Sequence[BenchFit], *, ours: str, reference: str) -> str:
    """Return the notes: what the bars ask, then a table for each data set and K."""
    date = datetime.now(timezone.utc).date()
    parts = [_INTRODUCTION.format(date=date, reference=reference), _bars(fits, ours, reference)]
    parts += ["![Error over CPU time of every method, relative to the reference](kmeans.svg)\n"]
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
    number_met = measured = 0
    for cell in _cells(fits):
        mine, theirs = _of(fits, cell, ours), _of(fits, cell, reference)
        ratios = _ratios(mine, theirs)
        by = ", ".join(_dominating(fits, cell, ours)) or "none"
        if ratios is None:
            lines.append(f"| {cell[0]} | {cell[1]} | 0 | not measured | not measured | - | {by} |")
            continue
        met = "yes" if ratios[0] <= 1 and ratios[1] <= 0.2 else "no"
        measured, number_met = measured + 1, number_met + (met == "yes")
        number = len(mine.keys() & theirs.keys())
        lines.append(f"| {cell[0]} | {cell[1]} | {number} | {ratios[0]:.4f} | {ratios[1]:.3f} | {met} | {by} |")
    return "\n".join([*lines, "", f"Both ratios are met in {number_met} of the {measured} cells measured.", ""])


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


def scaling_as_markdown(fits: Sequence[ScalingFit]) -> str:
    """Return the table of the time and memory of a fit by N and K."""
    head = [
        "## Growth of `fit_codebook` with N",
        "",
        "Blobs of dimension 64, seed 1, default budget, a process of its own for each line. Memory is the peak of the",
        "process: before the fit, which is Python, its libraries and the making of the points; and after it.",
        "",
        "| N | K | iterations | CPU s | CPU us per point | wall s | MiB before | MiB peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {fit.N:,} | {fit.K:,} | {fit.iterations} | {fit.cpu_seconds:.2f} | {1e6 * fit.cpu_seconds / fit.N:.1f} "
        f"| {fit.seconds:.2f} | {fit.before:.0f} | {fit.peak:.0f} |"
        for fit in sorted(fits, key=lambda fit: (fit.K, fit.N))
    ]
    return "\n".join([*head, *(rows or ["| not measured yet | | | | | | | |"]), ""])


def assignments_as_markdown(lines: Sequence[Assignment]) -> str:
    """Return the table of what one assignment costs, and the speed of ours relative to the quickest other."""
    methods = list(dict.fromkeys(line.method for line in lines))
    by = {(line.K, line.method): line for line in lines}
    head = [
        "## One assignment",
        "",
        "65,536 normal points of dimension 64, one thread, CPU seconds, the least of 5 in turns. Speed is that of",
        "`assign` relative to the quickest other; the aim is 0.95. Agreement: with the nearest code in float64.",
        "",
        f"| K |{''.join(f' {method} |' for method in methods)} speed | agreement, in the same order |",
        f"|---|{'---|' * len(methods)}---|---|",
    ]
    for K in sorted({line.K for line in lines}):
        row = [by[K, method] for method in methods]
        mine = next(line for line in row if line.method == "assign")
        speed = min(line.cpu_seconds for line in row if line is not mine) / mine.cpu_seconds
        times = "".join(f" {line.cpu_seconds:.4f} |" for line in row)
        head.append(f"| {K:,} |{times} {speed:.2f} | {', '.join(f'{line.agreement:.4f}' for line in row)} |")
    return "\n".join([*head, ""])


def large_as_markdown(lines: Sequence[LargeSearch]) -> str:
    """Return the table of searches among very many codes, exact and approximate."""
    head = [
        "## One assignment among very many codes",
        "",
        "CPU seconds, one thread, the least of 2 in turns. Codes are points of the same kind: photo patches of",
        "dimension 75, or normal points of dimension 64, which no index can group. The index looks through as few",
        "cells as gave a recall of 0.99 on other points. Speed is relative to FAISS IndexFlatL2.",
        "",
        "| data | points | K | method | CPU s | speed | recall@1 | cells looked through | CPU s to build |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    flat = {(line.data, line.K): line.cpu_seconds for line in lines if line.method.startswith("FAISS")}
    for line in lines:
        speed = f"{flat[line.data, line.K] / line.cpu_seconds:.2f}" if (line.data, line.K) in flat else "-"
        looked, built = (f"{line.probes} of {line.cells}", f"{line.build_seconds:.1f}") if line.cells else ("-", "-")
        head.append(
            f"| {line.data} | {line.N:,} | {line.K:,} | {line.method} | {line.cpu_seconds:.2f} | {speed} "
            f"| {line.recall:.4f} | {looked} | {built} |"
        )
    return "\n".join([*head, *(["| not measured yet | | | | | | | | |"] if not lines else []), ""])


def refits_as_markdown(lines: Sequence[RefitLine]) -> str:
    """Return the table of what refits do to token ids and to the error."""
    head = [
        "## Token ids over a refit",
        "",
        "The latents of the digits demo in the order in which its quantizer saw them, cut into windows. A codebook is",
        "fitted to the first and refitted to each later one, in three ways: from the present codes and matched to",
        "them; from a new start and matched; from a new start, in the order in which it comes. *Kept*: share of a",
        "window's latents with the same id before and after its refit; mean over refits and seeds, and the least of",
        "all. Error: relative to that of the first window's codebook, never refitted, on the same latents.",
        "",
        "| K | latents of a window | seeds | refits | way | ids kept | least | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for K, N in sorted({(line.K, line.N) for line in lines}):
        for way in REFITS:
            these = [line for line in lines if (line.K, line.N, line.way) == (K, N, way)]
            if not these:
                continue
            kept = [line.unchanged for line in these]
            error = statistics.mean(line.error / line.stale for line in these)
            head.append(
                f"| {K:,} | {N:,} | {len({line.seed for line in these})} | {len(these)} | {way} "
                f"| {statistics.mean(kept):.1%} | {min(kept):.1%} | {error:.3f} |"
            )
    return "\n".join([*head, *(["| not measured yet | | | | | | | |"] if not lines else []), ""])
