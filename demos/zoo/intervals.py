"""Intervals over pairs of scenario and seed: how sure a mean or a median of them is, by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "mean_of_pairs", "median_of_pairs"]

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


def mean_of_pairs(values: Mapping[tuple[str, int], float]) -> Interval | None:
    """Return the mean of all values.

    Scenarios and seeds are both drawn anew, each with all its values: those of one scenario are no independent
    evidence, as little as those of one seed (Owen, "The pigeonhole bootstrap", 2007).

    Args:
        values: by scenario and seed.

    Returns:
        `None` where there is no value at all.
    """
    return _interval(values, np.mean)


def median_of_pairs(values: Mapping[tuple[str, int], float]) -> Interval | None:
    """Return the median of all values, infinite ones among them, with an interval as that of `mean_of_pairs`."""
    return _interval(values, np.median)


def _interval(
    values: Mapping[tuple[str, int], float], statistic: Callable[[np.ndarray], np.floating]
) -> Interval | None:
    if not values:
        return None
    scenarios, seeds = sorted({name for name, _ in values}), sorted({seed for _, seed in values})
    table = np.array([[values.get((name, seed), np.nan) for seed in seeds] for name in scenarios], dtype=np.float64)
    value = float(statistic(table[~np.isnan(table)]))
    if len(seeds) < 2:
        return Interval(value, value, value, len(seeds))
    random = np.random.default_rng(0)
    found = []
    for _ in range(_DRAWS):
        rows, columns = (random.integers(length, size=length) for length in table.shape)
        drawn = table[rows][:, columns]
        if not np.isnan(drawn).all():
            found.append(float(statistic(drawn[~np.isnan(drawn)])))
    low, high = np.percentile(found, [2.5, 97.5], method="nearest")  # values that were drawn: some may be infinite
    return Interval(value, float(low), float(high), len(seeds))
