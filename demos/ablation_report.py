"""What the ablation says: one table, and a paragraph on what would have helped without the true cause."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from .ablation_arms import ABLATION_ARMS, BASELINES
from .ablation_looks import LookRun
from .ablation_runs import AblationRun
from .evaluation_modes import Looks, verdict_on

__all__ = ["ablation_as_markdown", "ablation_table", "conclude_ablation", "looks_table"]

_GAP_CLOSED = 0.9
_PERPLEXITY = 10.0  # what `default` calls recovered
_TAKE_THE_UPDATE_AWAY = ("C", "fsq")
_NAMES = {key: arm.name for (key, _), arm in ABLATION_ARMS.items()}


def _of(runs: Iterable[AblationRun], arm: str, *factors: str) -> list[AblationRun]:
    return [run for run in runs if run.arm == arm and run.factor in factors]


def _accuracy(runs: Sequence[AblationRun]) -> float:
    return statistics.mean(run.accuracy for run in runs)


def ablation_table(runs: Sequence[AblationRun]) -> str:
    """Return the table in Markdown: a row for each arm, means over its seeds."""
    rows = [
        "| proposal | factor n | test accuracy | perplexity batch / test | usage | interventions |",
        "|---|---|---|---|---|---|",
    ]
    for (key, factor), arm in ABLATION_ARMS.items():
        these = _of(runs, key, factor)
        if these:
            values = [run.accuracy for run in these]
            accuracy = f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
            usage = f"{statistics.mean(run.usage for run in these):.1%}" if these[0].eval_perplexity else "-"
            rows.append(f"| {arm.name} | {factor} | {accuracy} | {_perplexities(these)} | {usage} | {_tally(these)} |")
    return "\n".join(rows)


def _perplexities(runs: Sequence[AblationRun]) -> str:
    """Write means over the seeds: `1.0 / 1.0`, and of two levels `20.1, 14.0 / 25.2, 31.3`."""
    sides = [[run.train_perplexity for run in runs], [run.eval_perplexity for run in runs]]
    means = [", ".join(f"{statistics.mean(level):.1f}" for level in zip(*side, strict=True)) for side in sides]
    return " / ".join(means) if means[1] else "-"


def _tally(runs: Sequence[AblationRun]) -> str:
    if not ABLATION_ARMS[runs[0].arm, runs[0].factor].guarded:
        return "-"
    done = [name for run in runs for name in run.interventions]
    return ", ".join(f"{name} {done.count(name)}x" for name in dict.fromkeys(done)) or "none"


def conclude_ablation(runs: Sequence[AblationRun]) -> str:
    """Say which proposals would have helped with the factor still missing, and what they do once it is back."""
    without = _of(runs, "without", "-")
    ill, well = (_of(runs, "reference", factor) for factor in ("missing", "put back"))
    if not (without and ill and well):
        return "The runs to compare with are missing."
    guarded = _of(runs, "guarded", "missing")
    guard = f"; the guard, which does not put it back, reaches {_accuracy(guarded):.3f}" if guarded else ""
    low, high = min(run.accuracy for run in ill), max(run.accuracy for run in ill)
    return "\n\n".join(
        [
            f"Left as it is, the quantizer ends at {_accuracy(ill):.3f} ({low:.3f} to {high:.3f}: the seed, and how "
            "the processor rounds, decide which few codes the collapse leaves); without a "
            f"quantizer the model is at {_accuracy(without):.3f}. The missing factor alone, put back, is worth "
            f"{_accuracy(well) - _accuracy(ill):+.3f}{guard}.",
            _while_it_is_missing(runs, _accuracy(ill), _accuracy(without)),
            _once_it_is_back(runs, well),
        ]
    )


def _while_it_is_missing(runs: Sequence[AblationRun], ill: float, without: float) -> str:
    """Sort the proposals by what they bring while the update is broken."""
    helped, partly, nothing = list[str](), list[str](), list[str]()
    for key in _proposals(runs, "missing", "-"):
        these = _of(runs, key, "missing", "-")
        closed = (_accuracy(these) - ill) / (without - ill)
        held = all(min(run.eval_perplexity, default=0.0) >= _PERPLEXITY for run in these)
        (helped if held and closed >= _GAP_CLOSED else partly if closed >= 1 - _GAP_CLOSED else nothing).append(key)
    named = [
        ", ".join(f"{_NAMES[key]} ({_accuracy(_of(runs, key, 'missing', '-')):.3f})" for key in keys) or "none"
        for keys in (helped, partly, nothing)
    ]
    common = ""
    if helped and set(helped) <= set(_TAKE_THE_UPDATE_AWAY):
        common = " What these have in common: they take the update away, and tune nothing around it."
    return (
        f"With the factor still missing, these would have saved the run, by closing at least {_GAP_CLOSED:.0%} of that "
        f"gap with a perplexity of at least {_PERPLEXITY:g} on the test set in every seed: {named[0]}.{common} These "
        f"close at least {1 - _GAP_CLOSED:.0%} of the gap and leave the codebook collapsed, or do not hold in every "
        f"seed: {named[1]}. These change nothing, or make it worse: {named[2]}."
    )


def _proposals(runs: Sequence[AblationRun], *factors: str) -> list[str]:
    """Return what was proposed, in order, as far as it was run so."""
    measured = {run.arm for run in runs if run.factor in factors}
    return list(dict.fromkeys(key for key, _ in ABLATION_ARMS if key in measured and key not in BASELINES))


def _once_it_is_back(runs: Sequence[AblationRun], well: Sequence[AblationRun]) -> str:
    """Compare each proposal with the repaired reference quantizer, seed by seed."""
    plain = {run.seed: run.accuracy for run in well}
    better, worse, mixed = list[str](), list[str](), list[str]()
    for key in _proposals(runs, "put back"):
        pairs = [run.accuracy - plain[run.seed] for run in _of(runs, key, "put back") if run.seed in plain]
        if pairs:
            kind = better if min(pairs) > 0 else worse if max(pairs) < 0 else mixed
            kind.append(f"{_NAMES[key]} ({statistics.mean(pairs):+.3f})")
    named = [", ".join(each) or "none" for each in (better, worse, mixed)]
    return (
        "Once the factor is back, the proposals are ordinary tuning, compared with the repaired quantizer seed by "
        f"seed. More accurate in every seed: {named[0]}. Less accurate in every seed: {named[1]}. Neither: {named[2]}."
    )


def looks_table(looks: Sequence[LookRun]) -> str:
    """Return train, eval, and eval with the quantizer in training mode, as means with ranges over the seeds."""
    rows = [
        "| model | train | eval | eval, quantizer in train mode | what it says |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(look.model for look in looks):
        these = [look for look in looks if look.model == name]
        columns = [
            [getattr(look, field) for look in these] for field in ("training", "evaluation", "quantizer_training")
        ]
        cells = [f"{statistics.mean(each):.1f} ({min(each):.1f}-{max(each):.1f})" for each in columns]
        said = [verdict_on(Looks(*values)) for values in zip(*columns, strict=True)]
        words = "; ".join(f"{each}{_times(said, each)}" for each in dict.fromkeys(said))
        rows.append(f"| {name} | {' | '.join(cells)} | {words} |")
    return "\n".join(rows)


def _times(said: Sequence[str], words: str) -> str:
    return "" if said.count(words) == len(said) else f" ({said.count(words)} of {len(said)})"


def ablation_as_markdown(runs: Sequence[AblationRun], looks: Sequence[LookRun]) -> str:
    """Return the page."""
    seeds, looked = len({run.seed for run in runs}), len({look.seed for look in looks})
    epochs = runs[0].epochs if runs else 0
    arms = {arm.name: arm.meaning for arm in ABLATION_ARMS.values()}
    minutes = sum(run.cpu_seconds for run in runs) / 60
    return f"""# The reference ablation: what would have helped

Written by `make ablation` (`collapse-guard demo --ablation` writes it elsewhere); every run is in `ablation.jsonl`. The
reference quantizer on handwritten digits with what its owner and others proposed against its collapse, each with the
factor n missing, as it was, and put back: [the story](../story.md). {epochs} epochs of 45 steps, means over {seeds}
seeds with the least and the largest accuracy; {len(runs)} runs took {minutes:.0f} minutes of CPU time.

![Test accuracy of every proposal, with the factor missing and put back](ablation.svg)

{ablation_table(runs)}

Perplexity: of a training batch (median of the last epoch) / of the test set; a batch has 64 tokens, the test set 720,
and half as many where an image is one token. Two numbers on a side are the two levels. Usage: of the codes, at the end,
on the test set.

{chr(10).join(f"- {name}: {meaning}." for name, meaning in arms.items())}

## What would have helped without the true cause

{conclude_ablation(runs)}

## Two problems, three looks

Collapse in training, and collapse that only evaluation has, told apart: perplexity of a batch of 64 tokens after 3
epochs without a guard, in training, in evaluation, and in evaluation with the quantizer alone in training mode; means
over {looked} seeds (least - largest). The models are in `demos/evaluation_modes.py`; what the guard does about the
second kind is in [evaluation](evaluation.md).

{looks_table(looks)}
"""
