"""What all ranks recorded of a codebook: one window, the same on each of them, as it was gathered last.

Interventions fit codes to it and ask it which are used, so that they compute the same on every rank. It is bounded as a
rank's own ring is: of N ranks each gives the newest N-th part. What happens to it at an intervention, a new window or
latents that are no longer those of a level, also happens to this rank's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from collapse_guard.adapters import CodebookView
from collapse_guard.window import Window

from .group import Alone

__all__ = ["Pool", "Recorded", "SharedWindow"]


class Recorded(Protocol):
    """One codebook and what was recorded of it."""

    @property
    def view(self) -> CodebookView:
        """The codebook."""
        ...

    @property
    def window(self) -> Window:
        """Its counts and latents."""
        ...


class SharedWindow(Window):
    """A window over all ranks.

    Args:
        own: this rank's.
        size: how many ranks there are.
    """

    def __init__(self, own: Window, size: int) -> None:
        """Begin empty."""
        super().__init__(own.K, own.D)
        self._size = size
        self._per_rank = max(self.capacity // size, 1)
        self.capacity = self._per_rank * size
        self.own = own

    @property
    def parts(self) -> tuple[Window, ...]:
        """Every window that holds latents of this codebook here."""
        return (self, self.own)

    def pack(self) -> Tensor:
        """Return what this rank gives, as bytes in host memory; as many for any content."""
        counts = torch.zeros(2 * self.K + 2, dtype=torch.int64)
        if self.own.tallies is not None and self.own.uses is not None:
            counts = torch.cat([self.own.tallies, self.own.uses - self.own.tallies[: self.K]]).cpu()
        begun = torch.tensor([int(self.own.has_begun)])
        n = self._per_rank  # what is missing of it comes first, and is no token
        codes, forwards = torch.full((n,), -1, dtype=torch.int64), torch.full((n,), -1, dtype=torch.int64)
        latents, valid = torch.zeros(n, self.D + 1), torch.zeros(n, dtype=torch.uint8)
        latents[:, -1] = 1.0  # of its forward, what share was kept
        rows = self.own.recent(n)
        if rows is not None and (held := len(rows.valid)):
            codes[-held:], forwards[-held:] = rows.codes, rows.forwards
            latents[-held:, :-1], latents[-held:, -1], valid[-held:] = rows.latents, rows.shares, rows.valid
        parts = (torch.cat([counts, begun, codes, forwards]), latents, valid)
        return torch.cat([part.view(torch.uint8).flatten() for part in parts])

    def fill(self, packed: Sequence[Tensor], device: torch.device) -> None:
        """Hold what all ranks gave, interleaved: from each rank's oldest to each rank's newest."""
        self._allocate(device)
        assert self._counts is not None
        assert self._before is not None
        assert self._latents is not None
        assert self._origins is not None
        assert self._valid is not None
        assert self._shares is not None
        K, n = self.K, self._per_rank
        split = (2 * K + 3 + 2 * n) * 8
        whole = torch.stack([each[:split].clone().view(torch.int64) for each in packed])
        wide = n * (self.D + 1) * 4
        found = torch.stack([each[split : split + wide].clone().view(torch.float32) for each in packed])
        rows = found.view(self._size, n, self.D + 1).transpose(0, 1).flatten(0, 1)
        valid = torch.stack([each[split + wide :] for each in packed])
        codes, forwards = whole[:, 2 * K + 3 : 2 * K + 3 + n], whole[:, 2 * K + 3 + n :]
        # A forward is one of one rank: their numbers must not meet.
        forwards = forwards * self._size + torch.arange(self._size).unsqueeze(-1)
        self._counts.copy_(whole[:, : K + 2].sum(dim=0))
        self._before.copy_(whole[:, K + 2 : 2 * K + 2].sum(dim=0))
        self._latents.copy_(rows[:, :-1])
        self._shares.copy_(rows[:, -1])
        self._valid.copy_(valid.t().flatten().bool())
        self._origins.copy_(torch.stack([codes.t().flatten(), forwards.t().flatten()]))
        self._added = self._even_since = self.capacity  # ranks may differ: each row is looked at
        self._added_before = 0 if bool(whole[:, 2 * K + 2].any()) else self._added

    def restart(self) -> None:
        """Begin a new window here and on this rank's own."""
        super().restart()
        self.own.restart()

    def forget(self) -> None:
        """Take nothing for a token any more, here and in this rank's own."""
        super().forget()
        self.own.forget()


@dataclass(eq=False)
class Together:
    """A codebook with what all ranks recorded of it."""

    view: CodebookView
    window: SharedWindow


class Pool:
    """What was recorded, over all ranks, by codebook; alone, what this process itself recorded.

    Args:
        ranks: all enter each `gather`.
    """

    def __init__(self, ranks: Alone) -> None:
        """Begin with nothing."""
        self._ranks = ranks
        self._together: dict[str, Together] = {}

    def of(self, one: Recorded) -> Recorded:
        """Return what was gathered last of a codebook."""
        if self._ranks.size == 1:
            return one
        held = self._together.get(one.view.name)
        if held is None or held.view is not one.view or held.window.own is not one.window:
            held = Together(one.view, SharedWindow(one.window, self._ranks.size))
            self._together[one.view.name] = held
        return held

    def gather(self, ones: Sequence[Recorded]) -> list[Recorded]:
        """Gather what was recorded of some codebooks, in one exchange, and return it; the same codebooks on all ranks.

        Raises:
            OtherRankError: a rank could not read what it recorded.
        """
        if self._ranks.size == 1:
            return list(ones)
        all_of_them = [self._shared(one) for one in ones]
        packed = self._ranks.together(lambda: [each.window.pack() for each in all_of_them])
        gathered = self._ranks.gather(torch.cat(packed))
        sizes = [len(each) for each in packed]
        by_rank = [torch.split(each, sizes) for each in gathered]
        for place, each in enumerate(all_of_them):
            each.window.fill([parts[place] for parts in by_rank], each.view.codebook().device)
        return list(all_of_them)

    def _shared(self, one: Recorded) -> Together:
        held = self.of(one)
        assert isinstance(held, Together)
        return held
