"""`fallback_tokenizer`: a k-means codebook stands in for the quantizer's own, whose updates are kept out.

The quantizer's forward goes on producing codes, loss and straight-through output, with a codebook that it no longer
updates; the guard refits it to recent latents while the encoder still moves, from the codes as they are and matched to
them, so that token ids keep their meaning as far as they can. The state dict keeps its keys: a checkpoint holds the
k-means codebook where the quantizer's own was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from collapse_guard.kmeans import CodebookFit, fit_codebook
from collapse_guard.policies import FallbackTokenizer

from .base import Intervention, Site, clear_moments
from .placement import are_distinct, in_place_of, why_nowhere

__all__ = ["FallbackTokenizerIntervention"]


class FallbackTokenizerIntervention(Intervention[FallbackTokenizer]):
    """Right when what updates the codebook is broken, so that no reset can hold."""

    touches = frozenset({"codebook"})
    reaches_graphs = True
    needs = ("reset", "freeze", "fallback")
    stays = True

    def __init__(self, params: FallbackTokenizer, site: Site) -> None:
        """Plan the first refit."""
        super().__init__(params, site)
        self._due = params.refit_every.count
        self._wait = math.ceil(self._due * params.refit_growth)

    def refusal(self) -> str | None:
        """Refuse where the codebook cannot be written or frozen, or where a fallback stands already."""
        site = self.site
        if (reason := super().refusal()) is not None:
            return reason
        if site.view.is_frozen:
            return "a fallback tokenizer is in force already"
        return why_nowhere(site.view, site.window.sample())

    def apply(self) -> str:
        """Fit, write, freeze."""
        view = self.site.view
        fit = self._fit(warm=False)
        view.freeze()
        return f"k-means codebook of {view.K} codes ({fit}); own updates frozen"

    def is_due(self, steps: int) -> bool:
        """Whether it is time for the next refit."""
        return steps >= self._due

    def tend(self, steps: int) -> str | None:
        """Refit to recent latents, at growing intervals; say how many of them changed their id."""
        if not self.is_due(steps):
            return None
        self._due = steps + self._wait
        self._wait = math.ceil(self._wait * self.params.refit_growth)
        if not are_distinct(self.site.window.sample()):
            return None
        fit = self._fit(warm=True)
        self.writes += 1
        ids = f"{self.facts['ids_changed']} of {self.facts['ids_compared']} ids changed"
        return f"refitted ({fit}); {ids}; next in {self._due - steps} steps"

    def state_dict(self) -> dict[str, Any]:
        """Return when the next refit is due and how long the wait after it is, in steps."""
        return {"due": self._due, "wait": self._wait}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the schedule of a saved fallback, its codebook frozen again."""
        self._due, self._wait = int(state["due"]), int(state["wait"])
        self.site.view.freeze()

    def _fit(self, *, warm: bool) -> CodebookFit:
        """Fit and write, each code in the place of the one that it takes most latents over from."""
        site, view, params = self.site, self.site.view, self.params
        latents = site.window.sample()
        fit = fit_codebook(
            latents,
            view.K,
            backend=params.backend,
            metric=view.metric,
            budget=params.refit_iterations if warm else 20,
            seed=site.seed,
            init=view.codebook().float() if warm else "k-means++",
        )
        whole = in_place_of(view, fit, latents, refill=0.5)
        rows = torch.arange(view.K)
        view.take_over()
        view.write_rows(rows, whole.vectors, whole.counts)
        clear_moments(site, rows)
        self.facts = whole.facts
        return fit
