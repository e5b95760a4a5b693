"""The facts of one case: what is known of a codebook at the reading at which somebody asks why.

Everything is on the host. What takes a computation is computed once, when it is first asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from collapse_guard.adapters import CodebookView
from collapse_guard.kmeans import totals
from collapse_guard.policies import Reading
from collapse_guard.window import Window

from .memory import Mark, decoded_table
from .pulse import Beat

__all__ = ["Facts", "gather", "ramp", "within_codes"]

_LATENTS, _MANY = 1024, 4096


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one codebook at one reading.

    Attributes:
        view: the codebook.
        reading: of this step.
        counts: (K,) uses of each code in the reading's window.
        table: (K, D) float32, as decoded.
        latents: (n, D) finite latents of tokens, oldest first. codes: (n,) of them. forwards: (n,) where each is from.
        marks: of this and earlier readings, oldest first; never empty. The first may be of the start, before any token.
        levels: readings of all levels of its residual at this step, by level; empty where it is no level.
        coarsest: marks of the coarsest level of its residual, oldest first; empty where it is that level, or no level.
        left_over: share of the variance of that level's latents that its codes will leave to finer ones, once each lies
            at the mean of its own latents; NaN where it is that level, infinite where that cannot be said.
        paths: paths of the model's modules by identity, for lines of code.
        window: from which more latents can be had; `None` where those above are all.
        uses: (K,) int64, of each code in the run so far; `None` where they were not counted.
    """

    view: CodebookView
    reading: Reading
    counts: np.ndarray
    table: Tensor
    latents: Tensor
    codes: Tensor
    forwards: Tensor
    marks: Sequence[Mark]
    levels: Mapping[int, Reading] = field(default_factory=dict)
    coarsest: Sequence[Mark] = ()
    left_over: float = math.nan
    paths: Mapping[int, str] = field(default_factory=dict)
    window: Window | None = None
    uses: Tensor | None = None

    @cached_property
    def many(self) -> Tensor:
        """(n, D) finite latents, as many as are remembered, oldest first; waits for the device."""
        return self.latents if self.window is None else _recent(self.window, self.view.D, _MANY)[0]

    @property
    def now(self) -> Mark:
        """The mark of this reading."""
        return self.marks[-1]

    @property
    def start(self) -> Mark:
        """The first mark."""
        return self.marks[0]

    @cached_property
    def read(self) -> Sequence[Mark]:
        """The marks that saw latents, oldest first."""
        return [mark for mark in self.marks if math.isfinite(mark.latent_norm)]

    @cached_property
    def encoded(self) -> Sequence[Mark]:
        """The marks that saw what the encoder made, oldest first.

        A finer level's latents are what coarser codes leave over: these tell of the coarser codes, too.
        """
        return [mark for mark in self.coarsest if math.isfinite(mark.latent_norm)] or self.read

    @cached_property
    def beats(self) -> Sequence[Beat]:
        """The gradients of this and earlier readings, oldest first, as far as they were seen."""
        return [Beat.of(mark.beat) for mark in self.marks if mark.beat is not None]

    @property
    def beat(self) -> Beat:
        """The latest of them."""
        return self.beats[-1] if self.beats else Beat()

    @cached_property
    def code_norms(self) -> Tensor:
        """(K,) norms of the codes."""
        norms: Tensor = self.table.norm(dim=-1)
        return norms

    @property
    def code_norm(self) -> float:
        """Their median."""
        return float(self.code_norms.median())

    @cached_property
    def used(self) -> Tensor:
        """(K,) bool: codes with a token in the window."""
        return torch.from_numpy(self.counts > 0)

    @property
    def latent_norm(self) -> float:
        """Median norm of recent latents; NaN without any."""
        return self.read[-1].latent_norm if self.read else math.nan

    @property
    def spread(self) -> float:
        """Root mean square distance of latents from their mean; NaN without any."""
        return math.sqrt(self.read[-1].latent_variance) if self.read else math.nan

    @property
    def reach(self) -> float:
        """Median norm of all codes over the root mean square of the latents'; NaN where unknown.

        Where most latents are short, as padding is, it tells codes as long as the others from codes that are too long.
        """
        power = self.read[-1].latent_power if self.read else math.nan
        return self.code_norm / math.sqrt(power) if power > 0 else math.nan

    @property
    def ratio(self) -> float:
        """Median norm of all codes over that of the latents; NaN where unknown."""
        return self.code_norm / self.latent_norm if self.latent_norm > 0 else math.nan

    @property
    def trouble(self) -> float:
        """How ill the codebook is by what a reading shows, in [0, 1]: few codes in use, or useless ones."""
        reading = self.reading
        error = reading.relative_error if reading.relative_error is not None else math.nan
        return max(ramp(reading.perplexity_ratio, 0.6, 0.25), ramp(error, 1, 3))

    def best(self) -> Mark | None:
        """Return the mark at which the codes served the latents best; `None` without any."""
        known = [mark for mark in self.read if mark.relative_error is not None]
        return min(known, key=lambda mark: mark.relative_error or 0.0, default=None)

    def path_of(self, owner: object, attribute: str) -> str:
        """Write how an attribute of a part of the model is reached: `model.quantizer.decay`."""
        path = self.paths.get(id(owner))
        if path is None:
            return f"{type(owner).__name__}.{attribute}"
        return ".".join(part for part in ("model", path, attribute) if part)

    @property
    def start_norm(self) -> float:
        """Median norm of the codes as they began; of a codebook that starts from latents, that of the first ones."""
        if self.start.step > 0 and self.read:
            return self.read[0].latent_norm
        return self.start.code_norm

    def grown(self, since: Mark) -> float:
        """Return by what factor the codes have grown since a mark."""
        before = since.code_norm
        return self.now.code_norm / before if before > 0 else math.inf


def ramp(value: float, low: float, high: float) -> float:
    """Return 0 at `low`, 1 at `high` and what lies between on a straight line; `low` may be the larger. 0 for NaN.

    >>> ramp(5, 0, 10), ramp(0.1, 1, 0.2), ramp(float("nan"), 0, 1)
    (0.5, 1.0, 0.0)
    """
    if math.isnan(value):
        return 0.0
    if math.isinf(value):
        return 1.0 if (value > 0) is (high > low) else 0.0
    return min(max((value - low) / (high - low), 0.0), 1.0)


@torch.no_grad()
def gather(
    view: CodebookView,
    window: Window,
    reading: Reading,
    counts: np.ndarray,
    marks: Sequence[Mark],
    levels: Mapping[int, Reading],
    coarsest: Sequence[Mark],
    first: Window | None,
    paths: Mapping[int, str],
) -> Facts:
    """Bring the facts of a case to the host; `first`: the window of the coarsest level. Waits for the device."""
    latents, codes, forwards = _recent(window, view.D)
    return Facts(
        view=view,
        reading=reading,
        counts=counts,
        table=decoded_table(view).cpu(),
        latents=latents,
        codes=codes,
        forwards=forwards,
        marks=[mark.on_host() for mark in marks],
        levels=levels,
        coarsest=[mark.on_host() for mark in coarsest],
        left_over=math.nan if first is None else within_codes(*_recent(first, view.D)[:2]),
        paths=paths,
        window=window,
        uses=None if window.uses is None else window.uses.cpu(),
    )


def _recent(window: Window, D: int, most: int = _LATENTS) -> tuple[Tensor, Tensor, Tensor]:
    """Return (n, D) finite latents of a window, their codes and their forwards (n,), on the host."""
    rows = window.recent(most)
    if rows is None:
        nothing = torch.zeros(0, dtype=torch.int64)
        return torch.zeros(0, D), nothing, nothing
    use = rows.valid & rows.latents.isfinite().all(dim=-1)
    return rows.latents[use].cpu(), rows.codes[use].cpu(), rows.forwards[use].cpu()


def within_codes(latents: Tensor, codes: Tensor) -> float:
    """Return the share of the latents' variance that codes would leave if each lay at the mean of its own latents.

    Estimated as a pooled variance: over the latents less the codes that have some, since a mean of few latents is near
    each of them. Infinite where there are no more latents than such codes.

    Args:
        latents: (n, D). codes: (n,) of them.
    """
    latents, codes = latents.float(), codes.unique(return_inverse=True)[1]
    k = int(codes.max()) + 1 if len(codes) else 0
    if len(latents) <= k:
        return math.inf
    means = totals(latents, codes, k) / torch.bincount(codes).unsqueeze(-1)
    total = float((latents - latents.mean(dim=0)).square().sum(dim=-1).mean())
    within = float((latents - means[codes]).square().sum(dim=-1).sum()) / (len(latents) - k)
    return within / max(total, 1e-30)
