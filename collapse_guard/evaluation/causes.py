"""Why evaluation alone looks collapsed, from a comparison: ranked causes with their numbers and what to do.

Each cause is claimed by what removes it. Where one group of modules in training mode brings the training perplexity
back, that group is the cause, and it is the surer the more it brings back. Where no mode makes a difference on inputs
of training, the weights or the data do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from collapse_guard.policies import Cause, Diagnosis

from .compare import Comparison

__all__ = ["MOVES", "causes_of"]

MOVES = 1e-6
"""A relative change below this is rounding."""

_SURE, _LEAST = 0.95, 0.1
_HEALTHY, _LOW = 0.7, 0.5  # share of the training perplexity
_NEW = 0.3  # what moves by more than this in one forward was not averaged
_UNSEEN = 0.45
_RANDOM = 0.02  # share of tokens
_TOO_COSTLY = 1.5  # times the error: more even use is not worth it


def causes_of(it: Comparison) -> tuple[Diagnosis, ...]:
    """Return the causes that a comparison speaks for, likeliest first; none where it speaks for nothing."""
    found = [each for look in _LOOKS for each in look(it) if each.confidence >= _LEAST]
    return tuple(sorted(found, key=lambda each: -each.confidence))


def _updates(it: Comparison) -> Iterator[Diagnosis]:
    """A forward in evaluation writes to the quantizer."""
    step = max(it.moved.values(), default=0.0)
    if step <= MOVES:
        return
    evidence = {"moved_a_forward": step, "table_moved": it.facts.table_moved}
    what = ", ".join(sorted(name for name, size in it.moved.items() if size > MOVES))
    if it.restored("quantizer") > 0.3 and it.evaluating < _LOW * it.training:
        # what is assigned by in the very first forward is already another codebook
        yield Diagnosis(
            cause=Cause.EVAL_START,
            confidence=_SURE * _ramp(it.restored("quantizer"), 0.2, 0.6),
            says=f"a forward in evaluation makes the quantizer start anew: it writes {what}, by {step:.0%} of its size,"
            f" before codes are assigned; perplexity {it.training:.1f} in training becomes {it.evaluating:.1f}",
            evidence=evidence | _modes(it),
            advice="start a codebook from training batches only, and once: keep the flag in a buffer",
            line="if self.training and not self.initted:",
            remedy="eval_fix",
        )
        return
    before = it.begun if it.begun is not None else it.evaluating
    worst = min(it.ended if it.ended is not None else before, it.facts.perplexity)
    led = 1 - worst / max(before, it.training, 1e-12)
    yield Diagnosis(
        cause=Cause.EVAL_UPDATE,
        confidence=_SURE * _ramp(led, 0.1, 0.4) if it.facts.table_moved > MOVES or it.begun is not None else 0.3,
        says=f"a forward in evaluation writes {what}, and the codebook moved by {it.facts.table_moved:.0%} of its size "
        f"while it was evaluated: perplexity goes from {before:.1f} at the first inputs to {worst:.1f}",
        evidence=evidence | {"first": before, "later": worst},
        advice="update the codebook in training only",
        line="if self.training:",
        remedy="eval_fix",
    )


def _modes_of_layers(it: Comparison) -> Iterator[Diagnosis]:
    """A layer before the quantizer, or something else, that behaves otherwise in evaluation."""
    lost = _ramp(1 - it.evaluating / max(it.training, 1e-12), 0.2, 0.4)
    texts = {
        "batch_norm": (
            Cause.EVAL_BATCH_NORM,
            "batch normalisation before the quantizer ({}) makes it, whose running statistics are not those of batches",
            "recompute the running statistics, and let them follow faster",
            "torch.optim.swa_utils.update_bn(train_loader, model)",
            "eval_fix",
        ),
        "dropout": (
            Cause.EVAL_DROPOUT,
            "dropout before the quantizer ({}) makes it: the codes are spread over its noise, which evaluation lacks",
            "leave no dropout between encoder and quantizer",
            "nn.Dropout(p=0.0)",
            "eval_fix",
        ),
        "other": (
            Cause.EVAL_PATH,
            "something other than the quantizer, batch normalisation and dropout acts otherwise in evaluation",
            "look for `self.training` in what runs before the quantizer",
            "",
            "",
        ),
    }
    for group, (cause, says, advice, line, remedy) in texts.items():
        restored = it.restored(group)
        names = ", ".join(it.modules.get(group, ())[:3])
        if restored > 0.1:
            yield Diagnosis(
                cause=cause,
                confidence=_SURE * lost * _ramp(restored, 0.1, 0.6),
                says=f"the same inputs show perplexity {it.training:.1f} in training mode, {it.evaluating:.1f} in "
                f"evaluation mode and {it.one_of[group]:.1f} with this alone in training mode: {says.format(names)}",
                evidence=_modes(it) | _of_group(it, group),
                advice=advice,
                line=line,
                remedy=remedy,
            )


def _quantizer(it: Comparison) -> Iterator[Diagnosis]:
    """The quantizer itself assigns otherwise in evaluation, and writes nothing."""
    restored = it.restored("quantizer")
    if restored <= 0.1 or max(it.moved.values(), default=0.0) > MOVES:
        return
    lost = _ramp(1 - it.evaluating / max(it.training, 1e-12), 0.2, 0.4)
    modes = (
        f"the same inputs show perplexity {it.training:.1f} with the quantizer in training mode and "
        f"{it.evaluating:.1f} in evaluation mode"
    )
    is_random = it.resampled > _RANDOM
    costs = it.costlier if is_random and it.costlier is not None else 1.0
    is_costly = costs > _TOO_COSTLY
    evidence = {"resampled": it.resampled} | ({"costlier": costs} if is_costly else {})
    but = f"; codes drawn in evaluation, too, would lie {costs:.1f} times as far from the latents" if is_costly else ""
    yield Diagnosis(
        cause=Cause.EVAL_SAMPLING if is_random else Cause.EVAL_PATH,
        confidence=_SURE * lost * _ramp(restored, 0.1, 0.6),
        says=f"{modes}; training draws codes at random ({it.resampled:.0%} of the tokens get another code at another "
        "draw), which hides that the likeliest code is nearly always the same"
        if is_random
        else f"{modes}, and draws nothing at random: it assigns by another rule",
        evidence=_modes(it) | _of_group(it, "quantizer") | evidence,
        advice=f"lower the temperature towards the end of training, and watch the codes without noise{but}"
        if is_random
        else "assign codes alike in both modes",
        line="self.temperature = max(0.1, 0.99 * self.temperature)" if is_random else "",
        remedy="" if is_costly else "eval_fix",
    )


def _weights(it: Comparison) -> Iterator[Diagnosis]:
    """What was evaluated are not the weights that train."""
    if it.facts.weights_apart <= MOVES or it.shown_evaluating is None:
        return
    trained = max(it.training, 1e-12)
    yield Diagnosis(
        cause=Cause.EVAL_AVERAGED_WEIGHTS,
        confidence=_SURE * _ramp(it.shown_evaluating / trained, 0.3, 0.6),
        says=f"the weights that were evaluated are not those that train (apart by {it.facts.weights_apart:.0%} of "
        f"their size), as averaging leaves them: perplexity {it.facts.perplexity:.1f} with them, "
        f"{it.shown_evaluating:.1f} on the same inputs with those that train",
        evidence={"apart": it.facts.weights_apart, "averaged": it.facts.perplexity, "own": it.shown_evaluating},
        advice="keep the codebook out of the average, since codes may change places, and begin the average once the "
        "encoder has settled",
        line="averaged.module.quantizer.load_state_dict(model.quantizer.state_dict())",
        remedy="eval_fix",
    )


def _shift(it: Comparison) -> Iterator[Diagnosis]:
    """The inputs of evaluation are others than those of training."""
    if it.shown_evaluating is None or it.shown_training is None:
        return
    trained = max(it.training, 1e-12)
    kept = _ramp(it.evaluating / trained, _LOW, _HEALTHY)  # on inputs of training no mode matters
    lost = _ramp(1 - it.shown_evaluating / trained, 0.2, 0.4)
    alike = 1.0 if it.shown_training < _HEALTHY * trained else 0.6  # batch statistics may make up for other data
    if not it.sees_before:
        yield Diagnosis(
            cause=Cause.EVAL_SHIFT,
            confidence=_UNSEEN * kept * lost,
            says=f"the quantizer assigns alike in both modes: what it was given in training shows perplexity "
            f"{it.evaluating:.1f}, in evaluation {it.shown_evaluating:.1f}. Either the data differ, or a layer before "
            "it acts otherwise: that was not seen, since the encoder was called apart from the quantizer",
            evidence=_modes(it) | {"eval_inputs": it.shown_evaluating},
            advice="hand the batches in, or call encoder and quantizer within one forward, and it can be told",
            line="guard.offer(batch)",
        )
        return
    far = f"; their latents lie {it.shift:.1f} spreads away" if it.shift is not None else ""
    if kept * lost > 0:
        yield Diagnosis(
            cause=Cause.EVAL_SHIFT,
            confidence=_SURE * kept * lost * alike,
            says=f"inputs of training show perplexity {it.evaluating:.1f} in evaluation mode, those of evaluation "
            f"{it.shown_evaluating:.1f}, and {it.shown_training:.1f} in training mode{far}: the data differ, not the "
            "modes",
            evidence=_modes(it)
            | {"eval_inputs": it.shown_evaluating, "eval_inputs_training_mode": it.shown_training}
            | ({"shift": it.shift} if it.shift is not None else {}),
            advice="prepare the data of evaluation as those of training: scale, normalisation, order of channels",
            line="val_set.transform = train_set.transform",
        )


_LOOKS: tuple[Callable[[Comparison], Iterator[Diagnosis]], ...] = (
    _updates,
    _modes_of_layers,
    _quantizer,
    _weights,
    _shift,
)


def _modes(it: Comparison) -> dict[str, float]:
    return {"training_mode": it.training, "evaluation_mode": it.evaluating}


def _of_group(it: Comparison, group: str) -> dict[str, float]:
    return {"with_it": it.one_of[group], "without_it": it.all_but[group], "share": it.restored(group)}


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
