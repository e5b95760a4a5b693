"""Usage statistics against loops, exact fractions, and draws."""

from __future__ import annotations

import doctest
import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collapse_guard import statistics
from collapse_guard.ceiling import _excess_expanded, _excess_summed, perplexity_ceiling
from collapse_guard.statistics import (
    Values,
    dead_fraction,
    effective_rank,
    effective_ranks,
    entropy,
    perplexity,
    rest_ratio,
    top_share,
    usage,
)

COUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=60).filter(any)
close = partial(pytest.approx, rel=1e-9, abs=1e-12)


def entropy_by_loop(counts: list[int]) -> float:
    total = sum(counts)
    return math.fsum(count / total * (math.log(total) - math.log(count)) for count in counts if count)


def ceiling_by_fractions(tokens: int, K: int) -> float:
    """exp(ln n - (K/n) sum over c of P(c) c ln c), with every probability an exact fraction."""
    terms = []
    for c in range(2, tokens + 1):
        probability = Fraction(math.comb(tokens, c) * (K - 1) ** (tokens - c), K**tokens)
        terms.append(float(probability) * c * math.log(c))
    return math.exp(math.log(tokens) - K / tokens * math.fsum(terms))


@given(COUNTS)
def test_entropy_and_perplexity_equal_a_plain_loop(counts: list[int]) -> None:
    assert entropy(counts) == close(entropy_by_loop(counts))
    assert perplexity(counts) == close(math.exp(entropy_by_loop(counts)))


@given(COUNTS)
def test_shares_equal_a_plain_loop(counts: list[int]) -> None:
    assert usage(counts) == close(sum(count > 0 for count in counts) / len(counts))
    assert top_share(counts) == close(max(counts) / sum(counts))


@given(st.lists(st.integers(0, 200), min_size=2, max_size=40).filter(any))
def test_the_rest_is_what_is_not_on_the_most_used_code(counts: list[int]) -> None:
    others = sorted(counts)[:-1]
    tokens = sum(others)
    if not tokens:
        assert rest_ratio(counts) == 0
    else:
        evidence, ceiling = min(1.0, tokens / 128), perplexity_ceiling(tokens, len(others))
        assert rest_ratio(counts) == close(evidence * math.exp(entropy_by_loop(others)) / ceiling)
    assert rest_ratio([count + 10**6 * (at == counts.index(max(counts))) for at, count in enumerate(counts)]) == close(
        rest_ratio(counts)
    )  # however much of it there is


@pytest.mark.parametrize("silence", [0.5, 0.9, 0.95, 0.965])
def test_silence_leaves_the_rest_as_it_is(silence: float) -> None:
    draws = np.random.default_rng(0)
    spoken = draws.multinomial(round((1 - silence) * 4096), np.full(255, 1 / 255))
    even = rest_ratio([round(silence * 4096), *spoken])
    assert even > 0.85
    fallen = rest_ratio([round(silence * 4096), spoken.sum(), *[0] * 254])
    assert fallen < 0.05
    assert rest_ratio([4093, 1, 1, 1, *[0] * 252]) < 0.15  # some strays are no even use


@given(COUNTS, st.fractions(0, 1, max_denominator=64))
def test_dead_fraction_equals_a_count_in_exact_fractions(counts: list[int], dead_below: Fraction) -> None:
    bound = dead_below * sum(counts) / len(counts)
    if any(count == bound for count in counts if count):
        return  # on the bound itself the last bit of a float decides
    dead = sum(count == 0 or count < bound for count in counts)
    assert dead_fraction(counts, float(dead_below)) == close(dead / len(counts))


@given(COUNTS)
def test_perplexity_lies_between_one_and_the_number_of_used_codes(counts: list[int]) -> None:
    assert 1.0 <= perplexity(counts) <= sum(count > 0 for count in counts)


@given(COUNTS, st.randoms(use_true_random=False), st.integers(1, 1000))
def test_order_and_scale_of_counts_do_not_matter(counts: list[int], order: random.Random, factor: int) -> None:
    shuffled = order.sample(counts, len(counts))
    for value in (entropy, perplexity, usage, top_share, lambda c: dead_fraction(c, 0.1)):
        assert value(shuffled) == close(value(counts))
    scaled = [count * factor for count in counts]
    for value in (entropy, perplexity, usage, top_share):
        assert value(scaled) == close(value(counts))


@given(st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=50), min_size=1, max_size=4))
def test_counts_of_ranks_add_up_to_the_counts_of_all_their_tokens(ranks: list[list[int]]) -> None:
    """Adding count vectors is what the reduction over windows and ranks does."""
    added = np.sum([np.bincount(codes, minlength=16) for codes in ranks], axis=0)
    everything = [code for codes in ranks for code in codes]
    assert perplexity(added) == close(math.exp(entropy_by_loop([everything.count(c) for c in range(16)])))


@given(st.integers(1, 4096), st.integers(1, 10**6))
def test_uniform_counts_read_the_number_of_codes(K: int, each: int) -> None:
    assert perplexity(np.full(K, each)) == close(K)


@given(st.integers(1, 500), st.integers(0, 499), st.integers(1, 2**62))
def test_one_used_code_reads_exactly_one(K: int, code: int, tokens: int) -> None:
    counts = np.zeros(K, dtype=np.int64)
    counts[code % K] = tokens
    assert (perplexity(counts), entropy(counts), top_share(counts)) == (1.0, 0.0, 1.0)


def test_lists_arrays_and_tensors_give_the_same_number() -> None:
    counts = [5, 0, 3, 1]
    kinds: list[Values] = [
        counts,
        tuple(counts),
        np.array(counts),
        np.array(counts, dtype=np.int32),
        torch.tensor(counts),
    ]
    assert len({perplexity(kind) for kind in kinds}) == 1


@pytest.mark.parametrize("value", [entropy, perplexity, usage, top_share, lambda counts: dead_fraction(counts, 0.1)])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -1, 2], r"no negative count, got -1 for code 1"),
        ([], r"shape \(K,\) with K at least 1, got shape \(0,\)"),
        ([[1, 2]], r"got shape \(1, 2\)"),
        ([0, 0, 0], r"at least one token, got 3 zeros; skip a window without tokens"),
        ([1.0, math.nan], r"finite numbers, got NaN or Inf"),
    ],
)
def test_counts_that_mean_nothing_are_refused(value: Callable[[object], float], counts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        value(counts)


@pytest.mark.parametrize("dead_below", [-0.1, 1.1, math.nan])
def test_dead_below_is_a_fraction(dead_below: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1, got"):
        dead_fraction([1, 2], dead_below)


@pytest.mark.parametrize(
    ("tokens", "K"), [(2, 2), (3, 2), (64, 512), (64, 3), (257, 1000), (500, 7), (1000, 64), (30, 10**6)]
)
def test_the_ceiling_equals_the_sum_over_exact_fractions(tokens: int, K: int) -> None:
    assert perplexity_ceiling(tokens, K) == pytest.approx(ceiling_by_fractions(tokens, K), rel=1e-12)


@pytest.mark.parametrize(("tokens", "expected"), [(64, 59), (256, 188), (512, 290), (1024, 385), (4096, 481)])
def test_the_ceiling_of_512_codes_is_near_its_known_figures(tokens: int, expected: float) -> None:
    assert perplexity_ceiling(tokens, 512) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(("tokens", "K"), [(64, 512), (1000, 64), (20_000, 2), (5000, 300)])
def test_the_ceiling_is_what_uniform_draws_show(tokens: int, K: int) -> None:
    """Mean entropy of 2,000 draws, within five standard errors."""
    draws = np.random.default_rng(0).multinomial(tokens, np.full(K, 1 / K), size=2000)
    entropies = [entropy_by_loop(counts) for counts in draws.tolist()]
    error = float(np.std(entropies)) / math.sqrt(len(entropies))
    assert math.log(perplexity_ceiling(tokens, K)) == pytest.approx(float(np.mean(entropies)), abs=5 * error + 1e-12)


@pytest.mark.parametrize("K", [2, 3, 16, 512, 100_000])
def test_the_expansion_takes_over_from_the_sum_without_a_step(K: int) -> None:
    """At 10,000 tokens a code both forms agree to 1e-12, far below the 1e-6 that anyone could care about."""
    tokens = 10_000 * K
    summed, expanded = _excess_summed(tokens, K), _excess_expanded(tokens, K)
    assert summed == pytest.approx(expanded, abs=1e-12)
    assert perplexity_ceiling(tokens + K, K) == pytest.approx(perplexity_ceiling(tokens, K), rel=1e-8)


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_the_ceiling_lies_between_one_and_both_of_its_limits(tokens: int, K: int) -> None:
    assert 1.0 <= perplexity_ceiling(tokens, K) <= min(tokens, K)
    assert perplexity_ceiling(tokens, K) <= perplexity_ceiling(tokens + 1, K) * (1 + 1e-12)


@pytest.mark.parametrize(("tokens", "K"), [(0, 5), (5, 0), (-1, 2)])
def test_a_ceiling_needs_tokens_and_codes(tokens: int, K: int) -> None:
    with pytest.raises(ValueError, match=f"got tokens={tokens} and K={K}"):
        perplexity_ceiling(tokens, K)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=12).filter(lambda values: max(values) > 1e-3), st.integers(0, 99)
)
def test_effective_rank_depends_on_the_spectrum_alone(spectrum: list[float], seed: int) -> None:
    """The spectrum is known and the basis random; the reference is a loop over the spectrum."""
    D = len(spectrum)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))
    shares = [value / math.fsum(spectrum) for value in spectrum]
    expected = math.exp(-math.fsum(share * math.log(share) for share in shares if share > 0))
    assert effective_rank(basis @ np.diag(spectrum) @ basis.T) == pytest.approx(expected, rel=1e-9)


def test_effective_rank_counts_equal_directions() -> None:
    directions = np.random.default_rng(0).normal(size=(3, 8))
    basis, _ = np.linalg.qr(directions.T)
    assert effective_rank(7.5 * basis @ basis.T) == pytest.approx(3, rel=1e-9)
    assert effective_rank(torch.eye(5, dtype=torch.float32) * 1e-30) == pytest.approx(5, rel=1e-9)
    assert effective_rank([[2.0]]) == 1.0


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3)), r"square matrix of shape \(D, D\), got shape \(2, 3\)"),
        (np.zeros((0, 0)), r"got shape \(0, 0\)"),
        (np.zeros((2, 2)), "got only zeros; constant latents have no effective rank"),
        (np.array([[1.0, math.inf], [0.0, 1.0]]), "got NaN or Inf"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric matrix"),
        (np.array([[1.0, 0.0], [0.0, -2.0]]), "no negative eigenvalues, got -2"),
    ],
)
def test_what_is_no_covariance_is_refused(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effective_rank(matrix)


def test_effective_ranks_in_one_go_are_those_one_by_one() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 40, 6)) * np.array([1e-8, 1.0, 1e8])[:, None, None]
    matrices = [each.T @ each for each in rows]
    assert effective_ranks(matrices) == [effective_rank(each) for each in matrices]


@pytest.mark.parametrize("broken", [0.0, math.nan, math.inf])
def test_effective_ranks_in_one_go_are_refused_for_one_that_has_none(broken: float) -> None:
    with pytest.raises(ValueError, match="covariance: expected"):
        effective_ranks([np.eye(4), np.full((4, 4), broken)])


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(statistics)
    assert result.attempted > 0
    assert result.failed == 0
