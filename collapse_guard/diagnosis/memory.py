"""What is remembered of each codebook for the day on which somebody asks why.

A mark is a handful of rows and sums, taken at a reading and left on its device: it asks for no synchronisation and
costs some 100 microseconds; so where readings are close and calm, not each has one. The first marks and the last few
are kept, whatever the length of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collapse_guard.adapters import CodebookView
from collapse_guard.kmeans import finite_rows
from collapse_guard.policies import Reading
from collapse_guard.window import Window

__all__ = ["Mark", "Memory", "decoded_table", "mark_of"]

_CODES = 64
_LATENTS = 256
_FIRST, _LAST = 2, 6
_APART = 10  # steps between two marks, at least, while nothing is suspected


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A codebook at one reading.

    Attributes:
        step: optimizer steps completed.
        codes: (s, D) float32, some rows of the codebook as it is decoded, the same ones in every mark.
        dead: (s,) bool, which of them no token used in the window; `None` before the first reading.
        latents: (3 + D,) float32: median norm, E|z - mean|^2, E|z|^2 and mean of some recent latents; NaN without any.
        perplexity, usage, relative_error, latent_rank, loss: as in the reading; `None` where unknown.
        beat: the latest gradients through the quantizer, as `Pulse.take` returns them; `None` where none were seen.
        version: how often the guard itself had written the codebook, or put it back.
        metric: by which latents and codes were compared, whatever the guard has switched off; empty where unknown.
    """

    step: int
    codes: Tensor
    dead: Tensor | None = None
    latents: Tensor | None = None
    perplexity: float | None = None
    usage: float | None = None
    relative_error: float | None = None
    latent_rank: float | None = None
    loss: float | None = None
    beat: Mapping[str, Any] | None = None
    version: int = 0
    metric: str = ""

    def on_host(self) -> Mark:
        """Return the same on the CPU; waits for the device."""
        moved: dict[str, Any] = {
            name: value.cpu() if isinstance(value, Tensor) else value for name, value in self._items()
        }
        return Mark(**moved)

    def _items(self) -> list[tuple[str, Any]]:
        return [(each.name, getattr(self, each.name)) for each in fields(self)]

    def state_dict(self) -> dict[str, Any]:
        """Return the mark as plain data and tensors on the CPU."""
        plain = dict(self.on_host()._items())
        return plain | {"beat": {name: float(value) for name, value in self.beat.items()} if self.beat else None}

    @property
    def latent_norm(self) -> float:
        """Median norm of the latents; NaN without any."""
        return self._latent(0)

    @property
    def latent_variance(self) -> float:
        """E|z - mean|^2; NaN without any."""
        return self._latent(1)

    @property
    def latent_power(self) -> float:
        """E|z|^2; NaN without any."""
        return self._latent(2)

    @property
    def latent_mean(self) -> Tensor | None:
        """(D,) mean of the latents; `None` without any."""
        return self.latents[3:] if self.latents is not None else None

    @property
    def code_norm(self) -> float:
        """Median norm of the sampled codes."""
        return float(self.codes.norm(dim=-1).median())

    def _latent(self, place: int) -> float:
        return float(self.latents[place]) if self.latents is not None else float("nan")


class Memory:
    """The marks of one codebook: the first ones, and the latest.

    Example:
        >>> memory = Memory()
        >>> for step in range(20):
        ...     memory.add(Mark(step=step, codes=torch.zeros(1, 1)))
        >>> [mark.step for mark in memory.marks]
        [0, 1, 14, 15, 16, 17, 18, 19]
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.marks: list[Mark] = []

    def is_due(self, step: int, *, is_suspect: bool) -> bool:
        """Whether a reading at a step is worth a mark; where each step is read, the last few would tell too little."""
        return is_suspect or not self.marks or step - self.marks[-1].step >= _APART

    def add(self, mark: Mark) -> None:
        """Remember a mark, and forget one from the middle where there are too many."""
        self.marks.append(mark)
        if len(self.marks) > _FIRST + _LAST:
            del self.marks[_FIRST]

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the marks as plain data and tensors."""
        return [mark.state_dict() for mark in self.marks]

    def load_state_dict(self, state: list[dict[str, Any]], device: torch.device) -> None:
        """Go on from `state_dict`."""
        self.marks = []
        for each in state:
            placed: dict[str, Any] = {
                name: value.to(device) if isinstance(value, Tensor) else value for name, value in each.items()
            }
            self.marks.append(Mark(**placed))


def decoded_table(view: CodebookView) -> Tensor:
    """Return the (K, D) float32 vectors that latents become: unit rows where the codebook decodes so."""
    if view.is_sharded:
        raise ValueError("its table is sharded over the ranks")
    table = view.codebook().float()
    is_unit = view.metric == "cosine" and not view.decodes_raw
    return torch.nn.functional.normalize(table, dim=-1) if is_unit else table


@torch.no_grad()
def mark_of(
    view: CodebookView,
    window: Window | None = None,
    reading: Reading | None = None,
    counts: np.ndarray | None = None,
    *,
    beat: Mapping[str, Any] | None = None,
    version: int = 0,
) -> Mark:
    """Take a mark; asks the device nothing.

    Args:
        view: the codebook as it is now.
        window: its recent latents. reading, counts: of this step; without them the mark is of the start.
        beat: gradients of a recent step. version: how often the guard has written the codebook, or put it back.
    """
    table = view.codebook()
    rows = torch.arange(min(_CODES, len(table)), device=table.device) * len(table) // min(_CODES, len(table))
    codes = table[rows].float()
    if view.metric == "cosine" and not view.decodes_raw:
        codes = torch.nn.functional.normalize(codes, dim=-1)
    if reading is None or counts is None or window is None:
        return Mark(step=0, codes=codes.clone(), version=version, metric=view.metric_by_design)
    picked = np.arange(len(rows)) * len(counts) // len(rows)
    return Mark(
        step=reading.step,
        codes=codes.clone(),
        dead=torch.from_numpy(counts[picked] == 0).to(table.device, non_blocking=True),
        latents=_sums_of(window),
        perplexity=reading.perplexity,
        usage=reading.usage,
        relative_error=reading.relative_error,
        latent_rank=reading.latent_rank,
        loss=reading.loss,
        beat=beat,
        version=version,
        metric=view.metric_by_design,
    )


def _sums_of(window: Window) -> Tensor | None:
    """Return the (3 + D,) sums of recent latents without asking the device which of them are tokens."""
    found = window.newest(_LATENTS)
    if found is None or len(found[0]) == 0:
        return None
    latents, valid = found
    use = finite_rows(latents) & valid
    weights = use.float() / use.sum().clamp(min=1)
    clean = torch.where(use.unsqueeze(-1), latents, 0.0)
    mean = weights @ clean
    squares = clean.square().sum(dim=-1)
    norm = torch.where(use, squares.sqrt(), float("nan")).nanmedian()
    variance = weights @ (clean - mean).square().sum(dim=-1)
    return torch.cat([torch.stack([norm, variance, weights @ squares]), mean])
