"""Warnings: policies that are valid and probably not meant.

Pure: a policy goes in, findings come out, each with the place it is about. Conditions are compared as sets of
intervals: written as alternatives (disjunctive normal form), each of which bounds every field it names. Fields are
taken as independent of each other, so a condition that is said never to hold never does, while one that cannot hold
for a subtler reason goes unnoticed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .condition import Comparison, Condition
from .document import read_document
from .duration import Duration
from .errors import Place
from .schema import Policy, Rule

__all__ = ["Finding", "lint_policy", "position_in"]

_SHARES = ("usage", "dead_fraction", "top_share", "finite_fraction", "decay")
_POSITIVE = ("perplexity_ratio", "norm_ratio", "used_norm_ratio", "latent_variance", "relative_error")
_LAST_RESORTS = {"alert", "fallback_tokenizer", "save_checkpoint", "stop_training", "substitute"}
_MOST_ALTERNATIVES = 256
_UNSEEN = 0.05

Ranges = Mapping[str, tuple[float, float]]
Alternative = tuple[Comparison, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One warning.

    Attributes:
        kind: a short name, stable, for programs: `never-fires`.
        rule: the rule it is about; empty for the whole policy.
        place: keys below the rule, or below the policy.
        message: what will happen, in a sentence. hint: the next move.
    """

    kind: str
    rule: str
    place: Place
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{f'rule {self.rule!r}: ' if self.rule else ''}{self.message} {self.hint} [{self.kind}]"


def lint_policy(policy: Policy, codes: int | None = None) -> list[Finding]:
    """Return what is probably not meant, rule by rule.

    Args:
        policy: a checked policy.
        codes: the number of codes that it is for, K; without it only what holds for any K is found.
    """
    ranges = _ranges(policy, codes)
    found: list[Finding] = []
    for rule in policy.rules:
        found += _of_conditions(rule, ranges, codes)
        found += _of_verification(rule, policy)
        found += _of_ladder(rule)
        found += _of_others(rule, policy, ranges)
    return [*found, *_of_tokens(policy, codes)]


def position_in(text: str, finding: Finding) -> tuple[int, int] | tuple[None, None]:
    """Return line and column, from 1, of what a finding is about in the text of its policy."""
    document = read_document(text, "")
    place = finding.place
    if finding.rule:
        rules = document.data.get("rules", []) if isinstance(document.data, Mapping) else []
        names = [rule.get("name") if isinstance(rule, Mapping) else None for rule in rules]
        if finding.rule not in names:
            return None, None
        place = ("rules", names.index(finding.rule), *place)
    *_, line, column = document.position(place)
    return (line, column) if line is not None and column is not None else (None, None)


def _of_conditions(rule: Rule, ranges: Ranges, codes: int | None) -> Iterator[Finding]:
    """Thresholds out of reach, and a `clear` that is met where the rule fires."""
    with_codes = f" with {codes} codes" if codes else ""
    if not _possible(rule.when, ranges):
        message = f"`{rule.when}` never holds{with_codes}: the rule cannot fire."
        yield Finding(kind="never-fires", rule=rule.name, place=("when",), message=message, hint="Move the threshold.")
        return
    if not _possible(rule.when.negated(), ranges):
        message = f"`{rule.when}` always holds{with_codes}: the rule fires on every run."
        hint = "Move the threshold, or compare a share such as `perplexity_ratio`."
        yield Finding(kind="always-fires", rule=rule.name, place=("when",), message=message, hint=hint)
        return
    if rule.clear.when is None:
        return
    place = ("clear", "when")
    if not _possible(_both(rule.clear.when, rule.when.negated()), ranges):
        message = f"`{rule.clear.when}` never holds{with_codes} where the rule does not fire: it is never over."
        hint = "Move the threshold of `clear`."
        yield Finding(kind="never-clears", rule=rule.name, place=place, message=message, hint=hint)
    elif _clears_where_it_fires(rule.when, rule.clear.when, ranges):
        message = (
            f"`{rule.clear.when}` can hold while `{rule.when}` still does; such a reading does not count as clear."
        )
        hint = "Let `clear` begin where `when` ends, or beyond."
        yield Finding(kind="clears-where-it-fires", rule=rule.name, place=place, message=message, hint=hint)


def _of_verification(rule: Rule, policy: Policy) -> Iterator[Finding]:
    """Deadlines that come before success can be seen."""
    for index, rung in enumerate(rule.ladder):
        if rung.within is not None:
            yield from _too_short(rung.within, rule, policy, ("ladder", index, "within"))
    if any(rung.within is None for rung in rule.ladder):
        yield from _too_short(rule.verify.within, rule, policy, ("verify", "within"))


def _too_short(within: Duration, rule: Rule, policy: Policy, place: Place) -> Iterator[Finding]:
    settle, streak, every = policy.sample.settle, rule.clear_for, policy.sample.when_suspect_steps
    if within.unit == "epochs":
        return
    needed = streak if within.unit == "readings" else (settle + streak) * every
    if within.count >= needed:
        return
    passing = f"{settle} to settle and " if settle and within.unit == "steps" else ""
    cadence = f", {every} steps apart" if within.unit == "steps" else ""
    message = f"{within} are over before success can be seen: it takes {passing}{streak} clear readings{cadence}."
    hint = f"Write at least `{needed} {within.unit}`, or a shorter `clear.for`."
    yield Finding(kind="short-verification", rule=rule.name, place=place, message=message, hint=hint)


def _of_ladder(rule: Rule) -> Iterator[Finding]:
    """Ladders that end with something that may fail, and with nobody told what then."""
    if not rule.ladder or rule.severity != "critical" or rule.on_exhausted != "alert":
        return
    last = rule.ladder[-1].action
    if last not in _LAST_RESORTS:
        message = f"the ladder has no end: when {last} fails, a critical rule does nothing more."
        hint = "Add a last resort, such as `fallback_tokenizer` or `alert`."
        place = ("ladder", len(rule.ladder) - 1)
        yield Finding(kind="no-last-resort", rule=rule.name, place=place, message=message, hint=hint)


def _of_others(rule: Rule, policy: Policy, ranges: Ranges) -> Iterator[Finding]:
    """Rules that another one keeps from firing, or doubles."""
    for other in policy.rules:
        if other is rule or not _possible(rule.when, ranges) or not _meet(rule, other):
            continue
        if _possible(_both(rule.when, other.when.negated()), ranges) or other.for_ > rule.for_:
            continue
        if rule.name in other.inhibits:
            message = f"it can never fire: where it does, {other.name} has fired already and keeps it quiet."
            hint = f"Remove one of the two, or turn `inhibits` of {other.name} round."
            yield Finding(kind="shadowed", rule=rule.name, place=("when",), message=message, hint=hint)
        elif other.name not in rule.inhibits and (other.when != rule.when or _is_before(rule, other, policy)):
            message = f"where it fires, {other.name} fires too: one trouble, two alerts and two ladders."
            hint = f"Write `inhibits: [{other.name}]` in the worse of the two."
            yield Finding(kind="doubled", rule=rule.name, place=("when",), message=message, hint=hint)


def _of_tokens(policy: Policy, codes: int | None) -> Iterator[Finding]:
    """Readings too small to tell a dead code from one that was not drawn."""
    if codes is None:
        return
    tokens = policy.sample.min_tokens
    unseen = (1 - 1 / codes) ** tokens  # by a code whose share is the uniform one
    if unseen <= _UNSEEN or not any(map(_looks_at_single_codes, policy.rules)):
        return
    message = (
        f"a reading of {tokens} tokens shows {unseen:.0%} of {codes} codes as dead even if all are used alike, and "
        "rules here look at usage or reset dead codes."
    )
    hint = f"Write `min_tokens: {math.ceil(-math.log(_UNSEEN) * codes)}` or more."
    yield Finding(kind="few-tokens", rule="", place=("sample", "min_tokens"), message=message, hint=hint)


def _looks_at_single_codes(rule: Rule) -> bool:
    compared = {_subject(part) for part in _comparisons(rule.when)} | {
        _subject(part) for part in _comparisons(rule.clear_when)
    }
    resets = any(getattr(rung.params, "scope", None) == "dead" for rung in rule.ladder)
    return resets or not compared.isdisjoint({"usage", "dead_fraction"})


def _ranges(policy: Policy, codes: int | None) -> Ranges:
    """Return the least and the largest value of each field in a reading that gives a verdict."""
    most = float(codes) if codes else math.inf
    known = dict.fromkeys(_SHARES, (0.0, 1.0)) | dict.fromkeys(_POSITIVE, (0.0, math.inf))
    return known | {
        "perplexity": (1.0, most),
        "ceiling": (1.0, most),
        "K": (most, most) if codes else (1.0, math.inf),
        "tokens": (float(policy.sample.min_tokens), math.inf),
        "step": (float(max(policy.warmup_steps, 1)), math.inf),
    }


def _possible(condition: Condition, ranges: Ranges) -> bool:
    """Whether a reading within the ranges can satisfy a condition; true where that is too much to find out."""
    alternatives = _alternatives(condition)
    return alternatives is None or any(_fits(alternative, ranges) for alternative in alternatives)


def _both(first: Condition, second: Condition) -> Condition:
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
        return (
            [alternative for part in known for alternative in part]
            if sum(map(len, known)) <= _MOST_ALTERNATIVES
            else None
        )
    if math.prod(map(len, known)) > _MOST_ALTERNATIVES:
        return None
    return [tuple(itertools.chain.from_iterable(choice)) for choice in itertools.product(*known)]


def _fits(alternative: Alternative, ranges: Ranges) -> bool:
    """Whether one reading can satisfy all comparisons: field by field, an interval that is not empty."""
    return all(
        _leaves_room([part for part in alternative if _subject(part) == subject], ranges)
        for subject in {_subject(part) for part in alternative}
    )


def _leaves_room(comparisons: list[Comparison], ranges: Ranges) -> bool:
    """Whether comparisons of one field leave it any value of its range."""
    least, most = ranges.get(_subject(comparisons[0]), (-math.inf, math.inf))
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


def _clears_where_it_fires(when: Condition, clear: Condition, ranges: Ranges) -> bool:
    """Whether some alternative of `clear` speaks of a field of `when` and leaves room to both."""
    fires, clears = _alternatives(when), _alternatives(clear)
    if fires is None or clears is None:
        return False
    return any(
        {_subject(part) for part in one} & {_subject(part) for part in other} and _fits((*one, *other), ranges)
        for one in fires
        for other in clears
    )


def _comparisons(condition: Condition) -> Iterator[Comparison]:
    for part in condition.parts:
        if isinstance(part, Condition):
            yield from _comparisons(part)
        else:
            yield part


def _subject(comparison: Comparison) -> str:
    """Return what is compared, as it is written on the left."""
    return str(comparison).partition(f" {comparison.sign} ")[0]


def _meet(rule: Rule, other: Rule) -> bool:
    """Whether the other rule exists on every codebook that this one does; patterns are compared as written."""
    own, others = rule.codebooks, other.codebooks
    return bool(others == own or "*" in others)


def _is_before(rule: Rule, other: Rule, policy: Policy) -> bool:
    return policy.rules.index(rule) < policy.rules.index(other)
