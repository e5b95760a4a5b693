"""An approximate search for codebooks that are too large to look through: an inverted file whose recall was measured.

Codes are grouped into cells (FAISS `IndexIVFFlat`: Sivic and Zisserman, "Video Google", 2003), and only the cells
nearest to a latent are looked through. How many is settled on latents of the user's: the fewest that give the recall
asked for. A recall that was not measured is not claimed. Of codes that lie equally near either is right: real codebooks
hold codes that are nearly equal, and which of them a search returns is a matter of rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .search import Metric, assign, comparable_rows, unit_rows

__all__ = ["ApproximateIndex", "IndexSettings"]

_TRIED = 4096  # latents that the recall is measured on
_SEED = 1234
_EQUALLY_NEAR = 1e-5  # relative difference of squared distances
_SURE = 2.326  # standard deviations: 99 in 100 samples of latents, since several numbers of cells are tried on one
_WORTHWHILE = 1 / 32  # share of the cells: one thread, looking through more is slower than an exact search


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """What makes an index the same again for the same codebook.

    Attributes:
        cells: groups of codes. probes: cells looked through for each latent.
        recall: share of the latents tried that got their nearest code, or one as near to a hundred-thousandth, in
            [0, 1]. tried: how many were.
        wanted: recall that was asked for, and is asked for again when the codebook changes.

    Raises:
        ValueError: out of range.
    """

    cells: int
    probes: int
    recall: float
    tried: int
    wanted: float = 0.99

    def __post_init__(self) -> None:
        """Refuse what no index has."""
        if not 1 <= self.probes <= self.cells or not 0 <= self.recall <= 1 or not 0 < self.wanted <= 1:
            raise ValueError(f"index: expected 1 <= probes <= cells and shares in [0, 1], got {self}")

    @property
    def is_sure(self) -> bool:
        """Whether the recall leaves hardly a doubt that among all latents it is at least what was wanted."""
        n, z = self.tried, _SURE
        middle = self.recall + z**2 / (2 * n)
        width = z * math.sqrt(self.recall * (1 - self.recall) / n + (z / (2 * n)) ** 2)
        return (middle - width) / (1 + z**2 / n) >= self.wanted


class ApproximateIndex:
    """Finds codes in a large codebook, nearly always the nearest.

    Args:
        codebook: (K, D) finite.
        metric: how latents and codes are compared.
        settings: as measured before, on this codebook.

    Attributes:
        settings: what it was made with.
    """

    def __init__(self, codebook: Tensor, metric: Metric, settings: IndexSettings) -> None:
        """Build the index; the same codebook and settings give the same index."""
        self.settings = settings
        self._metric: Metric = metric
        self._index = _built(_rows(codebook, metric), settings.cells)

    @classmethod
    def measured(
        cls, codebook: Tensor, latents: Tensor, metric: Metric, *, recall: float, only_worthwhile: bool = False
    ) -> ApproximateIndex:
        """Build an index that looks through as few cells as give this recall, tried on up to 4096 of the latents.

        Other latents will be looked up than those, so a recall counts as reached where the lower end of its one-sided
        99 % interval is (Wilson, J. Am. Stat. Assoc. 1927).

        Args:
            codebook: (K, D) finite.
            latents: (N, D) such as will be looked up, N at least 1; those without a nearest code are left out.
            metric: how they are compared.
            recall: asked for, in (0, 1]; all cells are looked through where less does not give it.
            only_worthwhile: stop at a 32nd of the cells, beyond which an exact search is quicker; the recall in the
                settings may then be less than was asked for.

        Raises:
            ValueError: no latents, or a recall out of range.
        """
        latents = latents[comparable_rows(latents, metric)]
        if len(latents) == 0 or not 0 < recall <= 1:
            raise ValueError(
                f"expected finite latents to measure on and a recall in (0, 1], got {len(latents)} and {recall}"
            )
        chosen = torch.randperm(len(latents), generator=torch.Generator().manual_seed(_SEED))[:_TRIED]
        tried = latents[chosen.to(latents.device)]
        cells = max(1, min(len(codebook) // 39, round(4 * len(codebook) ** 0.5)))
        index = cls(codebook, metric, IndexSettings(cells, 1, 0.0, len(tried), recall))
        trial = _Trial(tried, codebook, metric)

        def looking_through(probes: int) -> IndexSettings:
            return replace(index.settings, probes=probes, recall=trial.recall(index._found(trial.rows, probes)))

        most = max(1, int(cells * _WORTHWHILE)) if only_worthwhile else cells
        best = looking_through(1)
        while not best.is_sure and best.probes < most:
            best = looking_through(min(2 * best.probes, most))
        low = best.probes // 2 if best.is_sure else best.probes  # the least that suffices lies above
        while best.probes - low > 1:
            middle = looking_through((low + best.probes) // 2)
            if middle.is_sure:
                best = middle
            else:
                low = middle.probes
        index.settings = best
        return index

    def search(self, latents: Tensor) -> Tensor:
        """Return a code for each of (N, D) finite latents, (N,) int64 on their device."""
        return torch.from_numpy(self._found(_rows(latents, self._metric), self.settings.probes)).to(latents.device)

    def _found(self, rows: np.ndarray, probes: int) -> np.ndarray:
        self._index.nprobe = probes
        codes: np.ndarray = self._index.search(rows, 1)[1][:, 0]
        if (nowhere := codes < 0).any():  # the cells looked through hold no code: look through all
            self._index.nprobe = self.settings.cells
            codes[nowhere] = self._index.search(rows[nowhere], 1)[1][:, 0]
        return codes


class _Trial:
    """Latents with their nearest codes, for telling what share of them a search gets right."""

    def __init__(self, latents: Tensor, codebook: Tensor, metric: Metric) -> None:
        """Search exactly."""
        self.rows, self._codes = _rows(latents, metric), _rows(codebook, metric)
        self._least = self._distances(assign(latents, codebook, metric).cpu().numpy())

    def recall(self, found: np.ndarray) -> float:
        """Return the share of the latents whose found code is their nearest, or as near."""
        return float((self._distances(found) <= self._least * (1 + _EQUALLY_NEAR)).mean())

    def _distances(self, codes: np.ndarray) -> np.ndarray:
        distances: np.ndarray = np.square(self.rows - self._codes[codes], dtype=np.float64).sum(axis=1)
        return distances


def _rows(values: Tensor, metric: Metric) -> np.ndarray:
    rows = values.detach().float()
    return np.ascontiguousarray((unit_rows(rows) if metric == "cosine" else rows).cpu().numpy())


def _built(rows: np.ndarray, cells: int) -> Any:
    import faiss

    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(rows.shape[1]), rows.shape[1], cells)
    index.cp.seed = _SEED
    index.cp.min_points_per_centroid = 1
    index.train(rows)
    index.add(rows)
    return index
