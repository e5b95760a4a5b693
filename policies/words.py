"""Conditions, names and fields in plain English, for somebody who never saw the YAML.

Words only, of one thing at a time; `explain` makes sentences of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from .condition import Comparison, Condition
from .past import HIGHEST_IS_BEST

__all__ = ["MEANINGS", "counted", "in_a_row", "in_words", "joined", "matching", "percent"]

MEANINGS = {
    "step": "optimizer steps so far",
    "K": "number of codes",
    "D": "dimension of a code",
    "tokens": "how many tokens the reading was taken from",
    "perplexity": "how many codes are in use, effectively: 1 when every token falls on one code, and the number of "
    "codes when all are used alike",
    "ceiling": "the perplexity that perfectly even use would show with so many tokens",
    "perplexity_ratio": "perplexity as a fraction of what perfectly even use would show; about 1 is best",
    "usage": "fraction of the codes that were used at all",
    "dead_fraction": "fraction of the codes that are dead",
    "top_share": "fraction of the tokens that fall on the most used code",
    "rest_ratio": "how evenly the tokens that are not on the most used code share out the others; about 1 is even",
    "epoch": "epochs begun, from 0",
    "norm_ratio": "how long a code typically is, compared with a latent; about 1 when codes lie among the latents",
    "used_norm_ratio": "the same as norm_ratio, of the used codes only",
    "latent_rank": "over how many directions the latents spread",
    "codebook_rank": "over how many directions the codes spread",
    "latent_variance": "how widely the latents spread about their mean",
    "relative_error": "how far latents are from their codes; 0 is perfect, 1 no better than their mean for all of them",
    "finite_fraction": "fraction of the latents without NaN or infinity",
    "commitment_weight": "how strongly the loss pulls latents towards their codes",
    "decay": "share of the old in the codebook's moving average at each step",
    "loss": "the loss that was named to the guard",
    "eval_to_train": "perplexity_ratio in evaluation, as a fraction of what training showed last; about 1 is right",
    "quantization_error": "how far latents are from their codes, in their own units squared",
    "spread_ratio": "how widely the codes spread, compared with the latents; about 1 when they lie among them",
    "commitment_share": "fraction of the loss that pulls latents towards their codes",
    "rewrites": "how often the guard has written the codebook, or a level of its residual, so far",
    "frozen": "1 while a fallback keeps the quantizer's own updates out of the codebook, else 0",
    "unmoved": "1 if no code has moved since the reading before, else 0",
    "reshaped": "1 if each latent is a run of positions, where channels were meant, else 0",
    "moment_ratio": "how much larger gradients the optimizer remembers than it is shown now",
    "replacement_share": "below which fraction of its even use the quantizer itself replaces a code",
    "sampling_ratio": "how much farther off than the nearest codes those are that training draws at random",
    "task_gradient": "the fraction of the task's gradient that arrives at the quantizer's input",
}
"""What each field of a reading says, in one phrase."""

_SIGNS = {
    "<": "is below",
    "<=": "is at most",
    ">": "is above",
    ">=": "is at least",
    "==": "equals",
    "!=": "is anything but",
}
_WILD = re.compile(r"[*?\[]")


def in_words(condition: Condition | Comparison) -> str:
    """Write a condition in words.

    >>> in_words(Condition.parse([{"any": ["perplexity >= 10", "usage > 0.5"]}, "relative_error < 1"]))
    '(perplexity is at least 10 or usage is above 0.5) and relative_error is below 1'
    >>> in_words(Condition.parse("rel(perplexity) < 0.2"))
    'perplexity is below 0.2 times the highest that it has held'
    """
    if isinstance(condition, Comparison):
        return _comparison(condition)
    texts = [f"({in_words(part)})" if isinstance(part, Condition) else in_words(part) for part in condition.parts]
    return joined(texts, "or" if condition.any else "and")


def joined(texts: Sequence[str], link: str = "and") -> str:
    """Join texts as a sentence does.

    >>> joined(["a", "b", "c"]), joined(["a", "b"], "or"), joined(["a"])
    ('a, b and c', 'a or b', 'a')
    """
    *most, last = texts
    return f"{', '.join(most)} {link} {last}" if most else last


def in_a_row(count: int) -> str:
    """Write for how many readings something must hold."""
    return "at a single reading" if count == 1 else f"at {count} readings in a row"


def counted(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(fraction: float) -> str:
    """Write a fraction as a percentage.

    >>> percent(0.1), percent(0.025)
    ('10%', '2.5%')
    """
    return f"{100 * fraction:.6g}%"


def matching(patterns: Collection[str]) -> str:
    """Say what the name of a codebook does that fits one of some patterns.

    >>> matching(["rvq.0", "*.1", "vq*"])
    'is `rvq.0`, ends in `.1` or begins with `vq`'
    >>> matching(["*.[1-9]", "*[!0-9]"])
    'has the form `*.[1-9]` or `*[!0-9]` (* is any text, [1-9] one character of those, [!0-9] any but those)'
    """
    told = [text for pattern in patterns if (text := _plain_match(pattern))]
    forms = [pattern for pattern in patterns if not _plain_match(pattern)]
    if not forms:
        return joined(told, "or")
    told.append(f"has the form {joined([f'`{pattern}`' for pattern in forms], 'or')}")
    signs = " ".join(forms)
    legend = {"*": "* is any text", "?": "? is any one character"}
    meant = [meaning for sign, meaning in legend.items() if sign in signs]
    meant += [f"{found} one character of those" for found in _first(r"\[[^!][^\]]*\]", signs)]
    meant += [f"{found} any but those" for found in _first(r"\[![^\]]*\]", signs)]
    return f"{joined(told, 'or')} ({', '.join(meant)})"


def _first(expression: str, text: str) -> list[str]:
    """Return what fits first, in a list, if anything does."""
    return re.findall(expression, text)[:1]


def _plain_match(pattern: str) -> str:
    """Say in words what a pattern fits; empty where that takes more than stars at its ends."""
    plain = pattern.strip("*")
    if not _WILD.search(pattern):
        return f"is `{pattern}`"
    words = {f"*{plain}": "ends in", f"{plain}*": "begins with", f"*{plain}*": "contains"}
    return f"{words[pattern]} `{plain}`" if plain and not _WILD.search(plain) and pattern in words else ""


def _comparison(it: Comparison) -> str:
    number = str(it).rpartition(" ")[2]  # as exact as the condition itself
    if it.function == "rel":
        best = "highest" if it.field in HIGHEST_IS_BEST else "lowest"
        return f"{it.field} {_SIGNS[it.sign]} {number} times the {best} that it has held"
    if it.function == "trend":
        return f"{it.field} {_course(it)} over the last {it.over} readings"
    return f"{it.field} {_SIGNS[it.sign]} {number}"


def _course(it: Comparison) -> str:
    """Say how a field moves, given that its slope per reading, relative to its mean, is compared with a number."""
    each = f"{percent(abs(it.threshold))} of its mean with each reading"
    if it.sign in ("==", "!="):
        moves = "moves" if it.sign == "==" else "does anything but move"
        return f"{moves} by {100 * it.threshold:+.6g}% of its mean with each reading"
    falls, strict, edge = it.sign in ("<", "<="), it.sign in ("<", ">"), it.threshold
    if edge == 0:
        return ("falls" if falls else "rises") if strict else ("does not rise" if falls else "does not fall")
    if (edge < 0) is falls:
        return f"{'falls' if falls else 'rises'} by {'more than' if strict else 'at least'} {each}"
    return f"does not {'rise' if falls else 'fall'} by {'as much as' if strict else 'more than'} {each}"
