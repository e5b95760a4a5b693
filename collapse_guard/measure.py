"""From sums to a reading: exact formulas, on the host.

Counts stay integers; perplexity, entropy and spectra are computed in float64. What is summed, and over which ranks, is
the matter of `sums` and `ranks`: equal sums make equal readings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from collapse_guard.policies import Reading

from .adapters import CodebookView
from .statistics import effective_ranks, figures_of_use
from .sums import Sums, sum_up
from .window import Window

__all__ = ["Loss", "number_of", "read_window", "reading_of"]

Loss: TypeAlias = "float | Tensor | Callable[[], float | Tensor | None] | None"
"""What a loop may name as its loss."""


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
    return reading_of(sum_up(window, view, table=table), view, step=step, epoch=epoch, loss=loss, dead_below=dead_below)


def reading_of(
    sums: Sums,
    view: CodebookView,
    *,
    step: int,
    epoch: int | None = None,
    loss: float | None = None,
    dead_below: float = 0.1,
    **known: Any,
) -> tuple[Reading, np.ndarray]:
    """Turn sums, of one rank or of all, into a reading and its (K,) counts; see `read_window`.

    Args:
        known: further fields of the reading, which no sums tell.
    """
    counts, tokens = sums.counts, sums.tokens
    figures = _figures_of(sums, counts, tokens, dead_below) if tokens else _UNUSED
    weight = view.commitment.get() if view.commitment is not None else None
    reading = Reading(
        step=step,
        codebook=view.name,
        K=len(counts),
        D=len(sums.mean),
        tokens=tokens,
        epoch=epoch,
        group=view.group,
        level=view.level,
        commitment_weight=weight,
        commitment_share=_commitment_share(weight, loss, len(sums.mean), figures),
        decay=view.decay.get() if view.decay is not None else None,
        loss=loss,
        **figures,
        **known,
    )
    return reading, counts


_UNUSED: dict[str, Any] = dict.fromkeys(
    ("perplexity", "ceiling", "perplexity_ratio", "usage", "top_share", "rest_ratio"), 0.0
)
_UNUSED["dead_fraction"] = 1.0


def _figures_of(sums: Sums, counts: np.ndarray, tokens: int, dead_below: float) -> dict[str, Any]:
    """Return what a reading says of a codebook that was used, by name."""
    latent_norm = _lower_median(sums.norms, of_known=True)
    number, compared = float(sums.number[0]), float(sums.error[1])
    latent_variance = float(sums.squares[0]) / number if number else math.nan
    error = float(sums.error[0]) / compared if compared else math.nan
    latent_rank, codebook_rank = _ranks([sums.covariance, sums.table_covariance])
    return {
        **figures_of_use(counts, dead_below),
        "norm_ratio": _ratio(_lower_median(sums.table_norms), latent_norm),
        "used_norm_ratio": _ratio(_lower_median(sums.table_norms[counts > 0], of_known=True), latent_norm),
        "latent_rank": latent_rank,
        "codebook_rank": codebook_rank,
        "latent_variance": _finite(latent_variance),
        "spread_ratio": _root(_ratio(_table_variance(sums), latent_variance)),
        "relative_error": _ratio(error, latent_variance),
        "quantization_error": _finite(error),
        "sampling_ratio": _ratio(float(sums.drawn[0]), float(sums.drawn[1])),
        "task_gradient": _root(_ratio(float(sums.task.min()), float(sums.task[1]))),
        "finite_fraction": 1 - int(sums.tallies[-1]) / tokens,
    }


def _table_variance(sums: Sums) -> float:
    """Return E|e - mean e|^2 of the codes; of those that stand for all, where the matrix is not made of directions."""
    K, D, side = len(sums.table_norms), len(sums.mean), len(sums.table_covariance)
    return float(sums.table_covariance.trace(dtype=np.float64)) * (K / side if side != D else 1.0)


def _commitment_share(weight: float | None, loss: float | None, D: int, figures: Mapping[str, Any]) -> float | None:
    relative, error = figures.get("relative_error"), figures.get("quantization_error")
    if weight is None or loss is None or relative is None or error is None or relative > 1:
        return None
    return _ratio(weight * error / D, loss)


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)


def _lower_median(values: np.ndarray, *, of_known: bool = False) -> float:
    """Return the median as torch does: of an even number of values the lower one; NaN of none.

    Args:
        values: (n,) numbers. of_known: whether NaN among them is left out; else the median is NaN then.
    """
    ordered = np.sort(values)  # NaN last
    known = int(ordered.searchsorted(np.nan))
    return float(ordered[(known - 1) // 2]) if known and (of_known or known == len(values)) else math.nan


def _ranks(covariances: Sequence[np.ndarray]) -> list[float | None]:
    """Return their effective ranks, in one go where all are of a size; `None` for one that has none."""
    try:
        return [*effective_ranks(covariances)]
    except ValueError:  # nothing was there, it is not finite, it has no spread, or they differ in size
        return [None] if len(covariances) == 1 else [rank for each in covariances for rank in _ranks([each])]


def _ratio(value: float, base: float) -> float | None:
    return value / base if math.isfinite(value) and math.isfinite(base) and base > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number_of(loss: Loss) -> float | None:
    """Return a loss as a number; waits for the device where it is a tensor there."""
    value = loss() if callable(loss) and not isinstance(loss, Tensor) else loss
    return None if value is None else float(value.detach() if isinstance(value, Tensor) else value)
