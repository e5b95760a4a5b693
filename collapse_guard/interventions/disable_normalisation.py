"""`disable_normalisation`: latents and codes are compared as long as they are.

A unit codebook is no place for latents that have a length. So the codes are placed anew, by k-means, as soon as some
latents were seen as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from collapse_guard.adapters import CodebookView
from collapse_guard.policies import DisableNormalisation

from .parts import NormalisationPart, Part
from .placed_anew import PlacedAnew
from .reset_codes import write_kmeans

__all__ = ["DisableNormalisationIntervention"]


class DisableNormalisationIntervention(PlacedAnew[DisableNormalisation]):
    """Right when what tells latents apart is their length, which normalisation takes away."""

    touches = frozenset({"codebook", "normalisation"})

    @classmethod
    def why_unsupported(cls, view: CodebookView) -> str | None:
        """Refuse where nothing is normalised, or where no setting governs it."""
        if view.normalisation is not None:
            return super().why_unsupported(view)
        if view.metric == "l2":
            return "its search does not normalise, as far as its settings tell"
        return "its normalisation is in its code, and no setting of it switches that off"

    @classmethod
    def is_moot(cls, view: CodebookView) -> bool:
        """Whether nothing is normalised."""
        return view.metric == "l2" and view.normalisation is None

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

    def place(self, latents: Tensor) -> str:
        """Place the codes by k-means, and end: the setting stays."""
        view = self.site.view
        whole, _ = write_kmeans(self.site, latents, refill=0.5)
        self.facts = whole.facts
        self.is_over = True
        ids = f"{self.facts['ids_changed']} of {self.facts['ids_compared']} ids changed"
        return f"{view.K} codes placed by kmeans on {len(latents)} latents as long as they are; {ids}"

    def in_words(self) -> str:
        """Say that codes are still to be placed."""
        return "normalisation is off, and the codes wait to be placed"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on waiting; the ledger has switched the normalisation off again."""
