"""`disable_normalisation`: latents and codes are compared as long as they are.

A unit codebook is no place for latents that have a length. So the codes are placed anew, by k-means, as soon as some
latents were seen as they are; until then nothing that happened to the codebook is worth a reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from collapse_guard.adapters import CodebookView
from collapse_guard.kmeans import fit_codebook
from collapse_guard.policies import DisableNormalisation

from .base import Intervention, Site, clear_moments
from .parts import NormalisationPart, Part
from .placement import are_distinct, in_place_of

__all__ = ["DisableNormalisationIntervention"]


class DisableNormalisationIntervention(Intervention[DisableNormalisation]):
    """Right when what tells latents apart is their length, which normalisation takes away."""

    touches = frozenset({"codebook", "normalisation"})
    needs = ("reset",)
    stays = True

    def __init__(self, params: DisableNormalisation, site: Site) -> None:
        """Wait for latents."""
        super().__init__(params, site)
        self._enough = min(4 * site.view.K, 1024)

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse where nothing is normalised, or where no setting governs it."""
        if view.normalisation is not None:
            return super().why_unsupported(view)
        if view.metric == "l2":
            return "its search does not normalise, as far as its settings tell"
        return "its normalisation is in its code, and no setting of it switches that off"

    def refusal(self) -> str | None:
        """Refuse where it is off already."""
        if (why := super().refusal()) is not None:
            return why
        if (ranks := self.site.ranks) > 1:
            return f"{ranks} ranks train together, and what one of them records of unnormalised latents is not pooled"
        return "normalisation is off already" if self.site.view.is_unnormalised else None

    def parts(self) -> list[Part]:
        """Return the codebook and the setting."""
        view = self.site.view
        own = [NormalisationPart(view, self.site.window)] if view.normalisation is not None else []
        return [*super().parts(), *own]

    def apply(self) -> str:
        """Switch it off; the ring holds unit latents, which are none any more."""
        self.site.view.disable_normalisation()
        self.site.window.forget()
        return f"normalisation is off; codes are placed by kmeans once {self._enough} latents were seen as they are"

    @torch.no_grad()
    def tend(self, steps: int) -> str | None:
        """Place the codes as soon as there is something to place them on."""
        site, view = self.site, self.site.view
        latents = site.window.sample()
        if len(latents) < self._enough or not are_distinct(latents):
            return None
        fit = fit_codebook(latents, view.K, metric=view.metric, seed=site.seed)
        whole = in_place_of(view, fit, latents, refill=0.5)
        rows = torch.arange(view.K)
        view.write_rows(rows, whole.vectors, whole.counts)
        clear_moments(site, rows)
        self.facts = whole.facts
        site.window.restart()
        self.writes += 1
        self.is_over = True
        ids = f"{self.facts['ids_changed']} of {self.facts['ids_compared']} ids changed"
        return f"{view.K} codes placed by kmeans on {len(latents)} latents as long as they are; {ids}"

    def in_words(self) -> str:
        """Say that codes are still to be placed."""
        return "normalisation is off, and the codes wait to be placed"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on waiting; the ledger has switched the normalisation off again."""
