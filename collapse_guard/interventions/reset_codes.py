"""`reset_codes`: place dead codes, or all, where latents are; table, EMA and optimizer rows together."""

from __future__ import annotations

import torch
from torch.nn import functional

from collapse_guard.kmeans import fit_codebook
from collapse_guard.policies import ResetCodes

from .base import Intervention, clear_moments
from .placement import as_decoded, place_beside, scale_counts, why_nowhere

__all__ = ["ResetCodesIntervention"]


class ResetCodesIntervention(Intervention[ResetCodes]):
    """Right when the codebook is bad and what updates it is sound. It permutes token ids."""

    touches = frozenset({"codebook"})
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
        present = view.ema_count.get() if view.ema_count is not None else None
        if self.params.scope == "all" and self.params.source == "kmeans":
            fit = fit_codebook(latents, view.K, metric=view.metric, seed=site.seed)
            vectors, found = as_decoded(view, fit.codebook, latents), fit.counts
            counts = None if present is None else scale_counts(found.to(present.device), present, self.params.refill)
        else:
            vectors = self._beside_the_living(rows, latents)
            counts = None
            if present is not None:
                # A quantizer that updates nothing may count nothing.
                mean = float(present.float().mean()) or len(latents) / view.K
                counts = torch.full((len(rows),), self.params.refill * mean)
        view.take_over()
        view.write_rows(rows, vectors, counts)
        clear_moments(site, rows)
        return f"{len(rows)} of {view.K} codes placed by {self.params.source} on {len(latents)} latents"

    def _beside_the_living(self, rows: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        site, view = self.site, self.site.view
        living = torch.ones(view.K, dtype=torch.bool)
        living[rows] = False
        table = view.codebook().float()
        table, found = table[living.to(table.device)], latents
        if view.metric == "cosine":
            table, found = functional.normalize(table, dim=-1), functional.normalize(latents, dim=-1)
        places = place_beside(table, found, len(rows), source=self.params.source, seed=site.seed)
        return as_decoded(view, places, latents, living=table)

    def _dead(self) -> torch.Tensor:
        counts = torch.as_tensor(self.site.counts)
        return (counts < self.site.dead_below * counts.sum() / len(counts)).nonzero().flatten()
