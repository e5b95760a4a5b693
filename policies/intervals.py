"""Conditions as sets of intervals: whether any reading can satisfy them at all.

A condition is written as alternatives (disjunctive normal form), each of which bounds every field that it names. Fields
are taken as independent of each other, so a condition that is said never to hold never does, while one that cannot
hold for a subtler reason goes unnoticed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TypeAlias

from .condition import Comparison, Condition
from .past import HIGHEST_IS_BEST, LOWEST_IS_BEST

__all__ = ["Ranges", "both", "even_use", "in_range", "possible", "ranges_of", "share_room"]

Ranges: TypeAlias = Mapping[str, tuple[float, float]]
"""Least and largest value by what stands on the left of a comparison; all values where it is not in it."""
Alternative: TypeAlias = tuple[Comparison, ...]

_MOST_ALTERNATIVES = 256
_FROM_0_TO_1 = ("finite_fraction", "decay", "frozen", "unmoved", "reshaped", "task_gradient")
_OF_LATENTS = (
    "norm_ratio",
    "used_norm_ratio",
    "latent_variance",
    "relative_error",
    "quantization_error",
    "spread_ratio",
)
_OF_THE_RUN = ("eval_to_train", "commitment_share", "rewrites", "moment_ratio", "replacement_share", "sampling_ratio")
_FROM_0 = (*_OF_LATENTS, *_OF_THE_RUN, "epoch")
_FROM_1 = ("D", "latent_rank", "codebook_rank")
_MOST_SPANS = 101  # as many spans of a trend as the language has
_SUMMED_UP_TO = 1000


def ranges_of(codes: int | None, *, min_tokens: int, first_step: int) -> Ranges:
    """Return the least and the largest value of each field in a reading that gives a verdict.

    Args:
        codes: K, or `None` for any. min_tokens: tokens of the smallest reading. first_step: of the first reading.
    """
    most, least_share = (float(codes), 1 / codes) if codes else (math.inf, 0.0)
    ranges = dict.fromkeys(_FROM_0_TO_1, (0.0, 1.0)) | dict.fromkeys(_FROM_0, (0.0, math.inf))
    ranges |= dict.fromkeys(_FROM_1, (1.0, math.inf)) | dict.fromkeys(("perplexity", "ceiling"), (1.0, most))
    ranges |= dict.fromkeys(("usage", "top_share"), (least_share, 1.0)) | {
        "dead_fraction": (0.0, (codes - 1) / codes if codes else 1.0),
        "rest_ratio": (0.0, 2.0),
        "perplexity_ratio": (least_share, 2.0),  # spread more evenly than chance would, it exceeds 1, never 1.8
        "K": (most, most) if codes else (1.0, math.inf),
        "tokens": (float(min_tokens), math.inf),
        "step": (float(first_step), math.inf),
    }
    for name in (*HIGHEST_IS_BEST, *LOWEST_IS_BEST):
        ranges[f"rel({name})"] = (0.0, 1.0) if name in HIGHEST_IS_BEST else (1.0, math.inf)
    for name in [name for name, (least, _) in ranges.items() if least >= 0 and "(" not in name]:
        for over in range(2, _MOST_SPANS):
            steepest = 6 / (over + 1)  # of values that are 0 but for the last
            ranges[f"trend({name}, over: {over} readings)"] = (-steepest, steepest)
    return ranges


def even_use(codes: int, tokens: int, dead_below: float) -> Ranges:
    """Return what so many tokens show of codes that are all used alike, as far as it depends on the use alone."""
    each = tokens / codes  # tokens expected on a code
    most = float(min(codes, tokens))
    unseen, dead = _below(1, tokens, codes), _below(max(1, math.ceil(dead_below * each)), tokens, codes)
    return {
        "perplexity": (most / 2, most),  # about 0.56 of it at the least, where there is one token a code
        "perplexity_ratio": (0.9, 1.1),
        "rel(perplexity_ratio)": (0.8, 1.0),  # it was never much better
        "rest_ratio": (0.85 if tokens - tokens / codes >= 160 and codes > 2 else 0.0, 1.15),
        "usage": (1 - unseen, 1 - unseen),
        "dead_fraction": (dead, dead),
        "top_share": (1 / codes, min(1.0, (each + 6 * math.sqrt(each) + 6) / tokens)),
        "tokens": (float(tokens), float(tokens)),
        "K": (float(codes), float(codes)),
    }


def in_range(comparison: Comparison, ranges: Ranges) -> bool:
    """Whether a comparison alone leaves its field any value."""
    return _leaves_room([comparison], ranges)


def _below(count: int, tokens: int, codes: int) -> float:
    """Return the share of codes that get less than a count, at most their mean, of tokens drawn evenly."""
    mean, share = tokens / codes, 1 / codes
    if codes == 1:
        return 0.0
    if mean > _SUMMED_UP_TO:
        return math.erfc((mean - count) / math.sqrt(2 * mean)) / 2
    used, unused = math.log(share), math.log1p(-share)
    logs = (
        _choices(tokens, number) + number * used + (tokens - number) * unused
        for number in range(min(count, tokens + 1))
    )
    return min(1.0, sum(map(math.exp, logs)))


def _choices(tokens: int, number: int) -> float:
    """Return the logarithm of how many ways there are to choose a number of tokens."""
    return math.lgamma(tokens + 1) - math.lgamma(number + 1) - math.lgamma(tokens - number + 1)


def possible(condition: Condition, ranges: Ranges) -> bool:
    """Whether a reading within the ranges can satisfy a condition; true where that is too much to find out."""
    alternatives = _alternatives(condition)
    return alternatives is None or any(_fits(alternative, ranges) for alternative in alternatives)


def both(first: Condition, second: Condition) -> Condition:
    """Return the condition that holds where two others do."""
    return Condition((first, second))


def _alternatives(condition: Condition | Comparison) -> list[Alternative] | None:
    """Return the disjunctive normal form; `None` if it is too long."""
    if isinstance(condition, Comparison):
        return [(condition,)]
    parts = [_alternatives(part) for part in condition.parts]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if condition.any:
        together = [alternative for part in known for alternative in part]
        return together if len(together) <= _MOST_ALTERNATIVES else None
    if math.prod(map(len, known)) > _MOST_ALTERNATIVES:
        return None
    return [tuple(itertools.chain.from_iterable(choice)) for choice in itertools.product(*known)]


def _fits(alternative: Alternative, ranges: Ranges) -> bool:
    """Whether one reading can satisfy all comparisons: field by field, an interval that is not empty."""
    return all(
        _leaves_room([part for part in alternative if part.subject == subject], ranges)
        for subject in {part.subject for part in alternative}
    )


def _leaves_room(comparisons: list[Comparison], ranges: Ranges) -> bool:
    """Whether comparisons of one field leave it any value of its range."""
    least, most = ranges.get(comparisons[0].subject, (-math.inf, math.inf))
    # Between two neighbouring thresholds all values are alike: each threshold, and a point in each gap, tells all.
    edges = sorted({least, most, *(part.threshold for part in comparisons)} - {math.inf, -math.inf}) or [0.0]
    gaps = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    points = [point for point in (edges[0] - 1, *edges, *gaps, edges[-1] + 1) if least <= point <= most]
    return any(all(_holds(part, point) for part in comparisons) for point in points)


def _holds(comparison: Comparison, value: float) -> bool:
    threshold = comparison.threshold
    return {
        "<": value < threshold,
        "<=": value <= threshold,
        ">": value > threshold,
        ">=": value >= threshold,
        "==": value == threshold,
        "!=": value != threshold,
    }[comparison.sign]


def share_room(first: Condition, second: Condition, ranges: Ranges) -> bool:
    """Whether some alternatives of two conditions speak of the same field and leave room to both."""
    ones, others = _alternatives(first), _alternatives(second)
    if ones is None or others is None:
        return False
    return any(
        {part.subject for part in one} & {part.subject for part in other} and _fits((*one, *other), ranges)
        for one in ones
        for other in others
    )
