"""How a codebook is spoilt: which rows get which vectors, written past the version counter as a broken update may."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from collapse_guard.adapters import CodebookView
from collapse_guard.adapters.refs import Quotient

__all__ = ["SPOILERS", "Codebook"]

_FAR = 1e3


class Codebook:
    """One codebook under injection.

    Args:
        view: of it.
        generator: of what is random.

    Attributes:
        length: median length of its codes when the first injection came.
    """

    def __init__(self, view: CodebookView, generator: torch.Generator) -> None:
        """Store the parts; the lengths are taken when they are first asked for."""
        self.view = view
        self.generator = generator
        self._length: float | None = None

    @property
    def rows(self) -> Tensor:
        """(K, D) the codes as they are, float32, a copy."""
        return self.view.codebook().float().clone()

    @property
    def length(self) -> float:
        """Median length of the finite codes, as they were when it was first asked for; 1 where that is none."""
        if self._length is None:
            norms = self.rows.norm(dim=-1)
            norms = norms[norms.isfinite() & (norms > 0)]
            self._length = float(norms.median()) if len(norms) else 1.0
        return self._length

    def parts(self) -> list[Tensor]:
        """Return copies of all that an update of the codebook writes."""
        return [ref.get().clone() for ref in self.view.refs().values()]

    def put(self, parts: Sequence[Tensor] | None) -> None:
        """Put such copies back."""
        for ref, kept in zip(self.view.refs().values(), parts or (), strict=False):
            ref.part_of(ref.whole().data).copy_(kept)
        self.view.after_write()

    def write(self, rows: Tensor, vectors: Tensor) -> None:
        """Write (m,) rows as (m, D) vectors: table and moving sum, so that the next update builds on them."""
        view = self.view
        refs = view.refs()
        if "table" in refs:
            table = refs["table"].part_of(refs["table"].whole().data)
            table.index_copy_(0, rows, vectors.to(table.dtype))
        if view.ema_sum is not None and view.ema_count is not None:
            counts = view.ema_count.get().float()
            counts = counts.clamp(min=view.table.floor) if isinstance(view.table, Quotient) else counts
            moving = view.ema_sum.part_of(view.ema_sum.whole().data)
            moving.index_copy_(0, rows, (vectors * counts[rows].unsqueeze(-1)).to(moving.dtype))
        view.after_write()


def _scale(codebook: Codebook, factor: float) -> tuple[Tensor, Tensor]:
    directions = functional.normalize(codebook.rows[1:], dim=-1)
    return _range(codebook, 1), directions * (codebook.length * factor)


def _point_mass(codebook: Codebook, _: float) -> tuple[Tensor, Tensor]:
    rows = codebook.rows
    return _range(codebook, 0), rows[:1].expand_as(rows).clone()


def _noise(codebook: Codebook, strength: float) -> tuple[Tensor, Tensor]:
    rows = codebook.rows
    noise = torch.randn(rows.shape, generator=codebook.generator, device=rows.device)
    spread = strength * codebook.length / rows.shape[1] ** 0.5
    return _range(codebook, 0), rows + spread * noise


def _nan(codebook: Codebook, share: float) -> tuple[Tensor, Tensor]:
    rows = _last(codebook, share)
    return rows, torch.full((len(rows), codebook.view.D), torch.nan, device=rows.device)


def _starve(codebook: Codebook, share: float) -> tuple[Tensor, Tensor]:
    """Move codes to where no input is: far out, or, where only angles count, away from where all codes point."""
    rows = _last(codebook, share)
    units = functional.normalize(codebook.rows, dim=-1)
    if codebook.view.metric == "cosine":
        return rows, -units.mean(dim=0, keepdim=True).expand(len(rows), -1) * codebook.length
    return rows, units[rows] * (codebook.length * _FAR)


def _range(codebook: Codebook, first: int) -> Tensor:
    return torch.arange(first, codebook.view.K, device=codebook.view.codebook().device)


def _last(codebook: Codebook, share: float) -> Tensor:
    return _range(codebook, codebook.view.K - max(1, round(share * codebook.view.K)))


SPOILERS: Mapping[str, Callable[[Codebook, float], tuple[Tensor, Tensor]]] = {
    "scale": _scale,
    "point_mass": _point_mass,
    "noise": _noise,
    "nan": _nan,
    "starve": _starve,
}
"""Kind of injection -> which rows get which vectors, given its strength."""
