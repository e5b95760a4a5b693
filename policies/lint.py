"""Warnings: policies that are valid and probably not meant.

Pure: a policy goes in, findings come out, each with the place it is about. A warning that is wrong costs more than one
that is missing: what is said here to happen does happen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from .actions import DecayCommitment, RaiseCommitment
from .condition import Comparison, Condition
from .document import Document, read_document
from .duration import Duration
from .errors import Place
from .intervals import Ranges, both, even_use, in_range, possible, ranges_of, share_room
from .parts import OfCause
from .schema import Policy, Rule

__all__ = ["Finding", "lint_policy", "position_in"]

_LAST_RESORTS = {"alert", "fallback_tokenizer", "save_checkpoint", "stop_training", "substitute", "take_over_updates"}
_OF_SINGLE_CODES = ("usage", "dead_fraction")
_UNSEEN = 0.05
_EVAL_ONLY = "eval_to_train"


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


def lint_policy(policy: Policy, codes: int | None = None, commitment: float | None = None) -> list[Finding]:
    """Return what is probably not meant, rule by rule.

    Args:
        policy: a checked policy.
        codes: the number of codes that it is for, K; without it only what holds for any K is found.
        commitment: the model's commitment weight as it is today, for what only that can tell.
    """
    ranges = ranges_of(codes, min_tokens=policy.sample.min_tokens, first_step=max(policy.warmup_steps, 1))
    found: list[Finding] = []
    for rule in policy.rules:
        found += _of_stage(rule)
        found += _of_causes(rule)
        found += _of_conditions(rule, ranges, codes)
        found += _of_success(rule, ranges, codes)
        found += _of_verification(rule, policy)
        found += _of_ladder(rule)
        found += _of_floors(rule, commitment)
        found += _of_others(rule, policy, ranges)
    return [*found, *_of_cadence(policy), *_of_tokens(policy, codes, ranges)]


def position_in(text: str, finding: Finding) -> tuple[int, int] | tuple[None, None]:
    """Return line and column, from 1, of what a finding is about in the text of its policy."""
    document = _read(text)
    place = finding.place
    if finding.rule:
        rules = document.data.get("rules", []) if isinstance(document.data, Mapping) else []
        names = [rule.get("name") if isinstance(rule, Mapping) else None for rule in rules]
        if finding.rule not in names:
            return None, None
        place = ("rules", names.index(finding.rule), *place)
    *_, line, column = document.position(place)
    return (line, column) if line is not None and column is not None else (None, None)


@lru_cache(maxsize=1)
def _read(text: str) -> Document:
    """Read a text once for all its findings."""
    return read_document(text, "")


def _of_conditions(rule: Rule, ranges: Ranges, codes: int | None) -> Iterator[Finding]:
    """Thresholds out of reach, and a `clear` that is met where the rule fires."""
    with_codes = f" with {codes} codes" if codes else ""
    if not possible(rule.when, ranges):
        message = f"`{rule.when}` never holds{with_codes}: the rule cannot fire."
        hint = f"{_bounds(rule.when, ranges)}Move the threshold."
        yield Finding(kind="never-fires", rule=rule.name, place=("when",), message=message, hint=hint)
        return
    if not possible(rule.when.negated(), ranges):
        message = f"`{rule.when}` always holds{with_codes}: the rule fires on every run."
        hint = "Move the threshold, or compare a share such as `perplexity_ratio`."
        yield Finding(kind="always-fires", rule=rule.name, place=("when",), message=message, hint=hint)
        return
    if rule.clear.when is None:
        return
    place = ("clear", "when")
    if not possible(both(rule.clear.when, rule.when.negated()), ranges):
        message = f"`{rule.clear.when}` never holds{with_codes} where the rule does not fire: it is never over."
        hint = "Move the threshold of `clear`."
        yield Finding(kind="never-clears", rule=rule.name, place=place, message=message, hint=hint)
    elif share_room(rule.when, rule.clear.when, ranges):
        message = (
            f"`{rule.clear.when}` can hold while `{rule.when}` still does; such a reading does not count as clear."
        )
        hint = "Let `clear` begin where `when` ends, or beyond."
        yield Finding(kind="clears-where-it-fires", rule=rule.name, place=place, message=message, hint=hint)


def _of_stage(rule: Rule) -> Iterator[Finding]:
    """What only evaluation shows, looked for in training; a verdict that epochs of training must wait for."""
    success = rule.verify.success
    conditions = {("when",): rule.when, ("clear", "when"): rule.clear.when, ("verify", "success"): success}
    for place, condition in conditions.items():
        if rule.stage == "train" and condition and _in_eval_only(condition):
            message = f"`{condition}` looks at `{_EVAL_ONLY}`, which readings in training do not have."
            hint = "Write `stage: eval`, and the rule looks at evaluation."
            yield Finding(kind="wrong-stage", rule=rule.name, place=place, message=message, hint=hint)


def _of_causes(rule: Rule) -> Iterator[Finding]:
    """Causes that are not looked for in readings of the rule's stage, and those that it fires for and rests for."""
    named: list[tuple[Place, OfCause | None]] = [(("unless",), rule.unless), (("only",), rule.only)]
    named += [(("ladder", index, "on"), rung.on) for index, rung in enumerate(rule.ladder)]
    for place, of_cause in named:
        wrong = (
            [each for each in of_cause.cause if each.startswith("eval_") != (rule.stage == "eval")] if of_cause else []
        )
        if wrong:
            message = f"{', '.join(wrong)} is never found in readings of stage {rule.stage}, which this rule looks at."
            hint = "Leave it out, or name it in a rule of the other stage."
            yield Finding(kind="cause-of-other-stage", rule=rule.name, place=place, message=message, hint=hint)
    if rule.only is None or rule.unless is None or rule.unless.confidence > rule.only.confidence:
        return
    if both := [each for each in rule.only.cause if each in rule.unless.cause]:
        never = " for it" if len(both) < len(rule.only.cause) else ""
        message = f"{', '.join(both)} is what `only` fires for and what `unless` rests for: it never fires{never}."
        hint = "Name it in one of the two."
        yield Finding(kind="only-and-unless", rule=rule.name, place=("unless",), message=message, hint=hint)


def _in_eval_only(condition: Condition) -> bool:
    """Whether a condition looks at what only readings in evaluation have."""
    return any(part.field == _EVAL_ONLY for part in condition.comparisons())


def _bounds(condition: Condition, ranges: Ranges) -> str:
    """Say where the fields lie that some comparison looks for elsewhere."""
    outside = dict.fromkeys(part.subject for part in condition.comparisons() if not in_range(part, ranges))
    return "".join(f"{subject} lies {_between(*ranges[subject])} there. " for subject in outside)


def _between(least: float, most: float) -> str:
    return f"between {least:.4g} and {most:.4g}" if most < math.inf else f"at {least:.4g} or above"


def _of_success(rule: Rule, ranges: Ranges, codes: int | None) -> Iterator[Finding]:
    """Interventions that nothing can make a success, and those that pass for one though nothing has changed."""
    success, with_codes = rule.verify.success, f" with {codes} codes" if codes else ""
    if not rule.ladder:
        return
    if success is None:
        if rule.clear.when is None and _by_trends_alone(rule.clear_when):
            message = "it is over as soon as a trend ends, at whatever level: an intervention after which nothing gets "
            message += "better passes for a success."
            hint = "Write a `clear: {when: ...}` that says at which level it is over."
            yield Finding(kind="over-by-itself", rule=rule.name, place=("when",), message=message, hint=hint)
        return
    place = ("verify", "success")
    if not possible(success, ranges):
        message = f"`{success}` never holds{with_codes}: every intervention fails."
        hint = f"{_bounds(success, ranges)}Move the threshold."
        yield Finding(kind="never-succeeds", rule=rule.name, place=place, message=message, hint=hint)
    elif share_room(rule.when, success, ranges):
        message = f"`{success}` can hold while `{rule.when}` still does: an intervention may pass for a success there."
        hint = "Let `success` begin where `when` ends, or beyond."
        yield Finding(kind="succeeds-where-it-fires", rule=rule.name, place=place, message=message, hint=hint)


def _by_trends_alone(condition: Condition | Comparison) -> bool:
    """Whether trends alone can make a condition hold."""
    if isinstance(condition, Comparison):
        return condition.function == "trend"
    return (any if condition.any else all)(map(_by_trends_alone, condition.parts))


def _wait_for_trends(condition: Condition | Comparison) -> int:
    """Return how many readings pass after an intervention before a condition can hold, since trends begin anew."""
    if isinstance(condition, Comparison):
        return max(condition.over - 1, 0)
    return (min if condition.any else max)(map(_wait_for_trends, condition.parts))


def _of_cadence(policy: Policy) -> Iterator[Finding]:
    """A suspect codebook that is to be read less often than a healthy one."""
    sample = policy.sample
    if sample.when_suspect.count > sample.every.count:
        message = f"`when_suspect` is longer than `every`, so readings come every {sample.every} all the same."
        hint, place = "Write a shorter one, or a longer `every`.", ("sample", "when_suspect")
        yield Finding(kind="sparse-when-suspect", rule="", place=place, message=message, hint=hint)


def _of_verification(rule: Rule, policy: Policy) -> Iterator[Finding]:
    """Deadlines that come before success can be seen."""
    for index, rung in enumerate(rule.ladder):
        if rung.within is not None:
            yield from _too_short(rung.within, rule, policy, ("ladder", index, "within"))
    if any(rung.within is None for rung in rule.ladder):
        yield from _too_short(rule.verify.within, rule, policy, ("verify", "within"))


def _too_short(within: Duration, rule: Rule, policy: Policy, place: Place) -> Iterator[Finding]:
    settle, streak, every = policy.sample.settle, rule.clear_for, policy.sample.when_suspect_steps
    if within.unit == "epochs" or (rule.stage == "eval" and within.unit == "steps"):
        return  # how often it is evaluated is the loop's to say
    wait = _wait_for_trends(rule.verify.success or rule.clear_when)
    needed = streak + wait if within.unit == "readings" else (settle + wait + streak) * every
    if within.count >= needed:
        return
    passing = f"{settle} to settle and " if settle and within.unit == "steps" else ""
    passing += f"{wait} before a trend is known and " if wait else ""
    cadence = f", {every} steps apart" if within.unit == "steps" else ""
    message = (
        f"{within} are over before success can be seen, which takes {passing}{streak} clear readings{cadence}: only a "
        "streak that has begun by then can still succeed."
    )
    hint = f"Write at least `{needed} {within.unit}`, or a shorter `clear.for`."
    yield Finding(kind="short-verification", rule=rule.name, place=place, message=message, hint=hint)


def _of_ladder(rule: Rule) -> Iterator[Finding]:
    """Ladders that end with something that may fail, and with nobody told what then."""
    if not rule.ladder or rule.severity != "critical" or rule.on_exhausted != "alert":
        return
    if rule.ladder[-1].on is not None:
        message = "the ladder ends with a rung for some causes only: where another is found, a critical rule does less."
        hint = "Add a last rung without `on`, such as `fallback_tokenizer` or `alert`."
        at: Place = ("ladder", len(rule.ladder) - 1, "on")
        yield Finding(kind="only-for-causes", rule=rule.name, place=at, message=message, hint=hint)
        return
    last = rule.ladder[-1].action
    if last not in _LAST_RESORTS:
        message = f"the ladder has no end: when {last} fails, a critical rule does nothing more."
        hint = "Add a last resort, such as `fallback_tokenizer` or `alert`."
        place = ("ladder", len(rule.ladder) - 1)
        yield Finding(kind="no-last-resort", rule=rule.name, place=place, message=message, hint=hint)


def _of_floors(rule: Rule, commitment: float | None) -> Iterator[Finding]:
    """A floor, or a target, that the commitment weight is at already, so that the action is refused."""
    if commitment is None:
        return
    can_fire = possible(rule.when, {"commitment_weight": (commitment, commitment)})
    for index, rung in enumerate(rule.ladder):
        match rung.params:
            case RaiseCommitment(to=to) if commitment >= to and can_fire:
                kind, field, claim, move = "target-below-weight", "to", f"below {to:g}", "higher `to`"
            case DecayCommitment(floor=floor) if commitment <= floor:
                kind, field, claim, move = "floor-above-weight", "floor", f"above the floor {floor:g}", "lower `floor`"
            case _:
                continue
        message = f"the commitment weight is {commitment:g}, not {claim}: the action is refused."
        place: Place = ("ladder", index, rung.action, field)
        hint = f"Write a {move}, or leave the rung out."
        yield Finding(kind=kind, rule=rule.name, place=place, message=message, hint=hint)


def _of_others(rule: Rule, policy: Policy, ranges: Ranges) -> Iterator[Finding]:
    """Rules that another one keeps from firing, or doubles; of several such others the first is told."""
    for other in policy.rules:
        if other is rule or not possible(rule.when, ranges) or not _meet(rule, other):
            continue
        if possible(both(rule.when, other.when.negated()), ranges) or other.for_ > rule.for_:
            continue
        if rule.name in other.inhibits:
            when = f"only fire once {other.name} is exhausted" if rule.ladder and other.ladder else "never fire"
            message = f"it can {when}: where it does, {other.name} has fired already and keeps it quiet."
            hint = f"Remove one of the two, or turn `inhibits` of {other.name} round."
            yield Finding(kind="shadowed", rule=rule.name, place=("when",), message=message, hint=hint)
            return
        elif other.name not in rule.inhibits and (other.when != rule.when or _is_before(rule, other, policy)):
            message = f"where it fires, {other.name} fires too: one trouble, two alerts and two ladders."
            hint = f"Write `inhibits: [{other.name}]` in the worse of the two."
            yield Finding(kind="doubled", rule=rule.name, place=("when",), message=message, hint=hint)
            return


def _of_tokens(policy: Policy, codes: int | None, ranges: Ranges) -> Iterator[Finding]:
    """Readings too small for the codebook: they show codes that are all used alike as if many were dead."""
    if codes is None:
        return
    tokens = policy.sample.min_tokens
    even = {**ranges, **even_use(codes, tokens, policy.sample.dead_below)}
    dead = even["dead_fraction"][1]
    if dead <= _UNSEEN:
        return
    enough = math.ceil(-math.log(_UNSEEN) * codes)
    shown = f"a reading of {tokens} tokens shows {dead:.0%} of {codes} codes as dead though all be used alike, and rule"
    for rule in policy.rules:
        if problem := _misled(rule, even, ranges):
            message, hint = f"{shown} {rule.name} {problem}.", f"Write `min_tokens: {enough}` or more"
            hint += ", or compare `perplexity_ratio`, which takes it into account."
            yield Finding(kind="few-tokens", rule="", place=("sample", "min_tokens"), message=message, hint=hint)


def _misled(rule: Rule, even: Ranges, ranges: Ranges) -> str:
    """Say how a rule takes even use, seen through too few tokens, for something else; empty where it does not."""
    counted = {part.field for condition in (rule.when, rule.clear_when) for part in condition.comparisons()}
    looks = not counted.isdisjoint(_OF_SINGLE_CODES)
    if possible(rule.when, even):
        if looks:
            return "fires then"
        if any(getattr(rung.params, "scope", None) == "dead" for rung in rule.ladder):
            return "may fire then and reset them"
    elif looks and possible(rule.clear_when, ranges) and not possible(rule.clear_when, even):
        return "is not over even then"
    return ""


def _meet(rule: Rule, other: Rule) -> bool:
    """Whether the other rule sees every reading that this one does; patterns are compared as written."""
    own, others = rule.codebooks, other.codebooks
    return rule.stage == other.stage and bool(others == own or "*" in others)


def _is_before(rule: Rule, other: Rule, policy: Policy) -> bool:
    return policy.rules.index(rule) < policy.rules.index(other)
