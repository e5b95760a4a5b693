"""`reset_codes`: place dead codes, or all, where latents are; table, EMA and optimizer rows together."""

from __future__ import annotations

import torch

from collapse_guard.kmeans import fit_codebook
from collapse_guard.policies import ResetCodes

from .base import Intervention, Site, clear_moments
from .placement import WholeCodebook, beside_the_living, in_place_of, why_nowhere

__all__ = ["ResetCodesIntervention", "place_all", "write_drawn", "write_kmeans"]


def place_all(site: Site, latents: torch.Tensor, refill: float) -> tuple[WholeCodebook, bool]:
    """Take the replacement of dead codes over, and do what `write_kmeans` does."""
    site.view.take_over()
    return write_kmeans(site, latents, refill)


def write_kmeans(site: Site, latents: torch.Tensor, refill: float) -> tuple[WholeCodebook, bool]:
    """Write k-means centroids of (n, D) finite latents into all codes of a site, and clear their optimizer moments.

    Returns:
        What was written, and whether the latents were few for so many codes.
    """
    view = site.view
    rows, fit = torch.arange(view.K), fit_codebook(latents, view.K, metric=view.metric, seed=site.seed)
    whole = in_place_of(view, fit, latents, refill)
    view.write_rows(rows, whole.vectors, whole.counts)
    clear_moments(site, rows)
    return whole, fit.is_thin


def write_drawn(site: Site, rows: torch.Tensor, latents: torch.Tensor, source: str, refill: float) -> None:
    """Write places drawn among (n, D) finite latents into (m,) codes of a site, and clear their optimizer moments."""
    vectors, counts = beside_the_living(site.view, rows, latents, source=source, refill=refill, seed=site.seed)
    site.view.write_rows(rows, vectors, counts)
    clear_moments(site, rows)


class ResetCodesIntervention(Intervention[ResetCodes]):
    """Right when the codebook is bad and what updates it is sound. It permutes token ids."""

    touches = frozenset({"codebook"})
    reaches_graphs = True
    needs = ("reset",)

    def refusal(self) -> str | None:
        """Refuse where rows cannot be written or where there is nothing to place them on."""
        site = self.site
        if (reason := super().refusal() or why_nowhere(site.view, site.window.sample())) is not None:
            return reason
        if self.params.scope == "dead" and not len(self._dead()):
            return f"no code is dead: each has more than {self.site.dead_below:g} times the uniform share"
        return None

    def apply(self) -> str:
        """Write the rows and clear their optimizer moments."""
        site, view = self.site, self.site.view
        latents = site.window.sample()
        rows = torch.arange(view.K) if self.params.scope == "all" else self._dead()
        source, refill = self.params.source, self.params.refill
        on = f"{len(latents)} latents"
        if self.params.scope == "all" and source == "kmeans":
            whole, is_thin = place_all(site, latents, refill)
            self.facts = whole.facts
            on += f", few for {view.K} codes" if is_thin else ""
        else:
            view.take_over()
            write_drawn(site, rows, latents, source, refill)
        return f"{len(rows)} of {view.K} codes placed by {source} on {on}"

    def _dead(self) -> torch.Tensor:
        counts = torch.as_tensor(self.site.counts)
        return (counts < self.site.dead_below * counts.sum() / len(counts)).nonzero().flatten()
