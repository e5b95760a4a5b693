"""`upkeep`: codes that are hardly used move to where they are needed, a few at a time, until the rule is clear.

For a codebook of which much lies idle although nothing is broken. Places are drawn among the newest latents, at random
or in proportion to their squared error, as in the D^2 sampling of k-means++ (Arthur and Vassilvitskii, SODA 2007);
codes in use stay as they are. Where one code has more than half of the tokens, as of silence, none is put beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from collapse_guard.kmeans import assign
from collapse_guard.policies import Upkeep

from .base import Intervention, Site, clear_moments
from .placement import are_distinct, beside_the_living, why_nowhere

__all__ = ["UpkeepIntervention"]

_LATENTS = 4096  # the newest, since older ones come from another encoder
_TOKENS_PER_CODE = 8  # fewer since the last move cannot tell a code that is little used from one that had no chance


class UpkeepIntervention(Intervention[Upkeep]):
    """Right when many codes are dead at a healthy geometry. Each move permutes a few token ids."""

    touches = frozenset({"codebook"})
    reaches_graphs = True
    needs = ("reset",)
    tends = True

    def __init__(self, params: Upkeep, site: Site) -> None:
        """Begin to count uses now."""
        super().__init__(params, site)
        self._since: Tensor | None = None
        self._last = 0
        self._rounds = self._moved = 0

    def refusal(self) -> str | None:
        """Refuse where rows cannot be written, where a fallback stands, or where there is nothing to place them on."""
        site = self.site
        if site.view.stands:
            return "a fallback tokenizer is in force: it follows the latents by refits, which keep token ids"
        return super().refusal() or why_nowhere(site.view, site.window.sample())

    def apply(self) -> str:
        """Take the replacement of dead codes over; the first codes move with the reading after `every`."""
        self.site.view.take_over()
        self._since = self.site.window.uses
        least = self.params.below
        return f"codes used less than {least:g} times the uniform share are moved every {self.params.every} from now on"

    def is_due(self, steps: int) -> bool:
        """Whether it is time for the next round, and training is not near its end."""
        is_late = (progress := self.site.progress()) is not None and progress > self.params.until
        return steps - self._last >= self.params.every.count and not is_late

    def tend(self, steps: int) -> str | None:
        """Move codes where it is time to, right after a reading. Nothing is said of single moves."""
        window, view = self.site.window, self.site.view
        if not self.is_due(steps) or window.has_begun:
            return None
        uses = window.uses
        if uses is None:
            return None
        counts = (uses if self._since is None else uses - self._since).cpu()
        if int(counts.min()) < 0:  # other ranks than those that began have not seen what was counted then
            self._since = uses
            return None
        if int(counts.sum()) < _TOKENS_PER_CODE * view.K:
            return None
        self._last, self._since = steps, uses
        self._move(self._idle(counts), self._places(counts))
        return None

    def ending(self) -> str:
        """Give the replacement back and say what was done in all."""
        if not self.site.view.is_frozen:  # else another intervention keeps it off, and still does
            self.site.view.give_back()
        return f"{self._moved} moves of codes in {self._rounds} rounds"

    def _idle(self, counts: Tensor) -> Tensor:
        """Return the codes to move, the least used first; unless it has all, the most used may stand for padding."""
        K, others = len(counts), counts.sum() - counts.max()
        share = others / (K - 1) if others > 0 else counts.sum() / K
        idle = (counts < self.params.below * share).nonzero().flatten()
        return idle[counts[idle].argsort(stable=True)][: max(1, int(self.params.most * K))]

    def _places(self, counts: Tensor) -> Tensor:
        """Return (n, D) latents to move to; where one code has most of them, as of silence, those of the others."""
        view, latents = self.site.view, self.site.window.latest(_LATENTS)
        if 2 * counts.max() <= counts.sum() or not len(latents):
            return latents
        others = latents[assign(latents, view.codebook(), view.metric) != int(counts.argmax())]
        return others if are_distinct(others) else latents

    def _move(self, rows: Tensor, latents: Tensor) -> None:
        site, view = self.site, self.site.view
        if not len(rows) or len(rows) == view.K or not are_distinct(latents):
            return
        self._rounds += 1
        seed = site.seed + 7919 * self._rounds
        source, refill = self.params.source, self.params.refill
        vectors, counts = beside_the_living(view, rows, latents, source=source, refill=refill, seed=seed)
        view.write_rows(rows, vectors, counts)
        clear_moments(site, rows)
        self._moved += len(rows)
        self.writes += 1

    def state_dict(self) -> dict[str, Any]:
        """Return when codes moved last, how many in all, and the uses until then."""
        since = None if self._since is None else self._since.cpu()
        return {"last": self._last, "rounds": self._rounds, "moved": self._moved, "since": since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved upkeep stood."""
        self._last, self._rounds, self._moved = int(state["last"]), int(state["rounds"]), int(state["moved"])
        since = state["since"]
        self._since = None if since is None else since.to(self.site.view.codebook().device)
        self.site.view.take_over()
