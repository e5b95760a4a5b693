"""What makes other latents of them, so that the codes must be placed anew once some of the new ones were seen.

Until then nothing that happened to the codebook is worth a reading.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from collapse_guard.policies import DisableNormalisation, RestoreLayout

from .base import Intervention, Site
from .placement import are_distinct

__all__ = ["PlacedAnew"]

Changing = TypeVar("Changing", bound="DisableNormalisation | RestoreLayout")


class PlacedAnew(Intervention[Changing]):
    """Stays until latents of the new kind were seen and the codes lie among them; longer where a subclass does."""

    needs = ("reset",)
    stays = True

    def __init__(self, params: Changing, site: Site) -> None:
        """Wait for latents."""
        super().__init__(params, site)
        self._enough = min(4 * site.view.K, 1024)

    @torch.no_grad()
    def tend(self, steps: int) -> str | None:
        """Place the codes as soon as there is something to place them on; the window begins anew."""
        latents = self.site.window.sample()
        if len(latents) < self._enough or not are_distinct(latents):
            return None
        said = self.place(latents)
        self.site.window.restart()
        self.writes += 1
        return said

    @abstractmethod
    def place(self, latents: Tensor) -> str:
        """Write all codes to where (n, D) latents are, and say so."""
