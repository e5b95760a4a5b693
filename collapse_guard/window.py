"""What one codebook showed since the last reading: integer counts of every token recorded, and a few recent latents.

All of it stays on the device where the quantizer runs. Recording adds to tensors in place and asks the device
nothing, so it costs no synchronisation. The latents live in a ring of fixed size which outlasts a window, so that a
repair may draw on more than the last few steps. Beside each latent stands its code, the forward that it came from,
which tells the tokens of one residual level from those of another, and the share of that forward that was kept, by
which tokens of forwards of any size become equally likely (`thinning`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .thinning import evenly_among, fair_rows

__all__ = ["Rows", "Window", "ring_capacity"]

_PER_FORWARD = 256
_RING_ELEMENTS = 1 << 24  # 64 MiB of float32
_GOLDEN = (5**0.5 - 1) / 2


def ring_capacity(K: int, D: int) -> int:
    """Return how many latents are kept: 16 per code, at least 4096, at most 65,536 and never above 64 MiB."""
    return max(min(max(16 * K, 4096), 65_536, _RING_ELEMENTS // D), 1)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a ring holds, row by row, as views on its tensors: whoever writes to them writes to the ring.

    Attributes:
        latents: (n, D) float32.
        codes: (n,) int64, K where there is no token.
        forwards: (n,) int64, which forward each came from, counted from 0.
        valid: (n,) bool, which are tokens.
        shares: (n,) float32, what share of its forward's latents was kept, in (0, 1].
    """

    latents: Tensor
    codes: Tensor
    forwards: Tensor
    valid: Tensor
    shares: Tensor


class Window:
    """Counts and recent latents of one codebook.

    Args:
        K: number of codes.
        D: dimension of a latent.
        seed: of the private stream that picks which latents are kept.
        capacity: how many latents are kept; `ring_capacity` where not given.
    """

    def __init__(self, K: int, D: int, *, seed: int = 0, capacity: int | None = None) -> None:
        """Store sizes; tensors are allocated at the first observation, on its device."""
        self.K = K
        self.D = D
        self.capacity = min(ring_capacity(K, D), capacity) if capacity is not None else ring_capacity(K, D)
        self._seed = seed
        self._counts: Tensor | None = None
        self._ones: Tensor | None = None  # as many as codes were shown last
        self._before: Tensor | None = None  # uses of each code before this window
        self._latents: Tensor | None = None
        self._valid: Tensor | None = None
        self._origins: Tensor | None = None
        self._shares: Tensor | None = None
        self._share = 1.0  # of the newest forward
        self._even_since = 0  # latents added before the first of those that were kept at that share without a break
        self._forwards = 0
        self.calls = 0
        """Updates of the quantizer counted since the window began; replays of a captured graph are none."""
        self._generator: torch.Generator | None = None
        self._places: tuple[int, Tensor] | None = None  # for so many rows, which are kept where nothing is drawn anew
        self.tap: Callable[[Tensor, Tensor], None] | None = None
        """Shown the codes (n,) and latents (n, D) of every forward, for what needs all of them and not a sample."""
        self._added = 0  # latents ever added
        self._added_before = 0  # of those, before this window began
        self.forgets = 0  # how often the ring was emptied, since what the codebook is compared with had changed
        self._replayed = 0  # of the last ones, how many a captured graph renews whenever it is replayed

    @torch.no_grad()
    def add(self, codes: Tensor, latents: Tensor | None, *, in_graph: bool = False, is_update: bool = True) -> None:
        """Count every code and keep at most 256 of the latents.

        Args:
            codes: (n,) integers; outside [0, K) is not a token.
            latents: (n, D), or `None` where the quantizer does not show them.
            in_graph: the call is being captured in a CUDA graph. Each replay then counts its codes and renews the
                latents at the same place of the ring, evenly spread ones: a random stream cannot be drawn from there.
                The window must have seen a call outside of a graph, see `is_ready`.
            is_update: whether it counts among `calls`; tokens of one that does not are those of the next that does.
        """
        if codes.numel() == 0:
            return
        self._allocate(codes.device)
        self.calls += is_update
        assert self._counts is not None
        assert self._ones is not None
        # What is not a token lands in an extra bin: filtering would have to ask the device how many are left. What a
        # step costs on a GPU is the number of operations, not their size: hence remainders, and nothing said twice.
        bins = codes.long().clamp(-1, self.K).remainder_(self.K + 1)
        if len(self._ones) != len(bins):
            self._ones = self._ones[:1].expand_as(bins)
        self._counts.scatter_add_(0, bins, self._ones)
        if latents is None:
            return
        sums = latents.sum(dim=-1, dtype=torch.float32)
        broken = sums.sub_(sums).ne(0).logical_and_(bins.ne(self.K))  # only of what is finite is x - x equal to 0
        self._counts[self.K + 1 :].add_(broken.sum())
        if self.tap is not None:
            self.tap(bins.add(1).remainder_(self.K + 1).sub_(1).masked_fill_(broken, -1), latents)
        n, most = len(latents), min(_PER_FORWARD, self.capacity)
        self._keep(latents, bins, self._drawn(n, most, in_graph) if n > most else None)
        self._forwards += 1
        self._replayed = min(self._replayed + min(n, most), self.capacity) if in_graph else self._replayed

    def _drawn(self, n: int, most: int, in_graph: bool) -> Tensor:
        """Return which of n rows to keep, (most,), no row likelier than another over many forwards.

        On the CPU drawn anew each time. Elsewhere that would be ten operations, and forbidden in a graph: one row of
        each stretch, drawn once for n, is moved on around by steps of the golden ratio (Weyl's sequence).
        """
        assert self._counts is not None
        device = self._counts.device
        if device.type == "cpu":
            return torch.randperm(n, generator=self._generator)[:most]
        if self._places is None or self._places[0] != n:
            starts = torch.arange(most, device=device) * n // most
            if in_graph:  # nothing can be drawn there
                return starts
            once = torch.Generator(device=device).manual_seed(self._seed)
            self._places = n, starts + torch.randint(max(n // most, 1), (most,), generator=once, device=device)
        return (self._places[1] + int(n * (self._forwards * _GOLDEN % 1))).remainder_(n)

    def is_ready(self, device: torch.device) -> bool:
        """Whether there is memory on a device to record into already."""
        return self._counts is not None and self._counts.device == device

    def _allocate(self, device: torch.device) -> None:
        if self.is_ready(device):
            return
        # Tensors made under inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self._counts = torch.zeros(self.K + 2, dtype=torch.int64, device=device)
            self._ones = torch.ones(1, dtype=torch.int64, device=device)
            self._before = torch.zeros(self.K, dtype=torch.int64, device=device)
            self._latents = torch.zeros(self.capacity, self.D, dtype=torch.float32, device=device)
            self._valid = torch.zeros(self.capacity, dtype=torch.bool, device=device)
            self._origins = torch.zeros(2, self.capacity, dtype=torch.int64, device=device)
            self._shares = torch.ones(self.capacity, dtype=torch.float32, device=device)
            self._generator = torch.Generator(device=device).manual_seed(self._seed)
            self._added = self._added_before = self._forwards = self._replayed = self._even_since = self.calls = 0
            self._places = None

    def _keep(self, latents: Tensor, bins: Tensor, chosen: Tensor | None) -> None:
        """Put the chosen rows, or all, into the ring; they are at most as many as it has."""
        assert self._latents is not None
        assert self._valid is not None
        assert self._origins is not None
        assert self._shares is not None
        n = len(latents) if chosen is None else len(chosen)
        share = n / len(latents)
        if share != self._share:
            self._share, self._even_since = share, self._added
        holds_share = self._added - self._even_since >= self.capacity or (share == 1.0 and self._even_since == 0)
        start = self._added % self.capacity
        head = min(n, self.capacity - start)
        for ring, rows in ((slice(start, start + head), slice(head)), (slice(n - head), slice(head, n))):
            if rows.start == n:
                break
            picked = rows if chosen is None else chosen if head == n else chosen[rows]
            codes, forwards = self._origins[:, ring]
            _put(self._latents[ring], latents, picked)
            _put(codes, bins, picked)
            torch.ne(codes, self.K, out=self._valid[ring])
            forwards.fill_(self._forwards)
            if not holds_share:
                self._shares[ring] = share
        self._added += n

    @property
    def parts(self) -> tuple[Window, ...]:
        """Every window that holds latents of this codebook in this process: itself, where there is one rank."""
        return (self,)

    @property
    def nbytes(self) -> int:
        """Bytes that the window takes on the device, once something was observed."""
        latents = self.capacity * self.D * torch.float32.itemsize
        origins_and_counts = (2 * self.capacity + 2 * self.K + 2) * torch.int64.itemsize
        return latents + origins_and_counts + self.capacity * (torch.bool.itemsize + torch.float32.itemsize)

    @property
    def tallies(self) -> Tensor | None:
        """(K + 2,) int64 on the device: uses of each code, then non-tokens, then tokens with a non-finite latent."""
        return self._counts

    def spread(self, most: int) -> tuple[Tensor, Tensor]:
        """Return up to `most` latents spread evenly over this window, (n, D), and which are tokens, (n,) bool.

        Every token whose forward the ring still holds is equally likely to be among them. Not to be written to.
        """
        if self._latents is None or self._valid is None:
            return torch.zeros(0, self.D), torch.zeros(0, dtype=torch.bool)
        available = min(self._added - self._added_before, self.capacity)
        n = min(most, available)
        if n == available and self._is_even(n) and (all_of_them := self.newest(n)) is not None:
            return all_of_them
        if self._is_even(available):
            offsets = torch.arange(n, device=self._latents.device) * available // max(n, 1)
            rows = (self._added - available + offsets) % self.capacity
            return self._latents[rows], self._valid[rows]
        rows = self._newest(available)
        places, stand = evenly_among(self._fair(rows), n)
        return self._latents[rows[places]], self._valid[rows[places]] & stand

    def sample(self) -> Tensor:
        """Return the finite latents in the ring that belong to a token, (n, D). Waits for the device.

        All of them where forwards were of one size; of several sizes as many as leave every token equally likely.
        """
        if self._latents is None or self._valid is None:
            return torch.zeros(0, self.D)
        held = min(self._added, self.capacity)
        latents, use = self._latents[:held], self._valid[:held] & self._latents[:held].isfinite().all(dim=-1)
        if not self._is_even(held):
            use &= self._fair(torch.arange(held, device=latents.device))
        return latents[use]

    def latest(self, most: int) -> Tensor:
        """Return what `sample` would, from among the last `most` that came in, oldest first. Waits for the device."""
        if self._latents is None or self._valid is None:
            return torch.zeros(0, self.D)
        rows = self._newest(min(self._added, self.capacity, most))
        latents, use = self._latents[rows], self._valid[rows]
        if not self._is_even(len(rows)):
            use &= self._fair(rows)
        return latents[use & latents.isfinite().all(dim=-1)]

    def newest(self, most: int) -> tuple[Tensor, Tensor] | None:
        """Return the last `most` latents, (n, D), and which are tokens, (n,) bool; `None` before the first observation.

        Not to be written to: they are views where they lie side by side. Asks the device nothing.
        """
        if self._latents is None or self._valid is None:
            return None
        n = min(self._added, self.capacity, most)
        start = (self._added - n) % self.capacity
        parts = slice(start, start + n), slice(start + n - self.capacity)
        if start + n <= self.capacity:
            return self._latents[parts[0]], self._valid[parts[0]]
        return torch.cat([self._latents[each] for each in parts]), torch.cat([self._valid[each] for each in parts])

    def _newest(self, n: int) -> Tensor:
        """Return where the last `n` latents stand, (n,) int64, the oldest first."""
        assert self._latents is not None
        return (self._added - n + torch.arange(n, device=self._latents.device)) % self.capacity

    def _is_even(self, n: int) -> bool:
        """Whether the same share was kept of all forwards that the last `n` latents are of; asks no device."""
        return self._even_since <= self._added - n

    def _fair(self, rows: Tensor) -> Tensor:
        assert self._shares is not None
        assert self._valid is not None
        turns = self._added - 1 - (self._added - 1 - rows) % self.capacity
        return fair_rows(self._shares[rows], self._valid[rows], turns, self._seed)

    def rows(self) -> Rows | None:
        """Return what the ring holds, or `None` before the first observation."""
        if self._latents is None or self._valid is None or self._origins is None or self._shares is None:
            return None
        held = min(self._added, self.capacity)
        codes, forwards = self._origins[:, :held]
        return Rows(self._latents[:held], codes, forwards, self._valid[:held], self._shares[:held])

    def recent(self, most: int) -> Rows | None:
        """Return a copy of the last `most` rows that came in, oldest first; `None` before the first observation."""
        if self._latents is None or self._valid is None or self._origins is None or self._shares is None:
            return None
        places = self._newest(min(self._added, self.capacity, most))
        codes, forwards = self._origins[:, places]
        return Rows(self._latents[places], codes, forwards, self._valid[places], self._shares[places])

    def recent_here(self, most: int) -> Rows | None:
        """Return a copy of the last rows of this window, at most so many; `None` where it has none yet."""
        held = min(most, self._added - self._added_before)
        return self.recent(held) if held > 0 else None

    def forget(self) -> None:
        """Take nothing in the ring for a token: it is not what the codebook is compared with any more. Counts stay."""
        self.forgets += 1
        if self._valid is not None:
            self._valid.zero_()

    @property
    def uses(self) -> Tensor | None:
        """(K,) int64 on the device: uses of each code in this window and all before it."""
        if self._counts is None or self._before is None:
            return None
        return self._before + self._counts[: self.K]

    @property
    def has_begun(self) -> bool:
        """Whether a latent was added since the window began; told without asking the device."""
        return self._added != self._added_before + self._replayed

    def emptied(self) -> Window:
        """Return a window of the same codebook and stream that has seen nothing."""
        return Window(self.K, self.D, seed=self._seed)

    def restart(self) -> None:
        """Begin a new window: counts at zero; the ring keeps its latents."""
        if self._counts is not None and self._before is not None:
            self._before += self._counts[: self.K]
            self._counts.zero_()
        self._added_before = self._added - self._replayed
        self.calls = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the window as plain data and tensors."""
        state: dict[str, Any] = {"added": self._added, "added_before": self._added_before, "forwards": self._forwards}
        state["calls"] = self.calls
        if self._counts is not None and self._latents is not None and self._valid is not None:
            assert self._generator is not None
            assert self._origins is not None
            assert self._shares is not None
            assert self._before is not None
            tensors = {"counts": self._counts, "latents": self._latents, "valid": self._valid}
            tensors |= {"origins": self._origins, "shares": self._shares, "before": self._before}
            state |= {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            state["generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore a window on a device; a state of another K or D is refused.

        Raises:
            ValueError: the state belongs to a codebook of another size.
        """
        if "counts" not in state:
            return
        if state["counts"].numel() != self.K + 2 or state["latents"].shape != (self.capacity, self.D):
            raise ValueError(
                f"expected the window of a {self.K} x {self.D} codebook, got one of "
                f"{state['counts'].numel() - 2} x {state['latents'].shape[-1]}; it was not restored"
            )
        self._allocate(device)
        assert self._counts is not None
        assert self._latents is not None
        assert self._valid is not None
        assert self._origins is not None
        assert self._shares is not None
        assert self._before is not None
        self._counts.copy_(state["counts"])
        self._before.copy_(state["before"])
        self._latents.copy_(state["latents"])
        self._valid.copy_(state["valid"])
        self._origins.copy_(state["origins"])
        self._shares.copy_(state.get("shares", torch.ones(())))
        if self._generator is not None and state["generator"].numel() == self._generator.get_state().numel():
            self._generator.set_state(state["generator"])
        self._added, self._added_before = int(state["added"]), int(state["added_before"])
        self._forwards, self.calls = int(state["forwards"]), int(state.get("calls", 0))
        self._share, self._even_since = 0.0, self._added  # whether what came before is even, its rows tell


def _put(into: Tensor, values: Tensor, picked: Tensor | slice) -> None:
    """Write some of the rows of values, in one operation where the types agree."""
    if isinstance(picked, slice):
        into.copy_(values[picked])
    elif values.dtype == into.dtype:
        torch.index_select(values, 0, picked, out=into)
    else:
        into.copy_(values.index_select(0, picked))
