"""Home-made EMA quantizers, recognised by what they are made of, whatever they call it.

A K x D table, a moving sum of the same shape and a moving count of length K make a candidate; a trial forward of a
copy then says which of the two is the table, what it is compared with, and where in the output the codes are. Only a
candidate whose codes equal an independent nearest-code search is accepted; any other is reported with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard.adapters.base import K_OF_ONE, CodebookView, Metric, Observation, Reader, Unrecognised
from collapse_guard.adapters.refs import Knob, TensorRef
from collapse_guard.adapters.trace import Comparison, Trial, flatten_tensors, run_trials
from collapse_guard.kmeans import assign

__all__ = ["match_home_made"]

_DECAY_NAMES = ("decay", "ema_decay", "_decay", "gamma", "_gamma", "momentum")
_COMMITMENT_NAMES = (
    "commitment_weight",
    "commitment_cost",
    "_commitment_cost",
    "commitment",
    "commitment_loss_weight",
    "commit_weight",
    "beta",
    "_beta",
)


@dataclass(frozen=True, slots=True)
class _Structure:
    """The tensors of a candidate: two (K, D) tensors, either may be the table, and (K,) counts."""

    pair: tuple[str, str]
    counts: tuple[str, ...]
    K: int
    D: int
    transposed: bool


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a forward's input becomes (n, D) latents."""

    D: int
    channel_first_ndims: frozenset[int]
    normalise: bool

    def latents(self, given: Tensor) -> Tensor:
        first = given.ndim in self.channel_first_ndims or given.shape[-1] != self.D
        rows = (given.movedim(1, -1) if first and given.ndim > 2 else given).detach().reshape(-1, self.D)
        return functional.normalize(rows, dim=-1) if self.normalise else rows


def match_home_made(name: str, module: nn.Module) -> Sequence[CodebookView | Unrecognised] | None:
    """Recognise a home-made EMA quantizer; `None` where the module does not even look like one."""
    structures = list(_structures(module))
    if not structures:
        return None
    if structures[0].K < 2:
        return [Unrecognised(name, K_OF_ONE)]
    reasons = []
    for structure in structures:
        stored = _stored(module)
        trials = list(run_trials(module, {key: stored[key] for key in structure.pair}, structure.D))
        view = _confirm(name, module, structure, trials)
        if isinstance(view, CodebookView):
            return [view]
        reasons.append(view)
    return [Unrecognised(name, "; ".join(dict.fromkeys(reasons)))]


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """Return floating tensors of the module itself and of its embeddings, by dotted name."""
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    for child_name, child in module.named_children():
        if isinstance(child, nn.Embedding):
            own[f"{child_name}.weight"] = child.weight
    return {key: tensor for key, tensor in own.items() if tensor.is_floating_point()}


def _structures(module: nn.Module) -> list[_Structure]:
    stored = _stored(module)
    counts = [key for key, t in stored.items() if t.ndim == 1 and not t.requires_grad]
    tables = [key for key, t in stored.items() if t.ndim == 2]
    found = []
    for first, second in itertools.combinations(tables, 2):
        shape = stored[first].shape
        if shape != stored[second].shape:
            continue
        for transposed, (K, D) in enumerate(((shape[0], shape[1]), (shape[1], shape[0]))):
            matching = tuple(key for key in counts if stored[key].shape[0] == K)
            if matching:
                found.append(_Structure((first, second), matching, K, D, bool(transposed)))
    return found


def _confirm(name: str, module: nn.Module, structure: _Structure, trials: list[Trial]) -> CodebookView | str:
    """Build a view from trials that agree with an independent search, or say why there is none."""
    doubts = {_Doubt.NOT_COMPARED}
    found: _Explanation | None = None
    channel_first: set[int] = set()
    for trial in trials:
        for comparison in trial.comparisons:
            explanation = _explain(comparison, trial, structure)
            if isinstance(explanation, _Doubt):
                doubts.add(explanation)
                continue
            found = explanation
            channel_first |= explanation.layout.channel_first_ndims
            break
    if found is None:  # several layouts were tried: the trial that came furthest tells most
        return max(doubts, key=list(_Doubt).index).value
    layout = _Layout(structure.D, frozenset(channel_first), found.layout.normalise)
    other = structure.pair[1] if found.source == structure.pair[0] else structure.pair[0]
    codes_index = _find_training_codes(module, structure, layout, found)
    reader = _reader(layout, codes_index, structure.K)
    count = _pick_count(module, structure, reader)
    commitment, lack = _commitment(module)
    lacks = {} if lack is None else {"commitment": lack}
    if found.metric == "cosine":
        why_not = "it searches normalised rows and decodes with raw ones: the length to write is not known"
        lacks |= dict.fromkeys(("reset", "fallback"), why_not)
    return CodebookView(
        name=name,
        adapter="home-made",
        module=module,
        metric=found.metric,
        readers={"forward": reader},
        table=_ref(module, found.source, structure.transposed),
        ema_sum=_ref(module, other, structure.transposed),
        ema_count=_ref(module, count, False),
        commitment=commitment,
        decay=_knob(module, _DECAY_NAMES),
        lacks=lacks,
    )


class _Doubt(Enum):
    """Why a candidate was not confirmed, in the order in which a trial may come to it."""

    NOT_COMPARED = "no trial forward on random latents ran and compared one of its tables with them"
    TABLE_TRANSFORMED = "its table is transformed before the comparison, by more than L2 normalisation"
    OTHER_LATENTS = "what it compares with its table is neither its input nor its L2-normalised input"
    NO_CODES = "its forward returns no codes (indices or one-hot) that equal the nearest codes"


@dataclass(frozen=True, slots=True)
class _Explanation:
    """What a comparison turned out to be: which table, how searched, from which latents, where the codes are."""

    source: str
    metric: Metric
    layout: _Layout
    codes_index: int


def _explain(comparison: Comparison, trial: Trial, structure: _Structure) -> _Explanation | _Doubt:
    """Read one comparison, or say why it is not the search of a quantizer."""
    raw = trial.before[comparison.source]
    raw = raw.t() if structure.transposed else raw
    used = [rows for rows in _as_rows(comparison.table, structure.K, structure.D) if rows.shape == raw.shape]
    plain = any(_same_up_to_scale(raw, rows) for rows in used)
    unit = functional.normalize(raw, dim=-1)
    if not plain and not any(_same_up_to_scale(unit, rows) for rows in used):
        return _Doubt.TABLE_TRANSFORMED
    others = _as_rows(comparison.other, trial.given.numel() // structure.D, structure.D)
    for layout in _layouts(trial.given, structure.D):
        latents = layout.latents(trial.given)
        if any(_same_up_to_scale(latents, other) for other in others):
            codes = assign(latents, raw if plain else unit, backend="torch")
            index = _find_codes(trial.output, codes, structure.K)
            if index is None:
                return _Doubt.NO_CODES
            return _Explanation(comparison.source, "l2" if plain else "cosine", layout, index)
    return _Doubt.OTHER_LATENTS


def _find_training_codes(module: nn.Module, structure: _Structure, layout: _Layout, found: _Explanation) -> int:
    """Return where a training forward returns its codes: those are observed, and it may return more than others."""
    stored = {key: _stored(module)[key] for key in structure.pair}
    for trial in run_trials(module, stored, structure.D, training=True):
        latents = layout.latents(trial.given)
        searches = (comparison for comparison in trial.comparisons if comparison.source == found.source)
        for table in (rows for search in searches for rows in _as_rows(search.table, structure.K, structure.D)):
            index = _find_codes(trial.output, assign(latents, table, backend="torch"), structure.K)
            if index is not None:
                return index
    return found.codes_index


def _pick_count(module: nn.Module, structure: _Structure, reader: Reader) -> str:
    """Of several (K,) tensors, take the one that follows the codes when a copy trains."""
    if len(structure.counts) == 1:
        return structure.counts[0]
    stored = _stored(module)
    names = (*structure.pair, *structure.counts)
    best, winner = -1.0, structure.counts[0]
    for trial in run_trials(module, {key: stored[key] for key in names}, structure.D, training=True):
        observation = reader((trial.given,), {}, trial.output)
        if observation is None:
            continue
        hits = torch.bincount(observation.codes, minlength=structure.K).float()
        for count in structure.counts:
            change = (
                trial.after[count] - trial.before[count] * trial.after[count].sum() / trial.before[count].sum()
            ).float()
            agreement = float(
                functional.cosine_similarity(change - change.mean(), hits - hits.mean(), dim=0).nan_to_num()
            )
            if agreement > best:
                best, winner = agreement, count
    return winner


def _layouts(given: Tensor, D: int) -> list[_Layout]:
    """Ways in which this input may have become latents."""
    options = []
    for normalise in (False, True):
        if given.shape[-1] == D:
            options.append(_Layout(D, frozenset(), normalise))
        if given.ndim > 2 and given.shape[1] == D:
            options.append(_Layout(D, frozenset({given.ndim}), normalise))
    return options


def _as_rows(tensor: Tensor, rows: int, D: int) -> list[Tensor]:
    """Return the readings of a tensor as (rows, D): as it lies, and transposed; none where the size is another."""
    if tensor.numel() != rows * D:
        return []
    options = [tensor.reshape(rows, D)] if tensor.shape[-1] == D else []
    squeezed = tensor.squeeze()
    return [*options, squeezed.t()] if squeezed.shape == (D, rows) else options


def _same_up_to_scale(latents: Tensor, other: Tensor) -> bool:
    """Whether two (n, D) operands are equal up to the factors that expanded squares put in front."""
    return any(torch.allclose(latents * factor, other, rtol=1e-4, atol=1e-5) for factor in (1.0, 2.0, -2.0))


def _find_codes(output: Any, codes: Tensor, K: int) -> int | None:
    """Return the position, among the output's tensors, of the one that holds these codes."""
    for index, tensor in enumerate(flatten_tensors(output)):
        read = _read_codes(tensor, codes.numel(), K)
        if read is not None and bool((read == codes).float().mean() >= 0.99):
            return index
    return None


def _read_codes(tensor: Tensor, n: int, K: int) -> Tensor | None:
    """Return (n,) codes from indices or from a one-hot tensor; `None` where the tensor is neither by its size."""
    if not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() == n:
        return tensor.detach().reshape(-1).long()
    if tensor.numel() == n * K and tensor.shape[-1] == K:
        return tensor.detach().reshape(n, K).argmax(-1)
    return None


def _reader(layout: _Layout, index: int, K: int) -> Reader:
    """Return the reader of a confirmed quantizer."""

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Observation | None:
        given = next(flatten_tensors((args, kwargs)), None)
        tensors = list(flatten_tensors(output))
        if given is None or index >= len(tensors):
            return None
        latents = layout.latents(given)
        codes = _read_codes(tensors[index], latents.shape[0], K)
        return None if codes is None else Observation(codes, latents)

    return read


def _ref(module: nn.Module, dotted: str, transposed: bool) -> TensorRef:
    path, _, attribute = dotted.rpartition(".")
    return TensorRef(module.get_submodule(path), attribute, transposed=transposed)


def _knob(module: nn.Module, names: tuple[str, ...]) -> Knob | None:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Knob(module, name)
        if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
            return Knob(module, name)
    return None


def _commitment(module: nn.Module) -> tuple[Knob | None, str | None]:
    # An EMA table takes no gradient, so a weight of the loss can only be that of the commitment, even one named beta.
    knob = _knob(module, _COMMITMENT_NAMES)
    if knob is not None:
        return knob, None
    return None, f"no commitment weight found under any of {', '.join(_COMMITMENT_NAMES)}"
