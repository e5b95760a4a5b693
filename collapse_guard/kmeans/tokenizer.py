"""A tokenizer that is a codebook and a search: latents in, ids out, and back. It needs no training process.

Ids are part of what a tokenizer promises: a refit keeps as many as it can and says how many changed, a file remembers
which version of the codebook it holds, and a large codebook is searched approximately only once the recall of that was
measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .backends import Backend
from .fit import CodebookFit, fit_codebook
from .index import ApproximateIndex
from .lengths import with_lengths
from .matching import match
from .search import METRICS, Metric, assign, finite_rows, squared_errors, unit_rows

__all__ = ["APPROXIMATE_FROM", "KMeansTokenizer", "Refit"]

APPROXIMATE_FROM = 65_536
"""Codes from which on a fitted tokenizer gets an approximate index, if its measured recall is at least 0.99."""

RECALL = 0.99
_UNIT = 1e-2  # bfloat16 keeps a length of 1 to that


@dataclass(frozen=True, slots=True)
class Refit:
    """What a refit changed.

    Attributes:
        unchanged: share of the latents that kept their id, in [0, 1]. tokens: how many latents that is a share of.
        error_before, error_after: mean squared distance of these latents from their codes; with metric "cosine" of the
            normalised ones.
        version: of the codebook that the tokenizer holds now.
        fit: of the new codebook, its rows in the order of the fit.
    """

    unchanged: float
    tokens: int
    error_before: float
    error_after: float
    version: int
    fit: CodebookFit

    @property
    def changed(self) -> int:
        """How many latents have another id than before."""
        return round((1 - self.unchanged) * self.tokens)


class KMeansTokenizer(nn.Module):
    """Encodes latents as the index of their nearest code.

    Args:
        codebook: (K, D) finite in float32; with metric "cosine" of any length, and decoded as it is.
        metric: how latents and codes are compared.
        version: of the codebook; every refit counts it up.
        provenance: where it came from, as plain data that JSON can hold; saved with it.

    Attributes:
        codebook: (K, D) float32 buffer.

    Raises:
        ValueError: a codebook that is not (K, D) or not finite, or an unknown metric.

    >>> tokenizer = KMeansTokenizer(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    >>> ids = tokenizer.encode(torch.tensor([[[0.1, 0.3], [5.0, 1.0]]]))
    >>> ids.tolist(), tokenizer.decode(ids).tolist()
    ([[0, 1]], [[[0.0, 0.0], [4.0, 0.0]]])
    """

    codebook: Tensor

    def __init__(
        self,
        codebook: Tensor,
        *,
        metric: Metric = "l2",
        version: int = 1,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Store a copy of the codebook."""
        super().__init__()
        with torch.inference_mode(False):  # what is made under it could not be refitted outside
            rows = codebook.detach().float().clone()
        if codebook.ndim != 2 or codebook.numel() == 0 or not bool(rows.isfinite().all()):
            raise ValueError(f"codebook: expected (K, D) finite numbers, got {tuple(codebook.shape)} {codebook.dtype}")
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
        self.register_buffer("codebook", rows)
        self.metric: Metric = metric
        self.version = version
        self.provenance: dict[str, Any] = dict(provenance or {})
        self._index: ApproximateIndex | None = None

    @classmethod
    def fit(
        cls,
        latents: Tensor,
        K: int,
        *,
        metric: Metric = "l2",
        backend: Backend = "auto",
        seed: int = 0,
        iterations: int = 20,
    ) -> KMeansTokenizer:
        """Fit a codebook to (N, D) latents by `fit_codebook`; the arguments and errors are its own.

        From 65,536 codes on an approximate index is built, see `build_index`, and kept where it is worthwhile: where a
        recall of 0.99 takes no more than a 32nd of its cells.
        """
        found = fit_codebook(latents, K, metric=metric, backend=backend, seed=seed, budget=iterations)
        tokenizer = cls(found.codebook, metric=metric, provenance=_provenance(found, seed))
        if K >= APPROXIMATE_FROM:
            rows = tokenizer._rows(latents)
            index = ApproximateIndex.measured(tokenizer.codebook, rows, metric, recall=RECALL, only_worthwhile=True)
            tokenizer.use_index(index if index.settings.is_sure else None)
        return tokenizer

    @property
    def K(self) -> int:
        """Number of codes."""
        return self.codebook.shape[0]

    @property
    def D(self) -> int:
        """Dimension of a code."""
        return self.codebook.shape[1]

    @property
    def index(self) -> ApproximateIndex | None:
        """The approximate index that `encode` uses, if there is one; its `settings` state the measured recall."""
        return self._index

    def encode(self, latents: Tensor, *, search: Literal["auto", "exact"] = "auto") -> Tensor:
        """Return the ids of latents.

        Args:
            latents: (..., D) finite floating point, in float32 too. With metric "cosine" a zero one gets id 0.
            search: "exact", or "auto": by the approximate index if there is one.

        Returns:
            (...) int64 on the latents' device, from 0 to K - 1.

        Raises:
            ValueError: latents of another width, or NaN or Inf among them, which have no nearest code.
        """
        rows = self._rows(latents)
        if not bool((finite := _finite_in_float32(rows)).all()):
            bad = int((~finite).sum())
            raise ValueError(f"latents: {bad} of {len(rows)} have NaN or Inf and no nearest code; leave them out")
        if self._index is not None and search == "auto":
            codes = self._index.search(rows)
        else:
            codes = assign(rows, self.codebook, self.metric)
        return codes.reshape(latents.shape[:-1])

    def decode(self, ids: Tensor) -> Tensor:
        """Return the codes of (...) integer ids as (..., D) float32 on the codebook's device.

        Raises:
            ValueError: ids that are no integers, or out of range.
        """
        if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
            raise ValueError(f"ids: expected integers, got {ids.dtype}")
        rows = ids.to(self.codebook.device).long()  # unsigned types know no minimum
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < self.K:
            raise ValueError(f"ids: expected 0 to {self.K - 1}, got {int(rows.min())} to {int(rows.max())}")
        return self.codebook[rows]

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise (..., D) latents: return the codes in their place, bit for bit in the latents' type, and (...) ids.

        Gradients pass straight through to the latents (Bengio et al., "Estimating or propagating gradients", 2013).
        """
        ids = self.encode(latents.detach())
        # The usual latents + (codes - latents) rounds the codes to what the latents' size resolves.
        return self.decode(ids).to(latents) + (latents - latents.detach()), ids

    def refit(
        self,
        latents: Tensor,
        *,
        start: Literal["warm", "fresh"] = "warm",
        backend: Backend = "auto",
        iterations: int = 20,
        seed: int = 0,
    ) -> Refit:
        """Fit the codebook anew, in place, and keep ids as far as that goes.

        Args:
            latents: (N, D) recent latents; those with NaN or Inf are left out. As many as for a fit: codes that none of
                them comes near move to where the others are.
            start: "warm" from the present codebook, which keeps most ids, or "fresh", which may find a better one.
            backend, iterations, seed: as for `fit_codebook`.

        Returns:
            What changed. New rows stand where the old ones that they take over from stood, see `match_codes`. With
            metric "cosine" they have length 1 if the old ones had, else the lengths that reconstruct best.
        """
        rows = self._rows(latents)
        rows = rows[_finite_in_float32(rows)]
        init: Tensor | Literal["k-means++"] = self.codebook if start == "warm" else "k-means++"
        found = fit_codebook(rows, self.K, metric=self.metric, backend=backend, budget=iterations, seed=seed, init=init)
        old = self.codebook.clone()
        matching = match(old, found.codebook, rows, self.metric)
        new = found.codebook[matching.order.to(found.codebook.device)]
        if self.metric == "cosine" and not _is_unit(old):
            new = with_lengths(new, rows.detach().float())
        if (index := self._index) is not None:
            index = ApproximateIndex.measured(new, rows, self.metric, recall=index.settings.wanted)
        self.codebook.copy_(new)
        self._index = index
        self.version += 1
        origin = self.provenance.get("origin", self.provenance)
        self.provenance = _provenance(found, seed) | {"start": start, "origin": origin}
        before, after = assign(rows, old, self.metric), assign(rows, self.codebook, self.metric)
        return Refit(
            unchanged=1 - matching.changed / matching.tokens,
            tokens=matching.tokens,
            error_before=self._error(rows, old, before),
            error_after=self._error(rows, self.codebook, after),
            version=self.version,
            fit=found,
        )

    def build_index(self, latents: Tensor, *, recall: float = RECALL) -> ApproximateIndex:
        """Search approximately from now on, with the recall measured on (N, D) latents; see `ApproximateIndex`.

        A refit measures it anew; a codebook that comes in by `load_state_dict` is searched exactly.
        """
        self._index = ApproximateIndex.measured(self.codebook, self._rows(latents), self.metric, recall=recall)
        return self._index

    def use_index(self, index: ApproximateIndex | None) -> None:
        """Search by an index that was measured before, or exactly with `None`."""
        self._index = index

    def save(self, directory: str | Path) -> Path:
        """Write `codebook.safetensors` and `tokenizer.json` into a directory; see `collapse_guard.kmeans.files`."""
        from .files import write_tokenizer

        return write_tokenizer(self, Path(directory))

    @classmethod
    def load(cls, directory: str | Path) -> KMeansTokenizer:
        """Read a tokenizer that `save` wrote.

        Raises:
            ValueError: there is none, or its files do not belong together; says what is wrong.
        """
        from .files import read_tokenizer

        return read_tokenizer(Path(directory))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load the codebook; an index of another one would find anything."""
        before = self.codebook.clone()
        super()._load_from_state_dict(*args, **kwargs)
        if not torch.equal(self.codebook, before):
            self._index = None

    def extra_repr(self) -> str:
        """Return size, metric and version."""
        return f"K={self.K}, D={self.D}, metric={self.metric}, version={self.version}"

    def _rows(self, latents: Tensor) -> Tensor:
        if latents.ndim == 0 or latents.shape[-1] != self.D or not latents.is_floating_point():
            raise ValueError(
                f"latents: expected floating point of shape (..., {self.D}), got {tuple(latents.shape)} {latents.dtype}"
            )
        return latents.reshape(-1, self.D)

    def _error(self, rows: Tensor, table: Tensor, codes: Tensor) -> float:
        points = rows.float()
        if self.metric == "cosine":
            points, table = unit_rows(points), unit_rows(table)
        return float(squared_errors(points, table.to(points.device), codes).double().mean())


def _finite_in_float32(rows: Tensor) -> Tensor:
    return finite_rows(rows.float() if rows.dtype is torch.float64 else rows)


def _is_unit(rows: Tensor) -> bool:
    return bool(((rows.float().norm(dim=1) - 1).abs() < _UNIT).all())


def _provenance(found: CodebookFit, seed: int) -> dict[str, Any]:
    return {
        "backend": found.backend,
        "latents": int(found.counts.sum()),
        "seed": int(seed),
        "iterations": found.iterations,
        "inertia": found.inertia,
        "distinct": found.distinct,
    }
