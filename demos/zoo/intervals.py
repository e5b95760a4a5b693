"""Intervals over paired seeds: how sure a mean or a median of few scenarios is, by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "mean_over_seeds", "median_over_scenarios"]

_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and its 95 % interval.

    Attributes:
        value: of all that was measured.
        low, high: by the percentiles of the bootstrap; the value itself where there are fewer than two seeds.
        seeds: that it rests on.
    """

    value: float
    low: float
    high: float
    seeds: int


def mean_over_seeds(by_seed: Sequence[Sequence[float]]) -> Interval | None:
    """Return the mean of all values; whole seeds are drawn anew, since what they share is no independent evidence.

    Args:
        by_seed: for each seed the values of its pairs; those without any are left out.

    Returns:
        `None` where there is no value at all.
    """
    return _interval(by_seed, np.mean)


def median_over_scenarios(by_seed: Sequence[Sequence[float]]) -> Interval | None:
    """Return the median of all values, with whole seeds drawn anew; see `mean_over_seeds`."""
    return _interval(by_seed, np.median)


def _interval(by_seed: Sequence[Sequence[float]], statistic: np.ufunc | object) -> Interval | None:
    from scipy.stats import bootstrap

    filled = [np.asarray(values, dtype=np.float64) for values in by_seed if len(values)]
    if not filled:
        return None

    def of_seeds(rows: np.ndarray) -> float:
        return float(statistic(np.concatenate([filled[int(row)] for row in rows])))  # type: ignore[operator]

    rows = np.arange(len(filled))
    value = of_seeds(rows)
    if len(filled) < 2 or len({tuple(np.sort(values)) for values in filled}) == 1:
        return Interval(value, value, value, len(filled))
    found = bootstrap(
        (rows,), of_seeds, n_resamples=_DRAWS, method="percentile", vectorized=False, rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high), len(filled))
