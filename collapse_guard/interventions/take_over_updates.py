"""`take_over_updates`: the quantizer's own updates are kept out, and the guard moves the codebook by a correct average.

The average of van den Oord et al. (2017), appendix A.1: of code i, N_i <- d N_i + (1 - d) n_i and
m_i <- d m_i + (1 - d) s_i with the count n_i and the sum s_i of the latents that chose it in this step, and the code is
m_i / N_i. Written for the code itself, (d N_i e_i + (1 - d) s_i) / N_i, it needs no sum beside the table, and a code
that no latent chose stays where it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from collapse_guard.kmeans import fit_codebook, totals
from collapse_guard.policies import TakeOverUpdates
from collapse_guard.window import Window

from .base import Intervention, Site, clear_moments
from .holds import Hold
from .placement import beside_the_living, in_place_of, why_nowhere

__all__ = ["TakeOverUpdatesIntervention", "moved_rows"]

_LEAST = 1e-6  # an average count below it is as good as none, and must not be divided by


def moved_rows(table: Tensor, averages: Tensor, sums: Tensor, counts: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Return the codes and their average counts after one step.

    Args:
        table: (K, D) codes.
        averages: (K,) average counts, 0 or more.
        sums: (K, D) sum of the step's latents by code.
        counts: (K,) number of the step's latents by code.
        decay: of the average, in (0, 1).
    """
    left = decay * averages
    after = left + (1 - decay) * counts
    moved = (left.unsqueeze(-1) * table + (1 - decay) * sums) / after.clamp(min=_LEAST).unsqueeze(-1)
    return torch.where((counts > 0).unsqueeze(-1), moved, table), after


class _Tap(Hold):
    """Sums of all latents by code since the last step boundary."""

    name = "take_over_updates"

    def __init__(self, window: Window, is_unit: bool) -> None:
        """Store where latents come from."""
        self._window = window
        self._is_unit = is_unit
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    @property
    def place(self) -> Hashable:
        """The window."""
        return id(self._window)

    @property
    def is_in_force(self) -> bool:
        """Whether latents are summed."""
        return self._window.tap == self._add

    def install(self) -> None:
        """Begin to sum."""
        self._window.tap = self._add

    def remove(self) -> None:
        """Sum no more."""
        if self.is_in_force:
            self._window.tap = None
        self._sums = self._counts = None

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Return (K, D) sums and (K,) counts since the last call, or `None` where there was no forward."""
        sums, counts = self._sums, self._counts
        self._sums = self._counts = None
        return None if sums is None or counts is None else (sums, counts)

    def _add(self, codes: Tensor, latents: Tensor) -> None:
        latents = latents.float()
        if self._is_unit:
            latents = functional.normalize(latents, dim=-1)
        if self._sums is None or self._counts is None:
            self._sums = torch.zeros(self._window.K, latents.shape[-1], device=latents.device)
            self._counts = torch.zeros(self._window.K, device=latents.device)
        use = codes >= 0
        rows = codes.clamp(min=0)
        self._sums += totals(torch.where(use.unsqueeze(-1), latents, 0.0), rows, self._window.K)
        self._counts.scatter_add_(0, rows, use.float())


class TakeOverUpdatesIntervention(Intervention[TakeOverUpdates]):
    """Right when what updates the codebook is broken and the latents still move a good deal."""

    touches = frozenset({"codebook"})
    needs = ("reset", "freeze", "fallback")
    stays = True

    def __init__(self, params: TakeOverUpdates, site: Site) -> None:
        """Make the tap; nothing is summed before `apply`."""
        super().__init__(params, site)
        self._tap = _Tap(site.window, is_unit=site.view.metric == "cosine" and not site.view.decodes_raw)
        self._shares = torch.full((site.view.K,), 1 / site.view.K)
        self._averages: Tensor | None = None  # in tokens per step, known once a step was seen

    def refusal(self) -> str | None:
        """Refuse where the codebook cannot be written or frozen, or where its updates are kept out already."""
        if (reason := super().refusal()) is not None:
            return reason
        if (ranks := self.site.ranks) > 1:
            return (
                f"{ranks} ranks train together, and this average would be over one rank's tokens: `fallback_tokenizer`"
            )
        if self.site.view.is_frozen:
            return "the quantizer's own updates are kept out already"
        return why_nowhere(self.site.view, self.site.window.sample())

    def holds(self) -> tuple[Hold, ...]:
        """Return the tap."""
        return (self._tap,)

    def apply(self) -> str:
        """Place the codes, unless they are kept; freeze; begin to sum."""
        view, latents = self.site.view, self.site.window.sample()
        view.take_over()
        match self.params.start:
            case "kmeans":
                start = self._place_by_kmeans(latents)
            case "reservoir":
                start = self._place_at_random(latents)
            case "keep":
                start = self._keep(latents)
        view.freeze(is_moved=True)
        self._tap.install()
        return f"{start}; own updates frozen; the guard moves {view.K} codes by averages of decay {self.params.decay:g}"

    def _place_by_kmeans(self, latents: Tensor) -> str:
        site, view = self.site, self.site.view
        fit = fit_codebook(latents, view.K, metric=view.metric, seed=site.seed)
        whole = in_place_of(view, fit, latents, refill=0.0)
        found = fit.counts[whole.matching.order.to(fit.counts.device)].float() + 1
        self._shares = found / found.sum()
        rows = torch.arange(view.K)
        counts = None
        if view.ema_count is not None:
            counts = self._shares.to(view.ema_count.get()) * _total(view.ema_count.get())
        view.write_rows(rows, whole.vectors, counts)
        clear_moments(site, rows)
        self.facts = whole.facts
        return f"k-means codebook ({fit})"

    def _place_at_random(self, latents: Tensor) -> str:
        site, view, rows = self.site, self.site.view, torch.arange(self.site.view.K)
        vectors, counts = beside_the_living(view, rows, latents, source="reservoir", refill=1.0, seed=site.seed)
        view.write_rows(rows, vectors, counts)
        clear_moments(site, rows)
        return f"{view.K} codes placed on {len(latents)} latents"

    def _keep(self, latents: Tensor) -> str:
        view = self.site.view
        self.facts = {"ids_changed": 0, "ids_compared": len(latents)}
        if view.ema_count is not None:
            present = view.ema_count.get().float().clamp(min=0).nan_to_num(0, 0, 0) + _LEAST
            self._shares = present / present.sum()
        return "codes kept"

    @torch.no_grad()
    def tend(self, steps: int) -> str | None:
        """Move the codes by one step."""
        if (seen := self._tap.take()) is None:
            return None
        view, (sums, counts) = self.site.view, seen
        averages = self._averages.to(counts) if self._averages is not None else self._shares.to(counts) * counts.sum()
        moved, averages = moved_rows(view.codebook().float(), averages, sums, counts, self.params.decay)
        self._averages = averages
        rows = (counts > 0).nonzero().flatten()
        ema_counts = averages[rows].clamp(min=_LEAST) if view.ema_count is not None else None
        view.write_rows(rows, moved[rows], ema_counts)
        return None

    def in_words(self) -> str:
        """Say who moves the codebook."""
        return (
            f"the guard moves the codebook by averages of decay {self.params.decay:g}; to train on, keep the guard or "
            "repair the quantizer's own update"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return shares and average counts of the codes."""
        averages = None if self._averages is None else self._averages.cpu()
        return {"shares": self._shares.cpu(), "averages": averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Freeze again, and go on with the averages."""
        self._shares, self._averages = state["shares"], state["averages"]
        self.site.view.freeze(is_moved=True)
        super().load_state_dict(state)


def _total(counts: Tensor) -> Tensor:
    """Return the sum of average counts; 1 where they are of no use."""
    total = counts.float().sum()
    return torch.where(total.isfinite() & (total > 0), total, torch.ones_like(total))
