"""From code counts to numbers: how much of a codebook is in use, and how much could be.

Pure functions in float64 on the host. Counts are additive: count per window and per rank, add the vectors, and only
then ask for a number (a mean of perplexities is not a perplexity). Nothing here touches modules, devices or ranks, and
nothing is added inside a logarithm, so one used code reads exactly 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from .ceiling import perplexity_ceiling

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "dead_fraction",
    "effective_rank",
    "effective_ranks",
    "entropy",
    "figures_of_use",
    "perplexity",
    "rest_ratio",
    "top_share",
    "usage",
]

#: What `numpy.asarray` takes: an array, a nested sequence, a tensor on the CPU.
Values: TypeAlias = "npt.ArrayLike | Tensor"
Array: TypeAlias = npt.NDArray[np.float64]

_ENOUGH = 128  # tokens on other codes than the most used one to say anything of


def entropy(counts: Values) -> float:
    """Entropy of the code distribution in nats, from 0 to ln K.

    H = -sum p ln p over the codes with p = count / total > 0 (Shannon 1948, section 6).

    Args:
        counts: (K,) non-negative integers, not all zero.

    Raises:
        ValueError: no counts, a negative or non-finite count, only zeros, or more than one axis.

    >>> entropy([7, 0, 0])
    0.0
    >>> round(entropy([5, 5]), 6)  # ln 2
    0.693147
    """
    shares = _shares(counts)
    used = shares[shares > 0]
    return _entropy_of(used)


def perplexity(counts: Values) -> float:
    """Effective number of codes in use: exp of the entropy in nats, from 1 to the number of used codes.

    Args:
        counts: (K,) non-negative integers, not all zero.

    Raises:
        ValueError: as for `entropy`.

    >>> perplexity([0, 9, 0, 0])
    1.0
    >>> round(perplexity([5, 5, 0, 0]), 9)
    2.0
    """
    values = _checked(counts)
    return _perplexity_of(values[values > 0], float(values.sum()))


def usage(counts: Values) -> float:
    """Share of codes with a count above zero, above 0 and at most 1.

    Args:
        counts: (K,) non-negative integers, not all zero.

    Raises:
        ValueError: as for `entropy`.

    >>> usage([5, 5, 0, 0])
    0.5
    """
    values = _checked(counts)
    return float(np.count_nonzero(values) / values.size)


def top_share(counts: Values) -> float:
    """Largest share of the tokens that falls on one code, from 1/K to 1.

    Args:
        counts: (K,) non-negative integers, not all zero.

    Raises:
        ValueError: as for `entropy`.

    >>> top_share([6, 2, 0, 0])
    0.75
    """
    values = _checked(counts)
    return float(values.max() / values.sum())


def rest_ratio(counts: Values) -> float:
    """How evenly the tokens that are not on the most used code share out the other codes, from 0 to about 1.

    Their perplexity over the ceiling of as many tokens among K - 1 codes: near 1 where one code has what is always the
    same, such as silence or padding, and the others share what differs; near 0 where few codes have all there is. Of
    n < 128 such tokens n/128 of that: some strays are no even use.

    Args:
        counts: (K,) non-negative integers, not all zero.

    Returns:
        The ratio; 0 where all tokens are on one code.

    Raises:
        ValueError: as for `entropy`.

    >>> rest_ratio([9000, 500, 500]) > 0.99
    True
    >>> rest_ratio([9000, 1000, 0]) < 0.51
    True
    """
    values = _checked(counts)
    others = np.delete(values, int(values.argmax()))
    return _rest_ratio_of(others[others > 0], int(others.sum()), values.size)


def dead_fraction(counts: Values, dead_below: float) -> float:
    """Share of codes used less than `dead_below` times the uniform share 1/K, from 0 to below 1.

    A code without any token is dead whatever the bound; `dead_below=0` therefore counts the unused codes.

    Args:
        counts: (K,) non-negative integers, not all zero.
        dead_below: a fraction of the uniform share, from 0 to 1.

    Raises:
        ValueError: as for `entropy`, or `dead_below` outside [0, 1].

    >>> dead_fraction([96, 2, 2, 0], dead_below=0.1)  # the uniform share is 25 tokens, a tenth of it 2.5
    0.75
    >>> dead_fraction([96, 2, 2, 0], dead_below=0)
    0.25
    """
    if not 0 <= dead_below <= 1:
        raise ValueError(f"dead_below: expected a fraction of the uniform share, from 0 to 1, got {dead_below}")
    values = _checked(counts)
    bound = dead_below * float(values.sum()) / values.size
    return float(np.count_nonzero((values == 0) | (values < bound)) / values.size)


def figures_of_use(counts: Values, dead_below: float) -> dict[str, float]:
    """Return what a reading says of counts, by name: the functions above, and `perplexity_ceiling`, in one go.

    Counts are looked through once: unused codes add to no sum, and sums of integers are the same in any order.

    Args:
        counts: (K,) non-negative integers, not all zero.
        dead_below: a fraction of the uniform share, from 0 to 1.

    Raises:
        ValueError: as for `entropy`.

    >>> figures = figures_of_use([96, 2, 2, 0], dead_below=0.1)
    >>> figures["usage"], figures["dead_fraction"], figures["top_share"]
    (0.75, 0.75, 0.96)
    """
    values = _checked(counts)
    K, used = values.size, values[values > 0]
    total, top = float(used.sum()), int(used.argmax())
    value, ceiling = _perplexity_of(used, total), perplexity_ceiling(int(total), K)
    most = float(used[top])
    others, tokens = np.concatenate((used[:top], used[top + 1 :])), int(total - most)
    return {
        "perplexity": value,
        "ceiling": ceiling,
        "perplexity_ratio": value / ceiling,
        "usage": used.size / K,
        "dead_fraction": (K - used.size + int(np.count_nonzero(used < dead_below * total / K))) / K,
        "top_share": most / total,
        "rest_ratio": _rest_ratio_of(others, tokens, K),
    }


def effective_rank(covariance: Values) -> float:
    """Number of directions that a covariance really spreads over, from 1 to D.

    exp of the entropy of the eigenvalues, normalised to sum to 1 (Roy and Vetterli, "The effective rank: a measure of
    effective dimensionality", EUSIPCO 2007; the singular values of a covariance are its eigenvalues).

    Args:
        covariance: (D, D) symmetric, finite, without negative eigenvalues beyond rounding, not all zero.

    Raises:
        ValueError: the matrix is none of that. One with no spread at all has no rank: ask for its trace first.

    >>> effective_rank([[4.0, 0.0], [0.0, 0.0]])
    1.0
    >>> round(effective_rank([[1.0, 0.0], [0.0, 1.0]]), 9)
    2.0
    """
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"covariance: expected a square matrix of shape (D, D), got shape {matrix.shape}")
    return effective_ranks(matrix[np.newaxis])[0]


def effective_ranks(covariances: Sequence[Values] | Array) -> list[float]:
    """Return `effective_rank` of several covariances of one size, in one go.

    Args:
        covariances: (n, D, D), each as for `effective_rank`.

    Raises:
        ValueError: as for `effective_rank`, of any of them, or they differ in size.

    >>> effective_ranks([[[4.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 3.0]]])
    [1.0, 2.0]
    """
    matrices = np.asarray(covariances, dtype=np.float64)
    largest = np.abs(matrices).max(axis=(1, 2), keepdims=True)  # NaN where there is one
    if not np.isfinite(largest).all():
        raise ValueError("covariance: expected finite entries, got NaN or Inf; leave non-finite latents out of it")
    if not largest.all():
        raise ValueError("covariance: expected some spread, got only zeros; constant latents have no effective rank")
    matrices = matrices / largest
    turned = matrices.transpose(0, 2, 1)
    if np.abs(matrices - turned).max() > 1e-4:
        raise ValueError("covariance: expected a symmetric matrix, got one that differs from its transpose")
    spectra = np.linalg.eigvalsh((matrices + turned) / 2)
    for spectrum, scale in zip(spectra, largest.ravel(), strict=True):
        if spectrum[0] < -1e-4 * spectrum[-1]:
            raise ValueError(f"covariance: expected no negative eigenvalues, got {spectrum[0] * scale:.3g}")
    return [_rank_of(spectrum[spectrum > 0]) for spectrum in spectra]


def _checked(counts: Values) -> Array:
    """Return counts as a (K,) float64 array, or say what is wrong with them."""
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"counts: expected one count per code, shape (K,) with K at least 1, got shape {values.shape}")
    least, most = values.min(), values.max()  # NaN where there is one
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError("counts: expected finite numbers, got NaN or Inf")
    if least < 0:
        raise ValueError(f"counts: expected no negative count, got {least:g} for code {values.argmin()}")
    if most == 0:
        raise ValueError(f"counts: expected at least one token, got {values.size} zeros; skip a window without tokens")
    return values


def _shares(counts: Values) -> Array:
    values = _checked(counts)
    return np.asarray(values / values.sum(), dtype=np.float64)


def _perplexity_of(used: Array, total: float) -> float:
    """Perplexity of counts that are all above zero, and their sum."""
    return min(math.exp(_entropy_of(used / total)), float(used.size))


def _rest_ratio_of(others: Array, tokens: int, K: int) -> float:
    """Return `rest_ratio` from the counts above zero of all but the most used of K codes, and their sum."""
    if not tokens:
        return 0.0
    return min(1.0, tokens / _ENOUGH) * _perplexity_of(others, tokens) / perplexity_ceiling(tokens, K - 1)


def _rank_of(positive: Array) -> float:
    """Effective rank from the eigenvalues above zero."""
    return min(math.exp(_entropy_of(positive / positive.sum())), float(positive.size))


def _entropy_of(shares: Array) -> float:
    """Entropy in nats of positive shares that sum to 1; rounding never takes it below 0."""
    return max(0.0, -float(np.sum(shares * np.log(shares))))
