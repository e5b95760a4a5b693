"""Home-made quantizers, recognised by what they do, whatever they call things: moved by averages, or by gradients.

A stored (K, D) tensor makes a candidate. Trials on copies then say whether it is a codebook, what it is compared with
and where in the output the codes are (`recognition`). Only a candidate whose codes equal an independent nearest-code
search, whose output holds the rows of these codes, and whose codes follow when the rows are rolled, is accepted. Any
other is reported with the reason if it looks or acts like a quantizer, and passed over if it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard.adapters.base import K_OF_ONE, CodebookView, Confidence, Observation, Reader, Unrecognised
from collapse_guard.adapters.nested import flatten_tensors, given_tensor
from collapse_guard.adapters.recognition import (
    Bench,
    CannotTryError,
    Doubt,
    Explanation,
    Findings,
    Layout,
    Structure,
    Trial,
    entries_of,
    explain_trials,
    find_codes,
    find_commitment,
    look_at,
    nearest,
    read_codes,
)
from collapse_guard.adapters.refs import Knob, TensorRef

__all__ = ["match_home_made"]

_DECAY_NAMES = ("decay", "ema_decay", "_decay", "gamma", "_gamma", "momentum")
_RAW_LENGTH = "it searches normalised rows and decodes with raw ones: the length to write is not known"
_UNIT_DECODE = "it searches raw rows and decodes with normalised ones: a row serves two lengths"
_FIXED = "neither gradients nor averages move its table: one that is meant to stay is only watched"
_MOVES = "its forward itself moves codes, by no average that was recognised: two must not move the rows of one table"
_NO_TRAINING_CODES = "its forward returns codes in evaluation and none in training, where they are counted"
_IN_A_LIST = (
    "its forward searches {} and looks their rows up; stacked or in a list, they cannot be told apart by one view"
)


def match_home_made(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise a home-made quantizer; `None` where the module does not even look like one."""
    structure = look_at(module)
    if structure is None:
        return None
    if structure.tables and structure.tables[0].K < 2:
        return [Unrecognised(name, K_OF_ONE)]
    try:
        bench = Bench(module, structure)
    except CannotTryError as error:
        return [_unrecognised(name, str(error), structure, Doubt.NOT_COMPARED)] if structure.is_telling else None
    found: dict[str, Findings] = {}
    for entry in entries_of(module):
        found[entry] = explain_trials(bench, structure, entry)
        explanation = found[entry].explanation
        if explanation is not None:
            return [_view(name, module, bench, entry, explanation)]
    return _report(name, structure, found)


def _report(name: str, structure: Structure, found: Mapping[str, Findings]) -> list[Unrecognised] | None:
    """Say how far a candidate came; `None` for what neither looks nor acts like a quantizer."""
    entry = max(found, key=lambda each: list(Doubt).index(found[each].doubt))
    furthest = found[entry]
    looked_up = frozenset().union(*(each.looked_up for each in found.values()))
    listed = sorted(looked_up & set(structure.deeper))
    if listed:
        reason = _IN_A_LIST.format(", ".join(repr(each) for each in listed[:3]) + (", ..." if listed[3:] else ""))
        advice = "make each level a module of its own that returns its vectors and its codes"
        return [Unrecognised(name, reason, table=listed[0], advice=advice)]
    acts = looked_up or furthest.doubt in (Doubt.PROJECTED, Doubt.NO_VECTORS, Doubt.NOT_ROLLED)
    if not acts and not structure.is_telling:
        return None
    reason = furthest.doubt.value if entry == "forward" else f"{furthest.doubt.value} (tried: {entry})"
    table = furthest.table.name if furthest.table is not None else None
    return [_unrecognised(name, reason, structure, furthest.doubt, next(iter(sorted(looked_up)), table))]


def _unrecognised(name: str, reason: str, structure: Structure, doubt: Doubt, table: str | None = None) -> Unrecognised:
    """Report a candidate with what to write if it is a quantizer."""
    table = table or next(iter([*(each.name for each in structure.tables), *structure.deeper]))
    latents = ", latents=lambda x: ..." if doubt in (Doubt.PROJECTED, Doubt.OTHER_LATENTS) else ""
    advice = f"adapters={{'{name}': GenericVQ(table='{table}', codes=lambda output: ...{latents})}}"
    if doubt is Doubt.NO_CODES:
        advice = "let its forward return its codes too"
    return Unrecognised(name, reason, table=table, advice=f"if it is a quantizer: {advice}")


@dataclass(frozen=True, slots=True)
class _Training:
    """What a copy showed that trained.

    Attributes:
        trial: the run, with gradients where it has some; `None` where no run in training mode went through.
        settled: a run by a copy that had run before, whose start is behind it.
    """

    trial: Trial | None
    settled: Trial | None

    def moves(self, name: str) -> bool:
        """Whether a run itself changes a stored tensor."""
        trial = self.settled or self.trial
        if trial is None:
            return False
        after = trial.after.get(name)
        return after is not None and not torch.equal(after, trial.before[name])


def _rehearse(bench: Bench, entry: str, explanation: Explanation) -> _Training:
    """Train a copy for one run on the first input that it takes, and another one for two."""
    for shape in explanation.shapes:

        def run_once(twin: nn.Module, shape: tuple[int, ...] = shape) -> None:
            given = torch.randn(shape, device=next(iter([*twin.parameters(), *twin.buffers()])).device)
            (twin if entry == "forward" else getattr(twin, entry))(given)

        trial = bench.run(entry, shape, training=True, gradients=True) or bench.run(entry, shape, training=True)
        if trial is not None:
            return _Training(trial, bench.run(entry, shape, training=True, edit=run_once))
    return _Training(None, None)


def _view(
    name: str, module: nn.Module, bench: Bench, entry: str, explanation: Explanation
) -> CodebookView | Unrecognised:
    """Make the view of a confirmed quantizer."""
    table, layout = explanation.table, explanation.layout
    training = _rehearse(bench, entry, explanation)
    reader = _reader(getattr(type(module), entry), layout, _training_index(training.trial, explanation), table.K)
    if training.trial is not None and reader((training.trial.given,), {}, training.trial.output) is None:
        return Unrecognised(name, _NO_TRAINING_CODES, table=table.name)
    averages = _averages(module, training, explanation, reader)
    ref = _ref(module, table.name, table.transposed)
    lacks = _lacks(explanation, training, is_averaged=averages is not None, is_trained=ref.is_parameter)
    knob: Knob | str = "no run of a copy in training mode went through, so that no weight could be tried"
    if training.trial is not None:
        knob = find_commitment(bench, module, entry, training.trial, table)
    return CodebookView(
        name=name,
        adapter="home-made",
        module=module,
        confidence=Confidence.CONFIRMED,
        metric=explanation.metric,
        decodes_raw=explanation.metric == "cosine" and explanation.decodes == "raw",
        readers={entry: reader},
        table=ref,
        ema_sum=None if averages is None else _ref(module, averages[0], table.transposed),
        ema_count=None if averages is None else _ref(module, averages[1], False),
        commitment=knob if isinstance(knob, Knob) else None,
        decay=None if averages is None else _decay(module),
        moves_outside=averages is not None and entry != "forward",
        lacks=lacks if isinstance(knob, Knob) else lacks | {"commitment": knob},
    )


def _lacks(explanation: Explanation, training: _Training, *, is_averaged: bool, is_trained: bool) -> dict[str, str]:
    """Return what must not be done to the table, with the reason."""
    if not is_averaged and training.moves(explanation.table.name):
        return {"reset": _MOVES}
    if not is_averaged and not is_trained:
        return dict.fromkeys(("reset", "fallback"), _FIXED)
    if explanation.metric == "cosine" and explanation.decodes == "raw":
        return dict.fromkeys(("reset", "fallback"), _RAW_LENGTH)
    if explanation.metric == "l2" and explanation.decodes == "unit":
        return dict.fromkeys(("reset", "fallback"), _UNIT_DECODE)
    return {}


def _averages(
    module: nn.Module, training: _Training, explanation: Explanation, reader: Reader
) -> tuple[str, str] | None:
    """Return the names of the moving sum and the moving count; `None` for a table that no averages move."""
    table, trial = explanation.table, training.trial
    if not table.looks_averaged:
        return None
    moving = [name for name in table.sums if training.moves(name)]
    if trial is not None and not moving and _ref(module, table.name, False).is_parameter:
        return None  # gradients move it, and what has its shape is something else
    sums, counts = moving or list(table.sums), list(table.counts)
    return sums[0], counts[0] if len(counts) == 1 or trial is None else _pick_count(counts, trial, reader, table.K)


def _pick_count(counts: Sequence[str], trial: Trial, reader: Reader, K: int) -> str:
    """Of several (K,) tensors, take the one that follows the codes when a copy trains."""
    observation = reader((trial.given,), {}, trial.output)
    assert observation is not None
    hits = torch.bincount(observation.codes, minlength=K).float()

    def agreement(name: str) -> float:
        before, after = trial.before[name], trial.after.get(name, trial.before[name])
        change = (after - before * after.sum() / before.sum()).float()
        cosine = functional.cosine_similarity(change - change.mean(), hits - hits.mean(), dim=0)
        return float(cosine.nan_to_num())

    return max(counts, key=agreement)


def _training_index(trial: Trial | None, explanation: Explanation) -> int:
    """Return where a training forward returns its codes: those are observed, and it may return more than others."""
    table = explanation.table
    for comparison in trial.comparisons if trial is not None else ():
        rows = table.rows(comparison.table) if comparison.table.ndim == 2 else comparison.table
        for each in (rows, comparison.table.t() if comparison.table.ndim == 2 else rows):
            if comparison.source == table.name and each.shape == (table.K, table.D):
                assert trial is not None
                codes = nearest(explanation.layout.latents(trial.given), each)
                index = find_codes(trial.output, codes, table.K)
                if index is not None:
                    return index
    return explanation.codes_index


def _reader(entry: Callable[..., Any], layout: Layout, index: int, K: int) -> Reader:
    """Return the reader of a confirmed quantizer's entry."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        given = given_tensor(entry, args, kwargs)
        tensors = list(flatten_tensors(output))
        if given is None or index >= len(tensors):
            return None
        latents = layout.latents(given)
        codes = read_codes(tensors[index], latents.shape[0], K)
        return None if codes is None else Observation(codes, latents)

    return read


def _ref(module: nn.Module, dotted: str, transposed: bool) -> TensorRef:
    path, _, attribute = dotted.rpartition(".")
    return TensorRef(module.get_submodule(path), attribute, transposed=transposed)


def _decay(module: nn.Module) -> Knob | None:
    for name in _DECAY_NAMES:
        value: Tensor | Any = getattr(module, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Knob(module, name)
        if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
            return Knob(module, name)
    return None
