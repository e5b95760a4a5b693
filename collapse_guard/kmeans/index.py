"""An approximate search for codebooks that are too large to look through: an inverted file whose recall was measured.

Codes are grouped into cells (FAISS `IndexIVFFlat`: Sivic and Zisserman, "Video Google", 2003), and only the cells
nearest to a latent are looked through. How many is settled on latents of the user's: the fewest that give the recall
asked for. A recall that was not measured is not claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .search import Metric, assign, comparable_rows, unit_rows

__all__ = ["ApproximateIndex", "IndexSettings"]

_TRIED = 4096  # latents that the recall is measured on
_SEED = 1234


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """What makes an index the same again for the same codebook.

    Attributes:
        cells: groups of codes. probes: cells looked through for each latent.
        recall: share of the latents tried that got their nearest code, in [0, 1]. tried: how many were.
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


class ApproximateIndex:
    """Finds codes in a large codebook, nearly always the nearest.

    Args:
        codebook: (K, D) finite.
        metric: how latents and codes are compared.
        settings: as measured before, on this codebook.
    """

    def __init__(self, codebook: Tensor, metric: Metric, settings: IndexSettings) -> None:
        """Build the index; the same codebook and settings give the same index."""
        self.settings = settings
        self._metric: Metric = metric
        self._index = _built(_rows(codebook, metric), settings.cells)

    @classmethod
    def measured(cls, codebook: Tensor, latents: Tensor, metric: Metric, *, recall: float) -> ApproximateIndex:
        """Build an index that looks through as few cells as give this recall on (up to 4096 of) the latents.

        Args:
            codebook: (K, D) finite.
            latents: (N, D) such as will be looked up, N at least 1; those without a nearest code are left out.
            metric: how they are compared.
            recall: asked for, in (0, 1]; all cells are looked through where less does not give it.

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
        exact = assign(tried, codebook, metric).cpu()
        cells = max(1, min(len(codebook) // 39, round(4 * len(codebook) ** 0.5)))
        index = cls(codebook, metric, IndexSettings(cells, 1, 0.0, len(tried), recall))
        probes, reached = 1, index._recall(tried, exact, 1)
        while reached < recall and probes < cells:
            probes = min(2 * probes, cells)
            reached = index._recall(tried, exact, probes)
        low = probes // 2  # the least that suffices lies between the last two powers of two
        while probes - low > 1:
            middle = (low + probes) // 2
            if (found := index._recall(tried, exact, middle)) >= recall:
                probes, reached = middle, found
            else:
                low = middle
        index.settings = IndexSettings(cells, probes, reached, len(tried), recall)
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

    def _recall(self, latents: Tensor, exact: Tensor, probes: int) -> float:
        return float((self._found(_rows(latents, self._metric), probes) == exact.numpy()).mean())


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
