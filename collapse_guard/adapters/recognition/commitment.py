"""Which attribute weighs the pull on the encoder: found by experiment, since names mislead.

`beta` weighs the commitment in one quantizer and the codebook's own term in the next (taming and diffusers in legacy
mode, Chameleon, Janus). On copies that train, each number of the module is raised by equal steps; it is the commitment
weight if the gradient of a loss in the input grows by equal steps with it and the codebook's gradient does not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapse_guard.adapters.nested import flatten_tensors
from collapse_guard.adapters.refs import Knob

from .structure import Table
from .twins import Bench, Trial

__all__ = ["find_commitment"]

_LARGEST_WEIGHT = 1000.0
_MAX_NUMBERS = 32
_TOLERANCE = 1e-3


class _Effect(Enum):
    """What a number does to one loss."""

    NONE = "does nothing to its losses"
    OTHER = "does something else to its losses than weigh a term"
    PULL = "weighs the term that pulls the encoder"
    PART = "weighs only a part of what pulls the encoder"
    CODEBOOK = "weighs the term that moves the codebook, not the one that pulls the encoder"
    BOTH = "weighs the term that moves the codebook and the one that pulls the encoder together"


@dataclass(frozen=True, slots=True)
class _Pull:
    """Gradients of one loss: in the input, and in the table; zeros where there is none."""

    encoder: Tensor
    codebook: Tensor


def find_commitment(bench: Bench, module: nn.Module, entry: str, base: Trial, table: Table) -> Knob | str:
    """Return the knob of the commitment weight, or why there is none.

    Args:
        bench: runs copies of the module.
        module: the quantizer itself, of which only the names and values of its numbers are read.
        entry: the method that is called in training.
        base: a run in training mode with gradients.
        table: the codebook.
    """
    if not any(bool(pull.encoder.any()) for pull in _pulls(base, table)):
        return "its forward returns no loss that pulls its input: a training script may have one"
    refused = []
    for name in _numbers(module):
        effects = _effects_of(bench, Knob(module, name), entry, base, table) - {_Effect.NONE, _Effect.OTHER}
        if effects == {_Effect.PULL}:
            return Knob(module, name)
        refused += [f"{name!r} {effect.value}" for effect in _Effect if effect in effects - {_Effect.PULL}]
    if refused:
        return "; ".join(refused)
    return "none of its attributes weighs the term that pulls the encoder: the weight is fixed, or set elsewhere"


def _numbers(module: nn.Module) -> list[str]:
    """Return the names of the module's numbers, those first that sound like a weight."""
    plain = [name for name, value in vars(module).items() if _is_weight(value)]
    tensors = [*module._buffers.items(), *module._parameters.items()]
    found = [*plain, *(name for name, value in tensors if _is_weight(value))][:_MAX_NUMBERS]
    return sorted(found, key=lambda name: not any(word in name.lower() for word in ("commit", "beta", "weight")))


def _is_weight(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.is_floating_point()
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LARGEST_WEIGHT


def _effects_of(bench: Bench, knob: Knob, entry: str, base: Trial, table: Table) -> set[_Effect]:
    """Raise a number by two equal steps and say what it does to each loss."""
    value = knob.get()
    step = value or 1.0
    series = [_pulls(base, table)]
    for factor in (1, 2):
        raised = value + factor * step

        def set_number(twin: nn.Module, raised: float = raised) -> None:
            Knob(twin, knob.attribute).set(raised)

        trial = bench.run(entry, tuple(base.given.shape), training=True, gradients=True, traced=False, edit=set_number)
        series.append([] if trial is None else _pulls(trial, table))
    if len({len(pulls) for pulls in series}) > 1:
        return {_Effect.OTHER}
    return {_effect(*pulls, share=value / step) for pulls in zip(*series, strict=True)}


def _effect(first: _Pull, second: _Pull, third: _Pull, *, share: float) -> _Effect:
    """Read three gradients at equal distances; `share` is how many steps the first lies from zero."""
    pulls = [pull.encoder for pull in (first, second, third)]
    tables = [pull.codebook for pull in (first, second, third)]
    moves_encoder, moves_codebook = _differ(pulls), _differ(tables)
    if not moves_encoder and not moves_codebook:
        return _Effect.NONE
    if not _is_even(pulls) or not _is_even(tables):
        return _Effect.OTHER
    if moves_codebook:
        return _Effect.BOTH if moves_encoder else _Effect.CODEBOOK
    slope = pulls[1] - pulls[0]
    rest = pulls[0] - share * slope  # what pulls the encoder at a weight of zero
    if rest.norm() <= _TOLERANCE * pulls[1].norm():
        return _Effect.PULL
    parallel = functional.cosine_similarity(rest.flatten(), slope.flatten(), dim=0).abs() > 0.99
    return _Effect.PART if bool(parallel) else _Effect.PULL


def _differ(series: list[Tensor]) -> bool:
    return bool((series[1] - series[0]).norm() > _TOLERANCE * max(each.norm() for each in series))


def _is_even(series: list[Tensor]) -> bool:
    """Whether three tensors lie at equal distances on a line."""
    bend = series[2] - 2 * series[1] + series[0]
    return bool(bend.norm() <= _TOLERANCE * max(each.norm() for each in series))


def _pulls(trial: Trial, table: Table) -> list[_Pull]:
    """Return the gradients of each loss of a run."""
    stored = trial.stored[table.name]
    wanted = [trial.given, *([stored] if stored.requires_grad else [])]
    pulls = []
    for loss in _losses(trial):
        try:
            found = torch.autograd.grad(loss.sum(), wanted, retain_graph=True, allow_unused=True)
        except RuntimeError:  # a graph that cannot be gone through, such as one whose tensors were written to
            continue
        encoder, codebook = (*found, None)[:2]
        pulls.append(
            _Pull(
                torch.zeros_like(trial.given) if encoder is None else encoder,
                torch.zeros_like(stored) if codebook is None else codebook,
            )
        )
    return pulls


def _losses(trial: Trial) -> Iterator[Tensor]:
    """Yield losses that a run returned, or left on its module: with a graph, and of at most one axis."""
    for tensor in (*flatten_tensors(trial.output), *flatten_tensors(vars(trial.twin))):
        if tensor.requires_grad and tensor.grad_fn is not None and tensor.ndim <= 1 and tensor.is_floating_point():
            yield tensor
