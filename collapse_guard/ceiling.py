"""The ceiling: the perplexity that codes in perfectly even use would show with as many tokens as there were.

A pure function in float64 on the host, exact through the marginal of one code.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

__all__ = ["perplexity_ceiling"]

_ASYMPTOTIC_FROM = 10_000  # tokens per code
_TAIL_EXPONENT = 60.0  # mass left out of the binomial sum: below 2 exp(-60), about 2e-26


@lru_cache(maxsize=4096)
def perplexity_ceiling(tokens: int, K: int) -> float:
    """Perplexity that perfectly uniform codes would show with this many tokens, from 1 to K.

    exp(E[H]), with H the entropy of counts drawn Multinomial(tokens, uniform over K). By symmetry and linearity only
    the marginal of one code matters: E[H] = ln n - (K/n) E[c ln c] with c ~ Binomial(n, 1/K). It is evaluated as
    ln K - E[x ln x], x = cK/n, which is the same and loses no digits when n is large.

    The sum runs over all c but those of total mass below 1e-18. Above 10,000 tokens per code the expansion in 1/tokens
    replaces it; there the two agree to better than 1e-12 (relative). Codes that are spread more evenly than chance
    would spread them read a little above this ceiling.

    Args:
        tokens: number of tokens counted, at least 1.
        K: number of codes, at least 1.

    Raises:
        ValueError: fewer than one token or code.

    >>> round(perplexity_ceiling(64, 512))
    59
    >>> perplexity_ceiling(1, 512)
    1.0
    """
    if tokens < 1 or K < 1:
        raise ValueError(f"expected at least 1 token and 1 code, got tokens={tokens} and K={K}")
    if tokens == 1 or K == 1:
        return 1.0
    excess = _excess_expanded(tokens, K) if tokens / K > _ASYMPTOTIC_FROM else _excess_summed(tokens, K)
    return min(max(math.exp(math.log(K) - excess), 1.0), float(K))


def _excess_summed(tokens: int, K: int) -> float:
    """E[x ln x] for x = cK/n, c ~ Binomial(n, 1/K), summed over the support around the mean.

    Outside mean +- t lies a mass below 2 exp(-a) when t^2 = 2 a (variance + t/3) (Bernstein's inequality). The
    probabilities come from the ratio of neighbours, p(c+1)/p(c) = (n-c) / ((c+1)(K-1)), summed in logarithms outwards
    from the mode and normalised: no factorials, hence no loss of digits for large n.
    """
    mean = tokens / K
    variance = mean * (1 - 1 / K)
    reach = _TAIL_EXPONENT / 3 + math.sqrt(_TAIL_EXPONENT**2 / 9 + 2 * _TAIL_EXPONENT * variance)
    low, high = max(0, math.floor(mean - reach)), min(tokens, math.ceil(mean + reach))
    count = np.arange(low, high + 1, dtype=np.float64)
    steps = np.log((tokens - count[:-1]) / ((count[:-1] + 1) * (K - 1)))
    mode = min(max((tokens + 1) // K, low), high) - low
    logarithm = np.zeros_like(count)
    logarithm[mode + 1 :] = np.cumsum(steps[mode:])
    logarithm[:mode] = -np.cumsum(steps[:mode][::-1])[::-1]
    probability = np.exp(logarithm)
    x = count / mean
    terms = x * np.log(np.where(x > 0, x, 1.0))
    return float(np.sum(probability * terms) / np.sum(probability))


def _excess_expanded(tokens: int, K: int) -> float:
    """The same for many tokens per code: Taylor's series of x ln x around 1 with the binomial's central moments.

    With m = n/K, p = 1/K and q = 1 - p: q/(2m) + q(1+p)/(12 m^2) + O(1/m^3).
    """
    mean, p = tokens / K, 1 / K
    return (1 - p) / (2 * mean) + (1 - p) * (1 + p) / (12 * mean**2)
