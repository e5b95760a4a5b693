"""A policy in plain English, rule by rule, for somebody who never saw the YAML.

Only words: nothing is decided here. What this module has no sentence for (an action of a third party, an option that
is newer than it) is written as the policy file would write it; nothing that a policy says is left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pydantic import BaseModel

from .actions import Action
from .condition import Comparison, Condition
from .schema import Policy, Rule, Rung

__all__ = ["explain_policy", "in_words"]

_WIDTH = 100
_SIGNS = {
    "<": "is below",
    "<=": "is at most",
    ">": "is above",
    ">=": "is at least",
    "==": "equals",
    "!=": "is anything but",
}
_SOURCES = {"kmeans": "k-means centroids of recent latents", "reservoir": "recent latents"}
_ACTIONS: dict[str, Callable[[Any], str]] = {
    "reset_codes": lambda it: (
        f"put {'all codes' if it.scope == 'all' else 'the dead codes'} back on {_SOURCES.get(it.source, it.source)}"
    ),
    "decay_commitment": lambda it: f"multiply the commitment weight by {it.factor:g}, never below {it.floor:g}",
    "fallback_tokenizer": lambda it: (
        f"let a k-means codebook ({it.backend}) stand in for the quantizer's own, "
        f"refitted first after {it.refit_every}, each later wait {it.refit_growth:g} times as long"
    ),
    "alert": lambda _: "touch nothing, and leave it to a human",
    "save_checkpoint": lambda _: "touch nothing, and ask the training loop for a checkpoint",
    "stop_training": lambda _: "touch nothing, and ask the training loop to stop",
}
_TOLD_OF_POLICY = {"version", "name", "mode", "sample", "warmup", "budget", "rules"}
_TOLD_OF_SAMPLE = {"every", "when_suspect", "min_tokens", "settle", "dead_below"}
_TOLD_OF_BUDGET = {"interventions", "refill_after"}
_TOLD_OF_RULE = {"name", "when", "for_", "clear", "severity", "inhibits", "cooldown", "verify", "ladder"}
_TOLD_OF_VERIFY = {"within", "success"}
_TOLD_OF_RUNG = {"action", "params", "repeat", "within"}


def explain_policy(policy: Policy) -> str:
    """Say what a policy does, in paragraphs of at most 100 columns."""
    blocks = [_lines(_of_the_whole(policy))]
    for number, rule in enumerate(policy.rules, start=1):
        head = f"Rule {number}, {rule.name} ({rule.severity})"
        blocks.append("\n".join([head, _lines(_of_rule(rule, policy), indent="  ")]))
    return "\n\n".join(blocks)


def in_words(condition: Condition | Comparison) -> str:
    """Write a condition in words.

    >>> in_words(Condition.parse([{"any": ["perplexity >= 10", "usage > 0.5"]}, "relative_error < 1"]))
    '(perplexity is at least 10 or usage is above 0.5) and relative_error is below 1'
    """
    if isinstance(condition, Condition):
        texts = [f"({in_words(part)})" if isinstance(part, Condition) else in_words(part) for part in condition.parts]
        return (" or " if condition.any else " and ").join(texts)
    sign = getattr(condition, "sign", "")
    return str(condition).replace(f" {sign} ", f" {_SIGNS.get(sign, sign)} ", 1)


def _of_the_whole(policy: Policy) -> Iterator[str]:
    """What holds for every rule: mode, readings, budget."""
    acts = policy.mode == "act"
    yield f"Policy {policy.name}: it " + (
        "watches every codebook and acts on the run by itself."
        if acts
        else "watches every codebook and writes down what it would do; it touches nothing."
    )
    sample = policy.sample
    yield (
        f"A reading is taken every {sample.every}, and every {min(sample.when_suspect_steps, sample.every_steps)} "
        "steps while a codebook is suspect. A code is dead when it is used less than "
        f"{sample.dead_below:g} times as often as it would be if all codes were used alike."
    )
    without = [f"a reading of fewer than {sample.min_tokens} tokens"]
    without += [f"any before step {policy.warmup_steps}"] if policy.warmup_steps else []
    if sample.settle:
        first = "the first reading" if sample.settle == 1 else f"the first {sample.settle} readings"
        without.append(f"{first} after an intervention")
    yield f"No evidence: {'; '.join(without)}."
    if acts and any(rule.ladder for rule in policy.rules):
        refill = policy.budget.refill_after
        whole = f"it is whole again after {refill} with every codebook healthy" if refill else "it is never refilled"
        yield f"The budget is {_count(policy.budget.interventions, 'intervention')} a run; {whole}."
    yield from _untold(policy, _TOLD_OF_POLICY)
    yield from _untold(sample, _TOLD_OF_SAMPLE, "sample.")
    yield from _untold(policy.budget, _TOLD_OF_BUDGET, "budget.")


def _of_rule(rule: Rule, policy: Policy) -> Iterator[str]:
    """One rule from its firing to its end."""
    yield f"It fires when {in_words(rule.when)}, {_in_a_row(rule.for_)}."
    opposite = "" if rule.clear.when else " (the opposite of what fires it)"
    yield f"It is over when {in_words(rule.clear_when)}{opposite}, {_in_a_row(rule.clear_for)}."
    if rule.inhibits:
        quiet = "stays" if len(rule.inhibits) == 1 else "stay"
        yield f"While it is at work on a codebook, {' and '.join(rule.inhibits)} {quiet} quiet there."
    if rule.ladder:
        yield from _of_ladder(rule, acts=policy.mode == "act")
    else:
        yield "It only raises an alert; there is nothing on its ladder."
    yield from _untold(rule, _TOLD_OF_RULE)
    yield from _untold(rule.clear, {"when", "for_"}, "clear.")


def _of_ladder(rule: Rule, *, acts: bool) -> Iterator[str]:
    """What is tried, and how it is judged."""
    yield "It then tries, one after another:" if acts else "It would then try, one after another:"
    yield from (f"  {number}. {_of_rung(rung, rule)}" for number, rung in enumerate(rule.ladder, start=1))
    success = in_words(rule.verify.success) if rule.verify.success else "the rule is over as said above"
    streak = f", {_in_a_row(rule.clear_for)}" if rule.verify.success else ""
    yield (
        f"A try has succeeded when {success}{streak}. One that has not is a failure: what it did is undone, "
        "and the next has its turn. When the last has failed, the rule does nothing more until it is over."
    )
    if rule.cooldown != Rule.model_fields["cooldown"].default:
        pause = rule.model_dump(mode="json", include={"cooldown"})["cooldown"]
        yield f"After an intervention that ended well it pauses for {_written(pause)}."
    yield from _untold(rule.verify, _TOLD_OF_VERIFY, "verify.")


def _of_rung(rung: Rung, rule: Rule) -> str:
    repeat = f", up to {rung.repeat} times in a row before all of it is undone" if rung.repeat > 1 else ""
    within = f", {'each ' if rung.repeat > 1 else ''}judged within {rung.within or rule.verify.within}"
    more = "".join(f"; {text.rstrip('.')}" for text in _untold(rung, _TOLD_OF_RUNG))
    return f"{rung.action}: {_of_action(rung.params)}{repeat}{within}{more}."


def _of_action(action: Action) -> str:
    written = _ACTIONS.get(action.action)
    return written(action) if written else action.describe()


def _untold(part: BaseModel, told: Collection[str], prefix: str = "") -> Iterator[str]:
    """What a part says, other than by default, that no sentence above covers: as the file would write it."""
    plain = part.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for name, field in type(part).model_fields.items():
        key = field.alias or name
        if name not in told and key in plain:
            yield f"{prefix}{key}: {_written(plain[key])}."


def _written(value: Any) -> str:
    """Write a plain value without brackets: a list by its entries, a mapping by its keys, `for` without its name."""
    if isinstance(value, dict):
        said = {key: each for key, each in value.items() if each is not None}
        return ", ".join(_written(each) if key == "for" else f"{key} {_written(each)}" for key, each in said.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _in_a_row(count: int) -> str:
    return "at a single reading" if count == 1 else f"at {count} readings in a row"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _lines(sentences: Iterator[str], indent: str = "") -> str:
    """Fold each sentence; the numbered entries of a ladder hang below their number."""

    def folded(text: str) -> str:
        lead = indent + text[: len(text) - len(text.lstrip())]
        hanging = lead + ("   " if lead != indent else "")
        return textwrap.fill(text.strip(), _WIDTH, initial_indent=lead, subsequent_indent=hanging)

    return "\n".join(map(folded, sentences))
