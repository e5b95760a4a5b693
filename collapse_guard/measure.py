"""From a window to a reading: device-side sums, one copy to the host, exact formulas there.

Sums over latents and codes run in float32 on the device; counts stay integers; perplexity, entropy and spectra are
computed on the host in float64. One call makes one device-to-host copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from collapse_guard.policies import Reading

from .adapters import CodebookView
from .adapters.base import Metric
from .kmeans import assign
from .statistics import dead_fraction, effective_rank, perplexity, perplexity_ceiling, top_share, usage
from .window import Window

__all__ = ["Loss", "number_of", "read_window"]

Loss: TypeAlias = "float | Tensor | Callable[[], float | Tensor | None] | None"
"""What a loop may name as its loss."""

_SAMPLE = 512
_DISTANCE_OPERATIONS = 1 << 27  # bounds what a reading may cost on huge codebooks
_WIDEST_COVARIANCE = 512
_SCALARS = ("latent_norm", "codebook_norm", "used_norm", "latent_variance", "error")


def read_window(
    window: Window,
    view: CodebookView,
    *,
    step: int,
    epoch: int | None = None,
    loss: float | None = None,
    dead_below: float = 0.1,
    table: Tensor | None = None,
) -> tuple[Reading, np.ndarray]:
    """Turn what a window recorded into a reading; the window itself is left as it is.

    Args:
        window: counts and latents.
        view: the codebook as it is now, for norms and errors.
        step: stamped on the reading.
        epoch: stamped on the reading.
        loss: stamped on the reading.
        dead_below: share of the uniform share under which a code is dead.
        table: (K, D) what the latents were compared with, where that is not the codebook as it is now.

    Returns:
        The reading, and the (K,) int64 counts on the host that it was computed from.
    """
    K = view.K
    tallies, scalars, latent_covariance, table_covariance = _fetch(window, view, table)
    counts, not_finite = tallies[:K], int(tallies[K + 1])
    reading = _unused(view, int(counts.sum()), step=step, epoch=epoch, loss=loss)
    if reading.tokens == 0:
        return reading, counts
    value, ceiling = perplexity(counts), perplexity_ceiling(reading.tokens, K)
    reading = replace(
        reading,
        perplexity=value,
        ceiling=ceiling,
        perplexity_ratio=value / ceiling,
        usage=usage(counts),
        dead_fraction=dead_fraction(counts, dead_below),
        top_share=top_share(counts),
        norm_ratio=_ratio(scalars["codebook_norm"], scalars["latent_norm"]),
        used_norm_ratio=_ratio(scalars["used_norm"], scalars["latent_norm"]),
        latent_rank=_rank(latent_covariance),
        codebook_rank=_rank(table_covariance),
        latent_variance=_finite(scalars["latent_variance"]),
        relative_error=_ratio(scalars["error"], scalars["latent_variance"]),
        finite_fraction=1 - not_finite / reading.tokens,
    )
    return reading, counts


def _unused(view: CodebookView, tokens: int, *, step: int, epoch: int | None, loss: float | None) -> Reading:
    """Return the reading of a codebook that no token used, with what is known without any."""
    return Reading(
        step=step,
        codebook=view.name,
        K=view.K,
        D=view.D,
        tokens=tokens,
        perplexity=0.0,
        ceiling=0.0,
        perplexity_ratio=0.0,
        usage=0.0,
        dead_fraction=1.0,
        top_share=0.0,
        epoch=epoch,
        group=view.group,
        level=view.level,
        commitment_weight=view.commitment.get() if view.commitment is not None else None,
        decay=view.decay.get() if view.decay is not None else None,
        loss=loss,
    )


@torch.no_grad()
def _fetch(
    window: Window, view: CodebookView, table: Tensor | None
) -> tuple[np.ndarray, dict[str, float], np.ndarray, np.ndarray]:
    """Compute the sums on the device and bring all of them over in one copy."""
    table = (view.codebook() if table is None else table).float()
    tallies = window.tallies
    if tallies is None:
        tallies = torch.zeros(view.K + 2, dtype=torch.int64, device=table.device)
    with torch.autocast(table.device.type, enabled=False):
        is_unit = view.metric == "cosine" and not view.decodes_raw
        decoded = functional.normalize(table, dim=-1) if is_unit else table
        scalars, latent_covariance = _latent_sums(window, decoded, view.metric)
        scalars[1:3] = _table_norms(decoded, tallies[: view.K])
        table_covariance = _covariance(decoded, torch.ones(len(table), dtype=torch.bool, device=table.device))
    numbers = torch.cat([scalars, latent_covariance.flatten(), table_covariance.flatten()])
    packed = torch.cat([tallies.view(torch.uint8), numbers.contiguous().view(torch.uint8)]).cpu().numpy()
    split = tallies.numel() * 8
    values = packed[split:].view(np.float32)
    first = len(_SCALARS) + latent_covariance.numel()
    return (
        packed[:split].view(np.int64).copy(),
        dict(zip(_SCALARS, values[: len(_SCALARS)].tolist(), strict=True)),
        values[len(_SCALARS) : first].reshape(latent_covariance.shape),
        values[first:].reshape(table_covariance.shape),
    )


def _latent_sums(window: Window, table: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return the scalars that need latents (the two about norms of codes are filled in later) and a covariance."""
    most = max(min(_SAMPLE, _DISTANCE_OPERATIONS // table.numel()), 16)
    latents, valid = window.spread(_SAMPLE)
    latents, valid = latents.to(table.device), valid.to(table.device)
    scalars = torch.full((len(_SCALARS),), math.nan, device=table.device)
    if len(latents) == 0:
        return scalars, torch.zeros(0, 0, device=table.device)
    finite = latents.isfinite().all(dim=-1)
    use = finite & valid
    clean = torch.where(use.unsqueeze(-1), latents, 0.0)
    number = use.sum().clamp(min=1)
    mean = clean.sum(dim=0) / number
    norms = torch.where(use, clean.norm(dim=-1), math.nan)
    squared = torch.where(use, (clean - mean).square().sum(dim=-1), 0.0)
    stride = -(-len(clean) // most)
    few, few_used = clean[::stride], use[::stride]
    distances = (few - table[assign(few, table, metric, backend="torch")]).square().sum(dim=-1)
    scalars[0] = norms.nanmedian()
    scalars[3] = squared.sum() / number
    scalars[4] = torch.where(few_used, distances, 0.0).sum() / few_used.sum().clamp(min=1)
    return scalars, _covariance(clean, use)


def _table_norms(table: Tensor, counts: Tensor) -> Tensor:
    norms = table.norm(dim=-1)
    return torch.stack([norms.median(), torch.where(counts > 0, norms, math.nan).nanmedian()])


def _covariance(rows: Tensor, use: Tensor) -> Tensor:
    """Return a matrix with the non-zero spectrum of the rows' covariance.

    It is (D, D), or made of at most 512 rows where D is wider than that.
    """
    weights = use.float().unsqueeze(-1)
    number = weights.sum().clamp(min=1)
    centred = (rows - (rows * weights).sum(dim=0) / number) * weights
    if rows.shape[1] <= _WIDEST_COVARIANCE:
        return centred.t() @ centred / number
    picked = torch.linspace(0, len(rows) - 1, min(len(rows), _WIDEST_COVARIANCE), device=rows.device).long()
    return centred[picked] @ centred[picked].t() / number


def _rank(covariance: np.ndarray) -> float | None:
    if covariance.size == 0 or not np.isfinite(covariance).all() or not np.trace(covariance) > 0:
        return None
    return effective_rank(covariance)


def _ratio(value: float, base: float) -> float | None:
    return value / base if math.isfinite(value) and math.isfinite(base) and base > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number_of(loss: Loss) -> float | None:
    """Return a loss as a number; waits for the device where it is a tensor there."""
    value = loss() if callable(loss) and not isinstance(loss, Tensor) else loss
    return None if value is None else float(value.detach() if isinstance(value, Tensor) else value)
