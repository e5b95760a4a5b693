"""What one rank's window and codebook add up to, and the same over all ranks.

Sums over latents and codes run in float32 on the device and come over in one copy. What is additive is added up over
the ranks in float64; of what is not, each rank keeps its place: the norms of sampled latents stand side by side. The
codebook itself is the first rank's, since all should hold the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import functional

from .adapters import CodebookView
from .adapters.base import Metric
from .kmeans import nearest_errors, without_autocast
from .window import Rows, Window

__all__ = ["Sums", "sum_up"]

_SAMPLE = 512
_DISTANCE_OPERATIONS = 1 << 27  # bounds what a reading may cost on huge codebooks
_WIDEST_COVARIANCE = 512
_DRAWN, _DRAWN_CALLS = 256, 4  # latents, of so many forwards: codes move on after they were drawn


@dataclass(frozen=True, slots=True)
class Sums:
    """What a reading is computed from, in host memory.

    Attributes:
        tallies: (K + 2,) int64: uses of each code, non-tokens, tokens with a non-finite latent.
        norms: (s,) of sampled latents, NaN where there is none.
        number: (1,) of those latents that are finite tokens.
        mean: (D,) of them. squares: (1,) sum of their squared distances from the mean.
        covariance: a matrix with the non-zero spectrum of theirs: (D, D), or (s, s) where D is wider than 512.
        error: (2,) sum of |z - q|^2 over some of them, and of how many.
        table_norms: (K,) of the codes as they are decoded.
        table_covariance: of the codes, as `covariance`.
        drawn: (2,) of the last latents, sum of |z - e|^2 with the codes that they were given, and with the nearest
            ones; zeros where no codes are drawn at random.
        task: (2,) of the gradient at the quantizer's input, the squared length that is not the pull of a commitment,
            and what that could be at most; zeros where none was felt.
    """

    tallies: np.ndarray
    norms: np.ndarray
    number: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    covariance: np.ndarray
    error: np.ndarray
    table_norms: np.ndarray
    table_covariance: np.ndarray
    drawn: np.ndarray = field(default_factory=lambda: np.zeros(2))
    task: np.ndarray = field(default_factory=lambda: np.zeros(2))

    @property
    def counts(self) -> np.ndarray:
        """(K,) int64: uses of each code."""
        return self.tallies[:-2]

    @property
    def tokens(self) -> int:
        """How many tokens were counted."""
        return int(self.counts.sum())

    @classmethod
    def length(cls, K: int, D: int, size: int) -> int:
        """Return how many numbers `pack` makes for a codebook of K x D on so many ranks."""
        return sum(_lengths(K, D, size))

    def pack(self, index: int, size: int) -> np.ndarray:
        """Return one rank's sums as (length,) float64 such that those of all ranks can be added up.

        Counts stay exact up to 2**53. Sums about a mean are moved to the origin, in float64.

        Args:
            index: of this rank. size: how many ranks there are.
        """
        share, wide, first = _share(size), len(self.mean) > _WIDEST_COVARIANCE, index == 0
        norms = np.zeros((size, share))
        norms[index] = np.nan
        norms[index, : len(self.norms)] = self.norms
        number, mean = float(self.number[0]), self.mean.astype(np.float64)
        side = min(len(mean), _WIDEST_COVARIANCE)
        covariance = np.zeros((side, side))
        if not wide and self.covariance.size:
            covariance = number * (self.covariance.astype(np.float64) + np.outer(mean, mean))
        elif first and self.covariance.size:  # not additive: the first rank speaks for all
            n = len(self.covariance)
            covariance[:n, :n] = self.covariance
        parts = [
            self.tallies,
            norms,
            self.number,
            number * mean,
            self.squares.astype(np.float64) + number * float(mean @ mean),
            covariance,
            self.error,
            self.table_norms if first else np.zeros_like(self.table_norms),
            self.table_covariance if first else np.zeros_like(self.table_covariance),
            self.drawn,
            self.task,
        ]
        return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])

    @classmethod
    def unpack(cls, packed: np.ndarray, K: int, D: int, size: int) -> Sums:
        """Return the sums over all ranks from what they packed, added up."""
        side, wide = min(D, _WIDEST_COVARIANCE), D > _WIDEST_COVARIANCE
        rows = min(K, _WIDEST_COVARIANCE) if wide else D
        pieces = np.split(packed, np.cumsum(_lengths(K, D, size))[:-1])
        parts = dict(zip((each.name for each in fields(cls)), pieces, strict=True))
        number = max(float(parts["number"][0]), 1.0)
        mean = parts["mean"] / number
        squares = _moved(parts["squares"], number * float(mean @ mean))
        covariance = parts["covariance"].reshape(side, side)
        if not wide:
            covariance = covariance / number - np.outer(mean, mean)
            np.fill_diagonal(covariance, _moved(covariance.diagonal() + mean**2, mean**2))
        return cls(
            tallies=parts["tallies"].astype(np.int64),
            norms=parts["norms"],
            number=parts["number"],
            mean=mean,
            squares=squares,
            covariance=covariance,
            error=parts["error"],
            table_norms=parts["table_norms"],
            table_covariance=parts["table_covariance"].reshape(rows, rows),
            drawn=parts["drawn"],
            task=parts["task"],
        )


def _lengths(K: int, D: int, size: int) -> tuple[int, ...]:
    """Return how many numbers each field packs, in their order."""
    side, rows = min(D, _WIDEST_COVARIANCE), min(K, _WIDEST_COVARIANCE) if D > _WIDEST_COVARIANCE else D
    return (K + 2, _share(size) * size, 1, D, 1, side * side, 2, K, rows * rows, 2, 2)


def _share(size: int) -> int:
    return max(_SAMPLE // size, 1)


def _moved(value: np.ndarray, by: np.ndarray | float) -> np.ndarray:
    """Return sums of squares about the mean instead of the origin; what only rounding has left is zero."""
    left = value - by
    return np.where(left > 1e-12 * np.abs(value), left, 0.0)


@torch.no_grad()
def sum_up(
    window: Window, view: CodebookView, *, size: int = 1, table: Tensor | None = None, task: Tensor | None = None
) -> Sums:
    """Compute a window's sums on the device and bring all of them over in one copy.

    Args:
        window: counts and latents.
        view: the codebook as it is now.
        size: how many ranks sample latents: each takes its share of 512.
        table: (K, D) what the latents were compared with, where that is not the codebook as it is now.
        task: (2,) what the pulse felt, as `Sums.task`; `None` where it felt nothing.
    """
    tallies = window.tallies
    if table is None:  # nobody asks for one that is sharded: what needs it is not known then
        device = tallies.device if tallies is not None else None
        table = view.codebook() if not view.is_sharded else torch.full((view.K, view.D), math.nan, device=device)
    table = table.float()
    if tallies is None:
        tallies = torch.zeros(window.K + 2, dtype=torch.int64, device=table.device)
    with without_autocast(table.device):
        is_unit = view.metric == "cosine" and not view.decodes_raw
        decoded = functional.normalize(table, dim=-1) if is_unit else table
        parts = _latent_sums(window, decoded, view.metric, size)
        table_covariance = _covariance(decoded - decoded.sum(dim=0) / len(decoded), len(decoded))
        parts += [vector_norm(decoded, dim=-1), table_covariance]
        further: dict[str, Tensor] = {}
        most = max(min(_DRAWN, _DISTANCE_OPERATIONS // table.numel()), 16)
        if view.temperature is not None and (rows := window.recent_here(most)) is not None:
            further["drawn"] = _drawn_errors(rows, decoded, view.metric)
    if task is not None:
        further["task"] = task.to(table.device)
    parts += further.values()
    # Integers travel as the bits of float32: one operation joins all.
    packed = torch.cat([tallies.view(torch.float32), *(part.flatten() for part in parts)]).cpu().numpy()
    split = tallies.numel() * 2
    values, ends = packed[split:], accumulate(part.numel() for part in parts)
    shaped: list[np.ndarray] = [
        values[end - part.numel() : end].reshape(part.shape or (1,)) for end, part in zip(ends, parts, strict=True)
    ]
    rest = shaped.pop(6)  # far from the origin the mean's rounding would be more than the variance
    shaped[2] = shaped[2].astype(np.float64) + rest
    named = dict(zip(further, shaped[len(shaped) - len(further) :], strict=True))
    return Sums(packed[:split].view(np.int64).copy(), *shaped[: len(shaped) - len(further)], **named)


def _drawn_errors(rows: Rows, table: Tensor, metric: Metric) -> Tensor:
    """Return (2,) sums of |z - e|^2 with the codes that latents were given, and with the nearest ones."""
    latents = rows.latents
    use = rows.valid & (rows.forwards > rows.forwards[-1] - _DRAWN_CALLS) & latents.isfinite().all(dim=-1)
    clean = torch.where(use.unsqueeze(-1), latents, 0.0)
    if metric == "l2":
        clean, table = clean - (middle := clean.mean(dim=0)), table - middle
    given = (clean - table[rows.codes.clamp(max=len(table) - 1)]).square().sum(dim=-1)
    return torch.where(use, torch.stack([given, nearest_errors(clean, table, metric)]), 0.0).sum(dim=-1)


def _latent_sums(window: Window, table: Tensor, metric: Metric, size: int) -> list[Tensor]:
    """Return norms to error, in the order of `Sums`, and last what float32 left off the mean."""
    most = max(min(_SAMPLE, _DISTANCE_OPERATIONS // table.numel()), 16)
    latents, valid = window.spread(_share(size))
    latents, valid = latents.to(table.device), valid.to(table.device)
    if len(latents) == 0:
        zero, D = torch.zeros(1, device=table.device), table.shape[1]
        return [zero[:0], zero, zero.new_zeros(D), zero, zero.new_zeros(0, 0), zero.new_zeros(2), zero.new_zeros(D)]
    # After a step of training no cache is warm: what costs is each further kind of operation, hence the same few again.
    norms = vector_norm(latents, dim=-1)
    use = norms.lt(torch.inf).logical_and_(valid)
    used, unused = use.float(), use.logical_not_()
    clean = latents.masked_fill(unused.unsqueeze(-1), 0.0)
    number = used.sum(dim=0, keepdim=True)
    weight = number.clamp(min=1)
    mean = clean.sum(dim=0) / weight
    centred = (latents - mean).masked_fill_(unused.unsqueeze(-1), 0.0)
    norms.masked_fill_(unused, math.nan)
    points, codes = (clean, table) if metric == "cosine" else (centred, table - mean)
    compared = number
    if (stride := -(-len(clean) * size // most)) > 1:
        points, unused = points[::stride], unused[::stride]
        compared = used[::stride].sum(dim=0, keepdim=True)
    errors = nearest_errors(points, codes, metric).masked_fill_(unused, 0.0).sum(dim=0, keepdim=True)
    rest = centred.sum(dim=0) / weight
    squares = centred.square().sum().reshape(1)
    return [norms, number, mean, squares, _covariance(centred, weight), torch.cat([errors, compared]), rest]


def _covariance(centred: Tensor, number: Tensor | int) -> Tensor:
    """Return a matrix with the non-zero spectrum of the covariance of so many rows, (n, D) about their mean.

    It is (D, D), or made of at most 512 rows where D is wider than that. Rows of zeros change nothing.
    """
    if centred.shape[1] <= _WIDEST_COVARIANCE:
        return centred.t() @ centred / number
    picked = torch.linspace(0, len(centred) - 1, min(len(centred), _WIDEST_COVARIANCE), device=centred.device).long()
    return centred[picked] @ centred[picked].t() / number
