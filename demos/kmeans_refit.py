"""What a refit does to token ids: the share of latents that keep theirs while the encoder drifts, by way of refitting.

The latents are those of the digits demo in the order in which its quantizer was given them, cut into windows. A
codebook is fitted to the first window and refitted to each later one; every way has a codebook of its own, which it
carries on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from collapse_guard.kmeans import KMeansTokenizer, assign, fit_codebook, squared_errors

from .kmeans_cells import append_line, read_lines
from .kmeans_data import BENCH_DATA

__all__ = ["REFITS", "RefitLine", "measure_refits"]

_WINDOWS = 8


@dataclass(frozen=True, slots=True)
class RefitLine:
    """One refit.

    Attributes:
        N: latents of a window. K: codes. seed: of the data and the fits. window: from 1; 0 is the first fit. way: of
            `REFITS`.
        unchanged: share of the window's latents with the id that they had in the codebook before.
        error: mean squared distance of the window's latents after the refit.
        stale: that of the first window's codebook, never refitted.
    """

    N: int
    K: int
    seed: int
    window: int
    way: str
    unchanged: float
    error: float
    stale: float


def _warm(tokenizer: KMeansTokenizer, latents: Tensor, seed: int) -> None:
    tokenizer.refit(latents, start="warm", seed=seed)


def _fresh(tokenizer: KMeansTokenizer, latents: Tensor, seed: int) -> None:
    tokenizer.refit(latents, start="fresh", seed=seed)


def _unmatched(tokenizer: KMeansTokenizer, latents: Tensor, seed: int) -> None:
    tokenizer.codebook.copy_(fit_codebook(latents, tokenizer.K, seed=seed, budget=20).codebook)


REFITS: dict[str, Callable[[KMeansTokenizer, Tensor, int], None]] = {
    "warm, matched": _warm,
    "fresh, matched": _fresh,
    "fresh, unmatched": _unmatched,
}


def measure_refits(
    path: Path, N: int, codes: Sequence[int], seeds: Sequence[int], tell: Callable[[str], object]
) -> None:
    """Refit whatever the file does not hold yet to windows of N latents in a row, and append it."""
    known = {(line.N, line.K, line.seed) for line in read_lines(path, RefitLine)}
    for seed in seeds:
        wanted = [K for K in codes if (N, K, seed) not in known]
        if not wanted:
            continue
        windows = torch.from_numpy(BENCH_DATA["latents"](_WINDOWS * N, seed)).split(N)
        for K in wanted:
            lines = [line for way in REFITS for line in _refitted(windows, K, seed, way)]
            for line in lines:  # all of a cell or, cut off, none of it
                append_line(path, asdict(line))
            tell(f"refits, K {K}, seed {seed}: {[(line.way, round(line.unchanged, 3)) for line in lines]}")


def _refitted(windows: Sequence[Tensor], K: int, seed: int, way: str) -> list[RefitLine]:
    tokenizer = KMeansTokenizer.fit(windows[0], K, seed=seed)
    first = tokenizer.codebook.clone()
    lines = []
    for window, latents in enumerate(windows[1:], start=1):
        before = tokenizer.encode(latents)
        REFITS[way](tokenizer, latents, seed + 1000 * window)
        after = tokenizer.encode(latents)
        stale = squared_errors(latents, first, assign(latents, first)).double().mean()
        error = squared_errors(latents, tokenizer.codebook, after).double().mean()
        unchanged = float((before == after).double().mean())
        lines.append(RefitLine(len(latents), K, seed, window, way, unchanged, float(error), float(stale)))
    return lines
