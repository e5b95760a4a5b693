"""A policy in plain English, rule by rule, for somebody who never saw the YAML.

Only words: nothing is decided here. What this module has no sentence for (an action of a third party, an option that
is newer than it) is written as the policy file would write it; nothing that a policy says is left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pydantic import BaseModel

from .actions import Action, FallbackTokenizer, ResetCodes, Upkeep
from .causes import LEADING, Cause
from .duration import Duration
from .parts import OfCause
from .remedies import FreezeEncoder, LowerLr, RestoreLayout, Rollback, ScaleLossWeight, Substitute, TakeOverUpdates
from .schema import Policy, Rule, Rung
from .words import MEANINGS, counted, in_a_row, in_words, joined, matching, percent

__all__ = ["explain_policy"]

_SOURCES = {
    "kmeans": "k-means centroids of recent latents",
    "reservoir": "recent latents",
    "distortion": "the worst served of recent latents",
}


def _reset_codes(it: ResetCodes) -> str:
    which = "all codes" if it.scope == "all" else "the dead codes"
    refill = ResetCodes.model_fields["refill"].default
    counted_as = "" if it.refill == refill else f", counted as used {it.refill:g} times as often as the average code"
    return f"put {which} back on {_SOURCES[it.source]}{counted_as}"


def _fallback_tokenizer(it: FallbackTokenizer) -> str:
    then = f" and then after waits each {it.refit_growth:g} times as long as the one before"
    refit = f"every {it.refit_every}" if it.refit_growth == 1 else f"after {it.refit_every}{then}"
    usual = it.refit_iterations == FallbackTokenizer.model_fields["refit_iterations"].default
    rounds = "" if usual else f", {counted(it.refit_iterations, 'iteration')} each time"
    return f"let a k-means codebook ({it.backend}) stand in for the quantizer's own, refitted {refit}{rounds}"


def _upkeep(it: Upkeep) -> str:
    which = (
        f"the codes used less than {percent(it.below)} of the uniform share, at most {percent(it.most)} of all at once"
    )
    refill = Upkeep.model_fields["refill"].default
    counted_as = "" if it.refill == refill else f", counted as used {it.refill:g} times as often as the average code"
    last = (
        "" if it.until == 1 else f"; not in the last {percent(1 - it.until)} of the training, where its length is known"
    )
    where = "the worst served latents" if it.source == "distortion" else "latents drawn at random"
    return f"move {which}, to {where}, every {it.every} until it is over{counted_as}{last}"


def _lasting(for_: Duration | None) -> str:
    return f" for {for_}" if for_ else " from then on"


def _scale_loss_weight(it: ScaleLossWeight) -> str:
    low = f", never below {it.floor:g}" if it.floor else ""
    high = f", never above {it.ceiling:g}" if it.ceiling is not None else ""
    back = f"; put it back after {it.restore_after} with the codebook healthy" if it.restore_after else ""
    return f"multiply the loss weight {it.weight} by {it.factor:g}{low}{high}{back}"


def _restore_layout(it: RestoreLayout) -> str:
    places = f"{_SOURCES[it.source]} as they are then"
    return f"give the quantizer its latents position by position, as a permutation would, and put its codes on {places}"


def _freeze_encoder(it: FreezeEncoder) -> str:
    what = it.module or "everything that the quantizer's input depends on"
    return f"keep the optimizers from moving {what}{_lasting(it.for_)}"


def _lower_lr(it: LowerLr) -> str:
    whose = "every learning rate" if it.of == "all" else "the learning rate of what feeds the quantizer"
    return f"multiply {whose} by {it.factor:g}{_lasting(it.for_)}"


def _take_over_updates(it: TakeOverUpdates) -> str:
    start = {
        "kmeans": "k-means centroids of recent latents",
        "reservoir": "recent latents drawn at random",
        "keep": "the codes as they stand",
    }[it.start]
    return f"keep the quantizer's own updates out; move the codebook from {start} by averages of decay {it.decay:g}"


def _substitute(it: Substitute) -> str:
    levels = f" of levels {', '.join(map(str, it.levels))}" if it.levels else ""
    return f"let finite scalar quantization{levels} with learned projections stand in for the quantizer"


def _rollback(it: Rollback) -> str:
    where = {"auto": "where there is room", "cpu": "in main memory", "device": "on the device"}[it.keep_on]
    return (
        "put model and optimizers back to how they were when every codebook was last healthy; the one snapshot that "
        f"this needs is kept {where} and taken every {it.every} at most"
    )


_EVAL_FIXES = {
    "auto": "make evaluation assign codes as training does, by what removes the cause that was found",
    "assignment": "let the quantizer assign codes in evaluation as in training, and keep nothing that it writes",
    "statistics": "recompute the running statistics of batch normalisation before the quantizer before each evaluation",
    "dropout": "switch dropout before the quantizer off in training",
}

_ACTIONS: dict[str, Callable[[Any], str]] = {
    "eval_fix": lambda it: _EVAL_FIXES[it.method],
    "reset_codes": _reset_codes,
    "decay_commitment": lambda it: f"multiply the commitment weight by {it.factor:g}, never below {it.floor:g}",
    "raise_commitment": lambda it: f"raise the commitment weight, of a residual at every level, to {it.to:g}",
    "ease_replacement": lambda it: (
        f"let the quantizer itself replace only codes used less than {it.to:g} times as often as evenly used ones"
    ),
    "cool_sampling": lambda it: f"multiply the temperature at which training draws codes by {it.factor:g}",
    "fallback_tokenizer": _fallback_tokenizer,
    "upkeep": _upkeep,
    "slow_ema": lambda it: f"raise the decay of the codebook's moving averages to {it.target:g}",
    "fast_ema": lambda it: f"lower the decay of the codebook's moving averages to {it.target:g}",
    "scale_loss_weight": _scale_loss_weight,
    "disable_normalisation": lambda _: "let the quantizer compare latents and codes without normalising them",
    "restore_layout": _restore_layout,
    "bridge_gradient": lambda _: "hand the gradient of what is decoded on to the encoder, past the choice of codes",
    "clip_gradients": lambda it: f"bound the norm of each optimizer's gradients at {it.max_norm:g}{_lasting(it.for_)}",
    "freeze_encoder": _freeze_encoder,
    "lower_lr": _lower_lr,
    "raise_codebook_lr": lambda it: f"multiply the codebook's learning rate by {it.factor:g}{_lasting(it.for_)}",
    "restart_optimizer": lambda _: "let the encoder's optimizer forget its moments and begin its step count anew",
    "take_over_updates": _take_over_updates,
    "substitute": _substitute,
    "rollback": _rollback,
    "alert": lambda _: "touch nothing, and see whether it recovers by itself or by your hand",
    "save_checkpoint": lambda _: "touch nothing, and ask the training loop for a checkpoint",
    "stop_training": lambda _: "touch nothing, and ask the training loop to stop",
}
_TOUCHES_NOTHING = ("alert", "save_checkpoint", "stop_training")
_LAST_RESORTS = {
    "alert": "it says so and does nothing more until it is over.",
    "save_checkpoint": "it asks the training loop for a checkpoint and does nothing more until it is over.",
    "stop_training": "it asks the training loop to stop, and does nothing more until it is over.",
    "observe": "no rule does anything more to this codebook in this run; they only tell.",
}
_UNDONE = {
    "always": "is undone",
    "unless_better": "is undone, unless it left the codebook better than it was and the loss no worse",
    "never": "has failed, and what it has done stays",
}
_UNKNOWN = {"fire": ("for", "against"), "clear": ("against", "for")}
_TOLD_OF_POLICY = {"version", "name", "mode", "sample", "warmup", "budget", "rules"}
_TOLD_OF_SAMPLE = {"every", "when_suspect", "min_tokens", "settle", "dead_below"}
_TOLD_OF_BUDGET = {"interventions", "refill_after"}
_OF_LADDER = ("cooldown", "verify", "ladder", "budget", "on_exhausted")
_TOLD_OF_RULE = {*_OF_LADDER, "name", "codebooks", "when", "for_", "clear", "severity", "inhibits"}
_TOLD_OF_RULE |= {"silence_until", "missing", "nan", "unless", "only", "stage"}
_TOLD_OF_RUNG = {"action", "params", "repeat", "within", "budget", "on"}


def explain_policy(policy: Policy, width: int = 100) -> str:
    """Say what a policy does, in paragraphs of at most so many columns."""
    blocks = [_lines(_of_the_whole(policy), width)]
    for number, rule in enumerate(policy.rules, start=1):
        head = f"Rule {number}, {rule.name} ({rule.severity})"
        blocks.append("\n".join([head, _lines(_of_rule(rule, policy), width, indent="  ")]))
    return "\n\n".join([*blocks, "\n".join(["What is measured", _lines(_meanings(policy), width, indent="  ")])])


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
        f"A reading is taken every {sample.every}, and every {counted(sample.when_suspect_steps, 'step')} while a "
        f"codebook is suspect. A code is dead when it is used less than {sample.dead_below:g} times as often as it "
        "would be if all codes were used alike."
    )
    without = [f"those of fewer than {sample.min_tokens} tokens"]
    without += [f"those before step {policy.warmup_steps}"] if policy.warmup_steps else []
    if sample.settle:
        first = "the first one" if sample.settle == 1 else f"the first {sample.settle}"
        without.append(f"{first} after an intervention")
    yield f"Readings that do not count: {joined(without)}."
    if acts and any(rule.ladder for rule in policy.rules):
        refill = policy.budget.refill_after
        again = f", counted anew after {refill} with every codebook healthy" if refill else ""
        yield f"It makes at most {counted(policy.budget.interventions, 'intervention')} in a run{again}."
    yield from _untold(policy, _TOLD_OF_POLICY)
    yield from _untold(sample, _TOLD_OF_SAMPLE, "sample.")
    yield from _untold(policy.budget, _TOLD_OF_BUDGET, "budget.")


def _of_rule(rule: Rule, policy: Policy) -> Iterator[str]:
    """One rule from its firing to its end."""
    if rule.codebooks != ("*",):
        yield f"It exists only on codebooks whose name {matching(rule.codebooks)}."
    if rule.stage == "eval":
        yield "It looks at evaluation alone: each validation makes one reading, and training makes none."
    yield f"It fires when {in_words(rule.when)}, {in_a_row(rule.for_)}."
    opposite = "" if rule.clear.when else " (the opposite of what fires it)"
    yield f"It is over when {in_words(rule.clear_when)}{opposite}, {in_a_row(rule.clear_for)}."
    if rule.unless:
        yield (
            f"It is withdrawn, and that is told once, where {_found(rule.unless)}; it looks again after its pause, ten "
            "readings at the least."
        )
    if rule.only:
        yield f"It fires only where {_found(rule.only)}; where it was not, it looks again after its pause."
    yield from _of_unknowns(rule)
    if rule.silence_until.count:
        yield f"Before step {rule.silence_until.count} it neither counts, tells nor acts."
    if rule.inhibits:
        quiet = "stays" if len(rule.inhibits) == 1 else "stay"
        yield f"While it is at work on a codebook, {joined(rule.inhibits)} {quiet} quiet there."
        if rule.ladder:
            yield "Once it has nothing left to try, only those stay quiet that have nothing else to try."
    if rule.ladder:
        yield from _of_ladder(rule, policy)
    else:
        idle = [key for key in _OF_LADDER if getattr(rule, key) != Rule.model_fields[key].default]
        so = f", so what it says of {joined(idle)} has no effect" if idle else ""
        yield f"It only raises an alert and tries nothing{so}."
    yield from _untold(rule, _TOLD_OF_RULE)
    yield from _untold(rule.clear, {"when", "for_"}, "clear.")


def _of_unknowns(rule: Rule) -> Iterator[str]:
    """What a value that is not there, or is no number, counts for; nothing where it is left open."""
    kinds = {"missing": rule.missing, "NaN (not a number)": rule.nan}
    for answer, (firing, end) in _UNKNOWN.items():
        if named := [kind for kind, each in kinds.items() if each == answer]:
            value = joined(named, "or")
            yield f"A comparison with a value that is {value} counts {firing} its firing and {end} its being over."


def _of_ladder(rule: Rule, policy: Policy) -> Iterator[str]:
    """What is tried, how it is judged, and what comes when nothing is left."""
    several = len(rule.ladder) > 1
    manner = ", one after another:" if several else ":"
    yield f"It then tries{manner}" if policy.mode == "act" else f"It would then try{manner}"
    yield from (f"  {number}. {_of_rung(rung, rule, policy)}" for number, rung in enumerate(rule.ladder, start=1))
    success = in_words(rule.verify.success) if rule.verify.success else "what ends the rule holds"
    touches = any(rung.action not in _TOUCHES_NOTHING for rung in rule.ladder)
    undone = "One that has not in time " + (_UNDONE[rule.verify.undo] if touches else "has failed")
    yield f"A try has succeeded when {success}, {in_a_row(rule.clear_for)}. {undone}{_next(several)}."
    what = "was undone" if touches and rule.verify.undo == "always" else "has failed"
    yield f"What {what} on a codebook is not tried there again in this run, not even when the rule fires anew."
    if any(rung.repeat > 1 for rung in rule.ladder):
        yield (
            "Where a rule that is judged before it, and is no milder, waits for a try to end, there is no further one "
            "in a row; after its pause the rule may begin anew."
        )
    if guard := rule.verify.guard:
        most = f"more than {percent(guard.loss_increase)} " if guard.loss_increase else ""
        yield (
            f"However well the codebook looks, a try has failed if, when its time is over, the loss is {most}higher "
            "than it was before. Where no loss is known, that is not asked."
        )
    refill = policy.budget.refill_after
    if rule.budget:
        until = ", until those of the run are counted anew" if refill else ""
        yield f"It makes at most {counted(rule.budget, 'intervention')} on one codebook{until}."
    yield f"When nothing is left to try, {_LAST_RESORTS[rule.on_exhausted]}"
    if rule.cooldown.for_.count:
        until = " until the interventions of the run are counted anew" if refill else ""
        further = f", then {rule.cooldown.growth:g} times as long after each further one{until}"
        growth = further if rule.cooldown.growth != 1 else ""
        yield f"After an intervention that was no failure it pauses for {rule.cooldown.for_}{growth}."
    yield from _untold(rule.verify, {"within", "success", "guard", "undo"}, "verify.")


def _next(several: bool) -> str:
    return ", and the next has its turn" if several else ""


def _of_rung(rung: Rung, rule: Rule, policy: Policy) -> str:
    before = " before all of it is undone" if rule.verify.undo == "always" else ""
    repeat = f", up to {rung.repeat} times in a row{before}" if rung.repeat > 1 else ""
    until = " until those of the run are counted anew" if policy.budget.refill_after else ""
    budget = f", at most {counted(rung.budget, 'time')} on one codebook{until}" if rung.budget else ""
    within = f"; {'each ' if rung.repeat > 1 else ''}judged within {rung.within or rule.verify.within}"
    more = "".join(f"; {text.rstrip('.')}" for text in _untold(rung, _TOLD_OF_RUNG))
    on = f", only where {_found(rung.on)}" if rung.on else ""
    return f"{rung.action}{on}: {_of_action(rung.params)}{repeat}{budget}{within}{more}."


def _found(it: OfCause) -> str:
    """Say that a cause was found, in words."""
    sure = "" if it.confidence == LEADING else f", with a confidence of {it.confidence:g} or more"
    told = joined([f"{name} ({Cause(name).message})" for name in it.cause], "or")
    return f"the cause found is {told}{sure}"


def _of_action(action: Action) -> str:
    written = _ACTIONS.get(action.action)
    return written(action) if written else action.describe()


def _meanings(policy: Policy) -> Iterator[str]:
    """What the fields are that the rules look at."""
    conditions = [each for rule in policy.rules for each in (rule.when, rule.clear_when, rule.verify.success) if each]
    used = {part.field for condition in conditions for part in condition.comparisons()}
    used |= {"loss"} if any(rule.ladder and rule.verify.guard for rule in policy.rules) else set()
    yield from (f"- {name}: {meaning}." for name, meaning in MEANINGS.items() if name in used)


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


def _lines(sentences: Iterator[str], width: int, indent: str = "") -> str:
    """Fold each sentence; numbered and dashed entries hang below what they begin with."""

    def folded(text: str) -> str:
        lead = indent + text[: len(text) - len(text.lstrip())]
        hanging = lead + ("   " if lead != indent else "  " if text.startswith("- ") else "")
        return textwrap.fill(
            text.strip(), width, initial_indent=lead, subsequent_indent=hanging, break_long_words=False
        )

    return "\n".join(map(folded, sentences))
