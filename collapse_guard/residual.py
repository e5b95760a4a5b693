"""Residual levels: what their rings hold in common, and what a finer level codes once a coarser one was written.

A finer level is compared with what the coarser levels left over: its latent is theirs minus the code they chose. Once a
coarser codebook was written, the latents that the finer levels have recorded are no longer theirs. Where the rings of
two levels hold the same tokens row by row, the finer latents are computed anew; where they do not (levels dropped at
random, projections or normalisation between the levels), nothing is pretended and they are forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .kmeans import assign, totals
from .ranks import Recorded
from .window import Rows, Window

__all__ = ["Levels", "follows", "members_of"]

_TOLERANCE = 1e-2  # of a latent's norm: half precision between the levels is within it
_MOST = 0.99  # share of the rows that must agree
_FEWEST = 16  # rows that can be compared at all


class Levels:
    """The levels of one residual, coarse first.

    Args:
        probes: of all levels that are watched.
    """

    def __init__(self, probes: Sequence[Recorded]) -> None:
        """Look which levels follow from the one before, as their rings stand now."""
        self.probes = sorted(probes, key=lambda probe: (probe.view.level or 0, probe.view.name))
        pairs = zip(self.probes, self.probes[1:], strict=False)
        self._follow = [_is_next(coarse, fine) and follows(coarse.window, fine.window) for coarse, fine in pairs]

    @classmethod
    def of(cls, probe: Recorded, probes: Mapping[str, Recorded]) -> Levels:
        """Return the levels of the residual that a codebook belongs to; one that is no level stands by itself."""
        return cls(members_of(probe, probes))

    def restart_below(self, probe: Recorded) -> None:
        """Begin new windows at all finer levels than that of a codebook: none may straddle an intervention there."""
        for each in self.probes:
            if (each.view.level or 0) > (probe.view.level or 0):
                each.window.restart()

    def why_stale(self, probe: Recorded, written: Recorded) -> str | None:
        """Return why the latents of a finer level cannot be had once a coarser one was written; `None` if they can."""
        first, last = self.probes.index(written), self.probes.index(probe)
        for index in range(first, last):
            if not self._follow[index]:
                coarse, fine = self.probes[index].view.name, self.probes[index + 1].view.name
                return (
                    f"{written.view.name}, a coarser level of the same residual, was written, and the latents "
                    f"recorded of {fine} cannot be derived from those of {coarse}: it waits for new ones"
                )
        return None

    def refresh(self, written: Recorded) -> None:
        """After a write to one level, put its residuals into the rings of all finer ones; else empty those."""
        index = self.probes.index(written)
        stale = False
        for coarse, fine, follow in zip(
            self.probes[index:], self.probes[index + 1 :], self._follow[index:], strict=False
        ):
            stale = stale or not follow
            if stale:
                fine.window.forget()
            else:
                _subtract(coarse, fine)


def members_of(probe: Recorded, probes: Mapping[str, Recorded]) -> list[Recorded]:
    """Return what was recorded of each level of the residual that a codebook belongs to, itself among them."""
    group = probe.view.group
    return [each for each in probes.values() if each.view.group == group] if group is not None else [probe]


@torch.no_grad()
def follows(coarse: Window, fine: Window) -> bool:
    """Whether each latent of a level is that of the level before minus one vector per code and forward.

    That is what residual coding does, whatever the vectors were when the tokens were recorded: updates that have moved
    the table since do not matter. Waits for the device.
    """
    a, b = coarse.rows(), fine.rows()
    if a is None or b is None or a.latents.shape != b.latents.shape or not torch.equal(a.forwards, b.forwards):
        return False
    use = a.valid & b.valid & a.latents.isfinite().all(dim=-1) & b.latents.isfinite().all(dim=-1)
    before, removed = a.latents[use], (a.latents - b.latents)[use]
    _, place, counts = torch.unique(_tokens_alike(a)[use], dim=0, return_inverse=True, return_counts=True)
    means = totals(removed, place, len(counts)) / counts.unsqueeze(-1)
    comparable = counts[place] > 1
    if int(comparable.sum()) < _FEWEST:
        return False
    agrees = (removed - means[place]).norm(dim=-1) <= _TOLERANCE * before.norm(dim=-1)
    return float(agrees[comparable].float().mean()) >= _MOST


def _tokens_alike(rows: Rows) -> Tensor:
    """Return (n, 2): forward and code of each row."""
    return torch.stack([rows.forwards, rows.codes], dim=-1)


def _is_next(coarse: Recorded, fine: Recorded) -> bool:
    return coarse.view.level is not None and fine.view.level == coarse.view.level + 1


@torch.no_grad()
def _subtract(coarse: Recorded, fine: Recorded) -> None:
    """Let a level's ring hold what the level before it, as it is now, leaves over."""
    table = coarse.view.codebook().float()
    for above, below in zip(coarse.window.parts, fine.window.parts, strict=True):
        rows, left = above.rows(), below.rows()
        if rows is None or left is None or not torch.equal(rows.forwards, left.forwards):
            below.forget()
            continue
        codes = assign(rows.latents.nan_to_num(), table, coarse.view.metric, backend="torch")
        left.latents.copy_(rows.latents - table[codes])
        rows.codes.copy_(codes)
